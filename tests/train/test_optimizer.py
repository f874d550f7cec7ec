import copy
import io

import pytest
import torch
from tiny_models import (
    PREFIX,
    VOCABULARY,
    make_documents,
    make_model,
    one_thread,  # noqa: F401
    plain_token_losses,
    same_weights,
    tokens_of,
    weights_of,
)

from curate.config.schema import TrainConfig
from curate.errors import NonFiniteLoss
from curate.read.documents import concatenate
from curate.train import model as model_module
from curate.train.optimizer import Optimizer, Term, default_ramp, ramp_then_constant

RATE = 1e-2
DOCUMENTS = make_documents([1, 8, 9, 30, 5, 17, 3])
OTHERS = make_documents([12, 2, 25], seed=9)


def make_optimizer(model, rate=RATE, **settings):
    return Optimizer(model, "proxy", TrainConfig(**settings), lambda step: rate)


def plain_loss(network, terms):
    """The loss of a step by its definition: all token losses of a term, one mean, a weight."""
    total = 0.0
    for documents, weight in terms:
        losses = [loss for one in tokens_of(documents) for loss in plain_token_losses(network, one)]
        total = total + weight * torch.stack(losses).mean()
    return total


def plain_steps(network, steps, *, decay=0.1, betas=(0.9, 0.95), clip=1.0, rates=(RATE,) * 9):
    """AdamW written out by hand (Loshchilov and Hutter, 2019, Algorithm 2)."""
    parameters = list(network.parameters())
    first = [torch.zeros_like(one) for one in parameters]
    second = [torch.zeros_like(one) for one in parameters]
    records = []
    for number, terms in enumerate(steps):
        network.zero_grad()
        loss = plain_loss(network, terms)
        loss.backward()
        gradients = [one.grad for one in parameters]
        norm = torch.cat([one.flatten() for one in gradients]).norm()
        records.append((float(loss.detach()), float(norm)))
        scale = min(1.0, clip / float(norm))
        with torch.no_grad():
            for one, gradient, mean, square in zip(
                parameters, gradients, first, second, strict=True
            ):
                mean.mul_(betas[0]).add_(gradient * scale, alpha=1 - betas[0])
                square.mul_(betas[1]).add_((gradient * scale) ** 2, alpha=1 - betas[1])
                if one.ndim >= 2:
                    one.mul_(1 - rates[number] * decay)
                corrected = mean / (1 - betas[0] ** (number + 1))
                root = (square / (1 - betas[1] ** (number + 1))).sqrt()
                one.sub_(rates[number] * corrected / (root + 1e-8))
    return records


def assert_close(ours, theirs, atol=1e-5):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("decay", "betas", "clip"),
    [(0.1, (0.9, 0.95), 1.0), (0.0, (0.5, 0.999), 1e6), (2.0, (0.9, 0.95), 0.05)],
)
def test_steps_are_those_of_a_plain_loop(decay, betas, clip):
    model = make_model()
    plain = copy.deepcopy(model.network)
    steps = [[(DOCUMENTS, 1.0)], [(OTHERS, 1.0), (DOCUMENTS, 0.5)], [(OTHERS, 1.0)]]
    optimizer = make_optimizer(
        model, weight_decay=decay, beta1=betas[0], beta2=betas[1], gradient_clip=clip
    )
    found = [optimizer.step([Term(*term) for term in terms]) for terms in steps]
    expected = plain_steps(plain, steps, decay=decay, betas=betas, clip=clip)
    assert [one.loss for one in found] == pytest.approx([one[0] for one in expected], rel=1e-4)
    norms = [one[1] for one in expected]
    assert [one.gradient_norm for one in found] == pytest.approx(norms, rel=1e-3)
    assert_close(weights_of(model), [one.detach() for one in plain.parameters()], atol=1e-4)


@pytest.mark.parametrize("microbatch_tokens", [1, 64, 100])
def test_a_step_does_not_depend_on_the_microbatch(microbatch_tokens):
    whole, cut = make_model(), make_model(microbatch_tokens=microbatch_tokens)
    one = make_optimizer(whole).step([Term(DOCUMENTS), Term(OTHERS, 0.3)])
    other = make_optimizer(cut).step([Term(DOCUMENTS), Term(OTHERS, 0.3)])
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)
    assert_close(weights_of(whole), weights_of(cut))


def test_long_batches_recompute_the_output_head_to_the_same_gradient(monkeypatch):
    whole, chunked = make_model(), make_model()
    one = make_optimizer(whole).step([Term(DOCUMENTS)])
    monkeypatch.setattr(model_module, "_LOGITS_AT_ONCE", {"cpu": 5 * VOCABULARY})
    monkeypatch.setattr(model_module, "_HEAD_MULTIPLE", 5)
    assert DOCUMENTS.num_tokens > 10
    other = make_optimizer(chunked).step([Term(DOCUMENTS)])
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)
    assert_close(weights_of(whole), weights_of(chunked))


def test_every_token_weighs_the_same_wherever_the_documents_are_cut_into_terms():
    together, apart = make_model(), make_model()
    n, m = DOCUMENTS.num_tokens, OTHERS.num_tokens
    one = make_optimizer(together).step([Term(concatenate([DOCUMENTS, OTHERS]))])
    terms = [Term(OTHERS, m / (n + m)), Term(DOCUMENTS, n / (n + m))]
    other = make_optimizer(apart).step(terms)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert_close(weights_of(together), weights_of(apart))


def test_terms_without_tokens_count_as_nothing():
    plain, padded = make_model(), make_model()
    one = make_optimizer(plain).step([Term(DOCUMENTS)])
    other = make_optimizer(padded).step([Term(DOCUMENTS), Term(make_documents([]), 5.0)])
    assert one.loss == other.loss
    assert same_weights(weights_of(plain), weights_of(padded))


def test_training_lowers_the_loss():
    optimizer = make_optimizer(make_model())
    losses = [optimizer.step([Term(DOCUMENTS)]).loss for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5


def test_no_gradient_is_left_for_the_next_step():
    optimizer = make_optimizer(make_model(), rate=1e-12, weight_decay=0.0)
    norms = [optimizer.step([Term(DOCUMENTS)]).gradient_norm for _ in range(3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_a_record_says_what_was_done():
    optimizer = Optimizer(make_model(), "proxy", TrainConfig(), ramp_then_constant(1e-2, 4))
    records = [optimizer.step([Term(OTHERS)], first_step=7) for _ in range(6)]
    assert [one.step for one in records] == [7, 8, 9, 10, 11, 12]
    rates = [2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2]
    assert [one.learning_rate for one in records] == pytest.approx(rates)
    assert {one.model for one in records} == {"proxy"}
    assert optimizer.steps == 6


@pytest.mark.parametrize(("steps", "ramp"), [(0, 1), (19, 1), (300, 30), (10**6, 100)])
def test_a_ramp_is_a_tenth_of_the_steps_and_no_more_than_a_hundred(steps, ramp):
    assert default_ramp(steps) == ramp


def test_no_ramp_starts_at_the_peak():
    for ramp_steps in (0, 1):
        assert [ramp_then_constant(0.5, ramp_steps)(step) for step in (0, 1, 99)] == [0.5] * 3


def test_a_ramp_is_what_the_steps_are_taken_with():
    model = make_model()
    plain = copy.deepcopy(model.network)
    optimizer = Optimizer(model, "proxy", TrainConfig(), ramp_then_constant(RATE, 3))
    for _ in range(4):
        optimizer.step([Term(OTHERS)])
    plain_steps(plain, [[(OTHERS, 1.0)]] * 4, rates=[RATE / 3, RATE * 2 / 3, RATE, RATE])
    assert_close(weights_of(model), [one.detach() for one in plain.parameters()], atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_changes_nothing(value):
    model = make_model()
    optimizer = make_optimizer(model)
    optimizer.step([Term(DOCUMENTS)])
    with torch.no_grad():
        model.network.model.norm.weight[3] = value
    before = weights_of(model)
    with pytest.raises(NonFiniteLoss) as caught:
        optimizer.step([Term(DOCUMENTS)])
    assert caught.value.problem.startswith("Step 1 of the proxy model gave a loss of nan")
    assert caught.value.exit_code != 0
    assert same_weights(weights_of(model), before)
    assert optimizer.steps == 1
    assert all(one.grad is None or not one.grad.any() for one in model.network.parameters())


def test_a_saved_optimizer_goes_on_bit_for_bit():
    model = make_model()
    optimizer = Optimizer(model, "proxy", TrainConfig(), ramp_then_constant(RATE, 6))
    for _ in range(3):
        optimizer.step([Term(DOCUMENTS)])
    held = io.BytesIO()
    torch.save((model.network.state_dict(), optimizer.state_dict()), held)
    expected = [optimizer.step([Term(OTHERS)]).loss for _ in range(3)]

    held.seek(0)
    weights, state = torch.load(held, weights_only=True)
    other = make_model(seed=5)
    resumed = Optimizer(other, "proxy", TrainConfig(), ramp_then_constant(RATE, 6))
    other.network.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.steps == 3
    assert [resumed.step([Term(OTHERS)]).loss for _ in range(3)] == expected
    assert same_weights(weights_of(other), weights_of(model))


def test_prefix_is_not_a_label():
    """A step on one-token documents pulls up the token after the prefix, nothing else."""
    model = make_model()
    documents = make_documents([1] * 6)
    documents.input_ids[:] = 11
    optimizer = make_optimizer(model)
    for _ in range(30):
        optimizer.step([Term(documents)])
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([[PREFIX]])).logits[0, 0]
    assert int(logits.argmax()) == 11
