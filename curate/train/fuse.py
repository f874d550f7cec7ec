"""Kernels of a GPU fused by PyTorch's compiler, where there is one.

One operation after another, most of a layer's time on a GPU goes into reading and writing what lies
between its matrix products. Compiled, those steps are a few kernels. One layer is compiled, for any
number of tokens, and serves all layers of all models of its shape.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import torch
from torch import nn

from curate.errors import is_of_memory
from curate.read.locate import short_reason

_SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


def fuse_layers(network: nn.Module) -> bool:
    """Have the layers of a Llama network compiled when it is first called; whether they will be."""
    if not can_fuse():
        return False
    decoder: Any = network.get_decoder()  # type: ignore[operator]
    for part in (*decoder.layers, decoder.norm):
        part.compile(dynamic=True)
    return True


@functools.cache
def can_fuse() -> bool:
    """Whether there is a compiler for the GPU, found out by trying.

    `TORCH_COMPILE_DISABLE=1` in the environment, which PyTorch knows too, does without, and so does
    `TORCHDYNAMO_DISABLE=1`.
    """
    if any(os.environ.get(name) == "1" for name in _SWITCHES):
        return False
    try:
        torch.compile(torch.sin, dynamic=True)(torch.ones(64, device="cuda"))
    except Exception as error:  # Triton's, a C compiler's, or that there is none
        if is_of_memory(error):
            raise
        warnings.warn(
            f"PyTorch cannot compile for this GPU, and models take up to twice as long "
            f"({short_reason(error)}). Install Triton and a C compiler (gcc).",
            stacklevel=2,
        )
        return False
    return True
