"""Causal attention in bfloat16 on a CPU, where PyTorch's own kernel takes as long as the layers.

Queries go in blocks. A block needs the keys up to its own end alone, so half the products are never
made, and its scores stay in the processor's cache. Other devices and precisions, and anything but
plain causal attention, go to PyTorch's `scaled_dot_product_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCKED = "curate_blocked"
"""What a model's config calls it."""
_BLOCK = 128
"""Queries of a block."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale Q K' + causal mask) V, block by block.

    Args:
        query, key, value: [B, L, D], a row for each head of each sequence.
        scale: of the products of queries and keys.

    Returns:
        [B, L, D].
    """
    length = query.shape[1]
    query, keys = query * scale, key.transpose(1, 2)
    future = query.new_full((_BLOCK, _BLOCK), float("-inf")).triu(1)
    blocks = []
    for first in range(0, length, _BLOCK):
        end = min(first + _BLOCK, length)
        scores = torch.bmm(query[:, first:end], keys[:, :, :end])
        scores[:, :, first:] += future[: end - first, : end - first]
        blocks.append(torch.bmm(scores.softmax(dim=-1), value[:, :end]))
    return torch.cat(blocks, dim=1)


def _attend(  # noqa: PLR0917 (as transformers calls it)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`causal_attention` as transformers calls it, on [B, H, L, D]; returns [B, L, H, D]."""
    low = torch.is_autocast_enabled("cpu") or query.dtype == torch.bfloat16
    plain = attention_mask is None and key.shape == query.shape
    if scaling is None or query.device.type != "cpu" or not (low and plain):
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )[0]
        return output, None
    batch, heads, length, size = query.shape
    query, key, value = (
        one.to(torch.bfloat16).reshape(-1, length, size) for one in (query, key, value)
    )
    found = causal_attention(query, key, value, scaling)
    return found.view(batch, heads, length, size).transpose(1, 2), None


def register_blocked() -> None:
    """Make it known to transformers under its name.

    No mask is registered for it: to find out that none is needed, one would be looked for in every
    batch's positions, which on a GPU waits for all that is under way.
    """
    AttentionInterface.register(BLOCKED, _attend)
