"""What only a GPU can show: packed windows and fused layers compute what the definition says."""

import functools
import itertools

import numpy as np
import pytest
import torch
from tiny_models import PREFIX, make_documents

from curate.config.schema import TrainConfig
from curate.errors import NonFiniteLoss
from curate.score.loss import document_losses, token_losses
from curate.train import model as model_module
from curate.train.compute import Compute
from curate.train.flash import flash_attention, has_flash_attention
from curate.train.model import LanguageModel, ModelShape, build_network
from curate.train.optimizer import Optimizer, Term

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WORDS = 600
SHAPE = ModelShape(
    window=256,
    longest_window=1024,
    vocabulary_size=WORDS,
    batch_tokens=4096,
    learning_rate=1e-3,
    llama={"hidden": 128, "layers": 3, "heads": 2, "intermediate": 352},
)
DOCUMENTS = make_documents([700, 1, 256, 30, 257, 64, 5, 900] * 5, seed=3, vocabulary=WORDS)


def model(device, dtype):
    network = build_network(SHAPE, WORDS, PREFIX, seed=3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    compute = Compute(torch.device(device), dtype, 2048)
    return LanguageModel(network, window=256, overlap=32, prefix_id=PREFIX, compute=compute)


def gradients(model):
    optimizer = Optimizer(model, "proxy", TrainConfig(gradient_clip=1e9), lambda step: 0.0)
    found = {}
    for name, parameter in model.network.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda one, name=name: found.__setitem__(name, one.grad.float().cpu().clone())
        )
    record = optimizer.step([Term(DOCUMENTS)])
    return record, found


@pytest.fixture(scope="module")
def exact():
    return model("cpu", torch.float32)


@pytest.fixture(scope="module", params=["PyTorch's kernel", "FlashAttention 4"])
def on_gpu(request):
    made = model("cuda", torch.bfloat16)
    flashes = request.param == "FlashAttention 4"
    if flashes and not has_flash_attention(made.compute.device):
        pytest.skip("flash-attn-4 is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "_FLASH_FROM", 1 if flashes else 1 << 30)
        yield made


def test_losses_of_documents_and_tokens_are_those_of_float32_on_a_cpu(exact, on_gpu):
    expected, found = (document_losses(one, DOCUMENTS) for one in (exact, on_gpu))
    assert abs(found - expected).max() < 0.08
    assert abs(found - expected).mean() < 0.015
    assert abs((found - expected).mean()) < 0.005
    with torch.no_grad():
        expected, found = (token_losses(one, DOCUMENTS).cpu() for one in (exact, on_gpu))
    assert (found - expected).abs().mean() < 0.05


def test_frozen_copies_have_the_same_losses(on_gpu):
    np.testing.assert_allclose(
        document_losses(on_gpu.frozen_copy(), DOCUMENTS),
        document_losses(on_gpu, DOCUMENTS),
        atol=0.02,
    )


def test_documents_do_not_see_each_other(on_gpu):
    """Alone or beside others in a row, a document has the same loss."""
    together = document_losses(on_gpu, DOCUMENTS)
    for place in (0, 1, 7):
        alone = document_losses(on_gpu, DOCUMENTS.take(np.array([place])))
        assert alone[0] == pytest.approx(together[place], abs=0.02)


def test_gradients_are_those_of_float32_on_a_cpu(on_gpu):
    expected, exact = gradients(model("cpu", torch.float32))
    found, ours = gradients(on_gpu.trainable_copy())
    assert found.loss == pytest.approx(expected.loss, abs=0.005)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.01)
    for name, gradient in exact.items():
        assert float((ours[name] - gradient).norm() / gradient.norm()) < 0.06, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("words", [600, 8192, 9001, 32000])
def test_losses_of_rows_of_logits_and_their_errors_are_what_the_definition_says(words, dtype):
    from curate.train.softmax import row_losses

    generator = torch.Generator("cuda").manual_seed(words)
    logits = 5 * torch.randn(300, words, generator=generator, device="cuda", dtype=dtype)
    logits[3] += 80
    logits[4, words // 2 :] = -torch.inf
    targets = torch.randint(words // 2, (300,), generator=generator, device="cuda")
    exact = logits.double()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    before = logits.clone()
    for errors in (False, True):
        losses = row_losses(logits, targets, errors=errors)
        torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-5)
        assert errors or torch.equal(logits, before)
    share = exact.softmax(dim=-1)
    share[torch.arange(300), targets] -= 1
    torch.testing.assert_close(logits, share.to(dtype), rtol=0.01, atol=1e-6)


def test_a_step_that_is_not_finite_is_none(on_gpu):
    """Found out by the device, which goes on with the step meanwhile."""
    made = on_gpu.trainable_copy()
    optimizer = Optimizer(made, "proxy", TrainConfig(), lambda step: 0.1)
    optimizer.step([Term(DOCUMENTS)])
    with torch.no_grad():
        made.network.model.norm.weight[3] = torch.inf
    before = [one.detach().clone() for one in made.network.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"^Step 1 of the proxy model gave a loss of nan"):
        optimizer.step([Term(DOCUMENTS)])
    now = list(made.network.parameters())
    assert all(torch.equal(one, other) for one, other in zip(now, before, strict=True))


@pytest.mark.parametrize("lengths", [(5, 128, 1), (129, 7), (2048, 300, 1, 1, 700), (64,) * 400])
def test_flash_attention_is_what_the_definition_says(lengths):
    device = torch.device("cuda")
    if not has_flash_attention(device):
        pytest.skip("flash-attn-4 is not installed")
    generator = torch.Generator(device).manual_seed(1)
    drawn = torch.randn(4, sum(lengths), 3, 64, generator=generator, device=device)
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    ours = functools.partial(flash_attention, starts=starts, longest=max(lengths))
    found = values_and_gradients(ours, drawn.to(torch.bfloat16))
    expected = values_and_gradients(functools.partial(by_definition, starts=starts), drawn.double())
    for one, other in zip(found, expected, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.01


def values_and_gradients(attention, drawn):
    factors = [one.clone().requires_grad_() for one in drawn[:3]]
    output = attention(*factors, scale=0.2)
    return [output.detach(), *torch.autograd.grad(output, factors, drawn[3])]


def by_definition(query, key, value, starts, scale):
    parts = []
    for first, end in itertools.pairwise(starts.tolist()):
        scores = torch.einsum("ihd,jhd->hij", query[first:end], key[first:end]) * scale
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device).triu(1)
        shares = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        parts.append(torch.einsum("hij,jhd->ihd", shares, value[first:end]))
    return torch.cat(parts)
