"""Causal attention in bfloat16: in blocks on a CPU, within packed windows on a GPU.

On a CPU PyTorch's own kernel takes as long as the layers. There queries go in blocks. A block needs
the keys up to its own end alone, so half the products are never made, and its scores stay in the
processor's cache. A GPU gets windows packed one after another, and a kernel that keeps each to
itself. Everything else goes to PyTorch's `scaled_dot_product_attention`.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCKED = "curate_blocked"
"""What a model's config calls it."""
_BLOCK = 128
"""Queries of a block."""
_ROWS = 16
"""Rows at once: however many there are, products and their results are of the same few sizes."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale Q K' + causal mask) V, block by block.

    Args:
        query, key, value: [B, L, D], a row for each head of each sequence.
        scale: of the products of queries and keys.

    Returns:
        [B, L, D].
    """
    parts = [slice(first, first + _ROWS) for first in range(0, len(query), _ROWS)]
    return torch.cat([_attend_in_blocks(query[p], key[p], value[p], scale) for p in parts])


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
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


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, longest: int, scale: float
) -> Tensor:
    """softmax(scale Q K' + causal mask) V within each of several windows.

    Args:
        query, key, value: [L, H, D], the windows one after another; in bfloat16 on a GPU.
        starts: where each of R windows begins, and the end, int32 [R + 1].
        longest: no window is longer.
        scale: of the products of queries and keys.

    Returns:
        [L, H, D].
    """
    if query.device.type == "cuda":
        output: Any = varlen_attn(
            query, key, value, starts, starts, longest, longest, scale=scale, window_size=(-1, 0)
        )
        return cast(Tensor, output)
    return attention_by_window(query, key, value, starts, scale=scale)


def attention_by_window(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, scale: float
) -> Tensor:
    """As `packed_attention`, one window after another, on any device and in any precision."""
    found = [
        nn.functional.scaled_dot_product_attention(
            query[first:end].transpose(0, 1),
            key[first:end].transpose(0, 1),
            value[first:end].transpose(0, 1),
            is_causal=True,
            scale=scale,
        ).transpose(0, 1)
        for first, end in itertools.pairwise(starts.tolist())
    ]
    return torch.cat(found)


def _attend(  # noqa: PLR0917 (as transformers calls it)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention that there is for a case, on [B, H, L, D]; returns [B, L, H, D]."""
    starts = others.get("cu_seq_lens_q")
    if starts is not None and scaling is not None:
        query, key, value = (one.transpose(1, 2)[0].to(value.dtype) for one in (query, key, value))
        attention, longest = others["packed_attention"], others["max_length_q"]
        packed = attention(query, key, value, starts, longest=longest, scale=scaling)
        return packed[None], None
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
