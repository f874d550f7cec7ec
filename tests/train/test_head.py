import numpy as np
import pytest
import torch
from tiny_models import one_thread  # noqa: F401

from curate.train import head as head_module
from curate.train.head import head_losses


def plain(hidden, weight, targets, gradients):
    """The definition, and its gradients by autograd."""
    losses = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (losses * gradients).sum().backward()
    return losses.detach(), hidden.grad, weight.grad


def factors(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 24, generator=generator).requires_grad_()
    weight = torch.randn(70, 24, generator=generator).requires_grad_()
    targets = torch.randint(70, (rows,), generator=generator)
    gradients = torch.rand(rows, generator=generator) * (torch.arange(rows) % 3 > 0)
    return hidden, weight, targets, gradients


def both(rows, dtype):
    """Losses and gradients of the definition in float32, and of `head_losses`."""
    hidden, weight, targets, gradients = factors(rows)
    expected = plain(hidden, weight, targets, gradients)
    hidden, weight, targets, gradients = factors(rows)
    losses = head_losses(hidden, weight, targets, dtype)
    (losses * gradients).sum().backward()
    with torch.no_grad():
        alone = head_losses(hidden, weight, targets, dtype)
    assert losses.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(alone, losses.detach(), rtol=0, atol=0)
    return expected, (losses.detach(), hidden.grad, weight.grad)


@pytest.mark.parametrize("chunk", [7, 512])
@pytest.mark.parametrize("rows", [1, 50, 63])
def test_losses_and_gradients_are_those_of_the_definition(rows, chunk, monkeypatch):
    monkeypatch.setattr(head_module, "_ROWS", {"cpu": chunk})
    expected, found = both(rows, torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_low_precision_is_that_of_the_products_alone():
    expected, found = both(600, torch.bfloat16)
    for ours, theirs in zip(found, expected, strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        assert error < 0.01


def test_no_rows_have_no_losses():
    hidden, weight, targets, _ = factors(0)
    assert head_losses(hidden, weight, targets, torch.float32).shape == (0,)


def test_certain_tokens_have_small_exact_losses():
    """The softmax is of float32: a loss of 1e-4 is not lost to rounding."""
    hidden = torch.tensor([[9.25, 0.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = float(head_losses(hidden, weight, torch.tensor([0]), torch.bfloat16))
    assert loss == pytest.approx(np.log1p(np.exp(-9.25)), rel=1e-2)
