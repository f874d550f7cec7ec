"""The output head and its loss, with few passes over the logits.

The logits are the largest tensor of a small model, tokens x vocabulary, and reading and writing
them takes longer than their matrix product. So they are made a few rows at a time, which stay in
the processor's cache until their losses are known. What the gradient needs of them, the errors
softmax(logits) - onehot(target), is kept in the precision of the products, and the gradients of the
losses are applied to the small factors: with errors E [M, V], hidden states h [M, D], weights W
[V, D] and gradients g [M],

    grad h = diag(g) E W,    grad W = E' diag(g) h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from curate.train.fuse import can_fuse

_ROWS = {"cpu": 512, "cuda": 4096}
"""Rows of logits made at once, where no kernel reads them once."""


def head_losses(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Cross entropy of `hidden @ weight.T` with the targets, float32 [M], nats.

    Args:
        hidden: [M, D].
        weight: [V, D].
        targets: int64 [M], in [0, V).
        dtype: precision of the matrix products; the softmax is float32.
    """
    learns = hidden.requires_grad or weight.requires_grad
    if not (learns and torch.is_grad_enabled()):
        return _losses(hidden.to(dtype), weight.to(dtype), targets, errors=False)[0]
    found: Tensor = _HeadLosses.apply(hidden, weight, targets, dtype)  # type: ignore[no-untyped-call]
    return found


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        low, head = hidden.to(dtype), weight.to(dtype)
        losses, errors = _losses(low, head, targets, errors=True)
        context.save_for_backward(low, head, errors)
        context.dtypes = hidden.dtype, weight.dtype
        return losses

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, head, errors = context.saved_tensors
        each = gradients[0][:, None]
        hidden = ((errors @ head) * each).to(context.dtypes[0])
        weight = (errors.T @ (low * each).to(low.dtype)).to(context.dtypes[1])
        return hidden, weight, None, None


def _losses(
    hidden: Tensor, head: Tensor, targets: Tensor, *, errors: bool
) -> tuple[Tensor, Tensor]:
    """The losses, float32 [M], and where asked for softmax(logits) - onehot(targets), [M, V]."""
    if hidden.device.type == "cuda" and can_fuse():
        from curate.train.softmax import row_losses  # noqa: PLC0415 (Triton is where GPUs are)

        logits = nn.functional.linear(hidden, head)
        return row_losses(logits, targets, errors=errors), logits
    found = hidden.new_empty(len(hidden) if errors else 0, len(head))
    losses = torch.empty(len(hidden), device=hidden.device)
    rows = _ROWS[hidden.device.type]
    for first in range(0, len(hidden), rows):
        part = slice(first, first + rows)
        chosen = targets[part, None]
        logits = nn.functional.linear(hidden[part], head).float()
        log_share = nn.functional.log_softmax(logits, dim=-1)
        losses[part] = -log_share.gather(1, chosen)[:, 0]
        if errors:
            share = log_share.exp_()
            found[part] = share.scatter_add_(1, chosen, share.new_full(chosen.shape, -1.0))
    return losses, found
