"""FlashAttention 4 for packed windows, where its package is installed (the extra `gpu`).

PyTorch's own kernel for packed windows is FlashAttention 2, which uses little of what Hopper and
later GPUs have for attention and takes a quarter of a pass over a model of 125 M parameters. The
newer kernels are called as one operation, so that compiled layers stay whole around them.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from curate.read.locate import short_reason
from curate.train.attention import attention_by_window

_PACKAGE, _MODULE = "flash-attn-4", "flash_attn.cute.interface"
_CAPABILITIES = (9, 10)
"""Major compute capabilities that the package's kernels are made for: Hopper and Blackwell."""
_TRIAL_LENGTHS, _TRIAL_HEADS, _TRIAL_SIZE = (1, 300, 64), 2, 64
"""Longer than a kernel's tile, so that what is compiled for the trial serves other lengths."""
_TOLERANCE = 0.02
"""Of a result's norm: what bfloat16 costs is some 0.004."""


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, longest: int, scale: float
) -> Tensor:
    """softmax(scale Q K' + causal mask) V within each of several windows.

    The arguments are those of `attention.packed_attention`; `has_flash_attention` says whether it
    can be called.
    """
    output: Tensor = _forward(query, key, value, starts, longest, scale)[0]
    return output


@functools.cache
def has_flash_attention(device: torch.device) -> bool:
    """Whether FlashAttention 4 is at hand for a GPU, found out by trying both its directions."""
    try:
        installed = version(_PACKAGE)
    except PackageNotFoundError:
        return False
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in _CAPABILITIES:
        return False
    try:
        _try(flash_attention, device)
    except Exception as error:  # of somebody else's compiler and libraries
        warnings.warn(
            f"{_PACKAGE} {installed} does not work here, and attention takes up to twice as long "
            f"({short_reason(error)}). Run: pip install 'curate[gpu]', or remove {_PACKAGE}.",
            stacklevel=2,
        )
        return False
    return True


@torch.enable_grad()
def _try(attention: Callable[..., Tensor], device: torch.device) -> None:
    """Compare results and gradients with those in float32, window by window.

    Raises:
        ValueError: they are other ones.
    """
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.randn(
        4, sum(_TRIAL_LENGTHS), _TRIAL_HEADS, _TRIAL_SIZE, generator=generator, device=device
    )
    bounds = [0, *itertools.accumulate(_TRIAL_LENGTHS)]
    starts = torch.tensor(bounds, dtype=torch.int32, device=device)
    tried = functools.partial(attention, starts=starts, longest=max(_TRIAL_LENGTHS), scale=0.2)
    exact = functools.partial(attention_by_window, starts=starts, scale=0.2)
    found = _with_gradients(tried, drawn.to(torch.bfloat16))
    expected = _with_gradients(exact, drawn)
    for one, other in zip(found, expected, strict=True):
        if not (one.float() - other).norm() <= _TOLERANCE * other.norm():
            raise ValueError("its results are wrong")


def _with_gradients(attention: Callable[..., Tensor], drawn: Tensor) -> list[Tensor]:
    """What attention makes of the first three of four tensors, and its gradient for the last."""
    factors = [one.clone().requires_grad_() for one in drawn[:3]]
    output = attention(*factors)
    return [output.detach(), *torch.autograd.grad(output, factors, drawn[3])]


@torch.library.custom_op("curate::flash_attention", mutates_args=())
def _forward(  # noqa: PLR0917 (operators take them so)
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention [L, H, D], and the logarithms of its softmax's sums, float32 [H, L]."""
    with torch.cuda.device(query.device):
        output, sums, *_ = _kernels()._flash_attn_fwd(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            cu_seqlens_q=starts,
            cu_seqlens_k=starts,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scale,
            causal=True,
            return_lse=True,
        )
    return output, sums


@_forward.register_fake
def _(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    length, heads = query.shape[:2]
    return _like(query), query.new_empty(heads, length, dtype=torch.float32)


@torch.library.custom_op("curate::flash_attention_backward", mutates_args=())
def _backward(  # noqa: PLR0917
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each [L, H, D]."""
    with torch.cuda.device(query.device):
        gradients: tuple[Tensor, Tensor, Tensor] = _kernels()._flash_attn_bwd(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            output,
            gradient.contiguous(),
            sums,
            softmax_scale=scale,
            causal=True,
            cu_seqlens_q=starts,
            cu_seqlens_k=starts,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
        )
    return gradients


@_backward.register_fake
def _(gradient: Tensor, *factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = factors[:3]
    return _like(query), _like(key), _like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, starts, output, sums = ctx.saved_tensors
    gradients = _backward(gradient, query, key, value, output, sums, starts, ctx.longest, ctx.scale)
    return *gradients, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _like(one: Tensor) -> Tensor:
    return torch.empty_like(one, memory_format=torch.contiguous_format)


@functools.cache
def _kernels() -> Any:
    warnings.filterwarnings("ignore", message="Argument aux_data", module="cutlass")
    return importlib.import_module(_MODULE)
