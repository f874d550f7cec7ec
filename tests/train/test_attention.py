import pytest
import torch
from tiny_models import PREFIX, make_documents, one_thread  # noqa: F401
from transformers import masking_utils

from curate.score.loss import document_losses
from curate.train import attention as attention_module
from curate.train.attention import BLOCKED, causal_attention
from curate.train.compute import Compute
from curate.train.model import LanguageModel, ModelShape, build_network

SHAPE = ModelShape(
    window=200,
    longest_window=512,
    vocabulary_size=48,
    batch_tokens=64,
    learning_rate=1e-2,
    llama={"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64},
)
DOCUMENTS = make_documents([190, 150, 3, 129], seed=2)


def tensors(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, length, 8, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300])
def test_attention_and_its_gradients_are_those_of_pytorch(length):
    ours, theirs = tensors(length), tensors(length)
    found = causal_attention(*ours, 0.7)
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True, scale=0.7)
    torch.testing.assert_close(found, expected)
    for result in (found, expected):
        (result * torch.linspace(-1, 1, length)[:, None]).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def model(dtype, attention):
    network = build_network(SHAPE, 48, PREFIX, seed=1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    network.config._attn_implementation = attention
    compute = Compute(torch.device("cpu"), dtype, 1024)
    return LanguageModel(network, window=200, overlap=25, prefix_id=PREFIX, compute=compute)


def test_models_in_low_precision_attend_in_blocks(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return causal_attention(*arguments)

    monkeypatch.setattr(attention_module, "causal_attention", counted)
    exact = document_losses(model(torch.float32, BLOCKED), DOCUMENTS)
    assert not calls
    ours = document_losses(model(torch.bfloat16, BLOCKED), DOCUMENTS)
    assert calls
    theirs = document_losses(model(torch.bfloat16, "sdpa"), DOCUMENTS)
    assert abs(ours - exact).max() < 0.05
    assert abs(ours - exact).mean() < 2 * abs(theirs - exact).mean() + 1e-3


def test_no_mask_is_looked_for(monkeypatch):
    """To see that a batch needs none, transformers would wait for a GPU."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", None)
    document_losses(model(torch.float32, BLOCKED), DOCUMENTS)
