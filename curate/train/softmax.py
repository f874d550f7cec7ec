"""Losses of rows of logits on a GPU, and their errors, by a kernel that reads the logits once.

A compiler's softmax over a large vocabulary goes back to memory for each of its steps. Here a row
is looked through once for its largest logit and its sum; where the errors are asked for, a second
look finds the row in the cache, and they take the logits' place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192
"""Logits of a row in the registers of a program at a time."""
_WARPS = 8


def row_losses(logits: Tensor, targets: Tensor, *, errors: bool) -> Tensor:
    """Cross entropy of rows of logits with the targets, float32 [M], nats.

    Args:
        logits: [M, V], rows one after another, on a GPU.
        targets: int64 [M], in [0, V).
        errors: whether the logits are to become softmax(logits) - onehot(targets).
    """
    losses = torch.empty(len(logits), device=logits.device)
    if len(logits):
        with torch.cuda.device(logits.device):
            _kernel[(len(logits),)](
                logits, targets, losses, logits.shape[1], errors, _BLOCK, num_warps=_WARPS
            )
    return losses


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    vocabulary: tl.constexpr,
    errors: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    target = tl.load(targets + row)
    of_target = tl.load(logits + target).to(tl.float32)
    top = -float("inf")
    total = 0.0
    for first in range(0, vocabulary, block):
        place = first + tl.arange(0, block)
        part = tl.load(logits + place, mask=place < vocabulary, other=-float("inf"))
        part = part.to(tl.float32)
        highest = tl.maximum(top, tl.max(part, 0))
        total = total * tl.exp(top - highest) + tl.sum(tl.exp(part - highest), 0)
        top = highest
    tl.store(losses + row, top + tl.log(total) - of_target)
    if errors:
        for first in range(0, vocabulary, block):
            place = first + tl.arange(0, block)
            inside = place < vocabulary
            part = tl.load(logits + place, mask=inside, other=-float("inf")).to(tl.float32)
            share = tl.exp(part - top) / total
            error = tl.where(place == target, share - 1.0, share)
            tl.store(logits + place, error.to(logits.dtype.element_ty), mask=inside)
