"""Where the models run: device, precision and threads, resolved once at the top of a run."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from curate.config.schema import ComputeConfig
from curate.errors import InvalidInput
from curate.read.locate import short_reason

_CPU_TOKENS = 4096
"""In one forward pass that scores, by default."""
_GPU_TOKENS = 65_536
"""At most: a GPU that is given less waits to be asked for the next layer's work."""
_ACTIVATION_BYTES = {"fused": 32, "plain": 96}
"""Kept for the gradient of a token, layer and hidden unit (benchmarks/LOG.md)."""
_SHARE_FOR_ACTIVATIONS = 0.4
"""Of a GPU's memory. The rest is for weights and for logits."""
_COPIES_OF_WEIGHTS, _SHARE_OF_WHAT_IS_LEFT = 10, 0.8
"""In a sync: the proxy, its average and two moments; the same of the model that is moved and its
gradient; the pair before. Large models leave less for activations than the share above."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of mallopt(3)."""
_MAPPED_FROM = (1 << 25, 1 << 30)
"""Bytes of a buffer that has pages of its own. Older versions of glibc take the first at most."""
_HELD_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 384, "LRU_CACHE_CAPACITY": 8}
"""Of matrix products, by oneDNN and by PyTorch: as few as still take no time."""
_GROWTH_BETWEEN_RETURNS = 0.35
"""Of the process, since freed memory was last given back (benchmarks/LOG.md)."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Resolved device and precision.

    Attributes:
        device: where parameters and activations live.
        dtype: precision of matrix products; parameters and optimizer state stay float32.
        microbatch_tokens: padded tokens in one forward pass that scores; half as many where
            activations are kept for the gradient. None for as many of each as suit a model.
    """

    device: torch.device
    dtype: torch.dtype
    microbatch_tokens: int | None

    @property
    def names(self) -> dict[str, str]:
        """Device and precision as the manifest and the log have them."""
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}

    def tokens_for(
        self, width: int, kind: Literal["fused", "plain"], weight_bytes: int
    ) -> tuple[int, int]:
        """Padded tokens in one forward pass that scores, and in one that is trained on.

        Args:
            width: hidden units of all layers of the model together.
            kind: how its layers are computed.
            weight_bytes: of the model.
        """
        if self.microbatch_tokens is not None or self.device.type == "cpu":
            scored = self.microbatch_tokens or _CPU_TOKENS
            return scored, max(1, scored // 2)
        fitting = self._fitting_tokens(width, kind, weight_bytes)
        kept = min(_GPU_TOKENS, 1 << max(9, int(math.log2(fitting))))
        return min(_GPU_TOKENS, 2 * kept), kept

    def held_tokens(
        self, width: int, kind: Literal["fused", "plain"], weight_bytes: int
    ) -> int | None:
        """Tokens whose activations may be held while they are chosen from; None for any number.

        Args:
            width: hidden units of all layers of the model together.
            kind: how its layers are computed.
            weight_bytes: of the model.
        """
        if self.microbatch_tokens is not None:
            return max(1, self.microbatch_tokens // 2)
        if self.device.type == "cpu":
            return None
        return self._fitting_tokens(width, kind, weight_bytes)

    def _fitting_tokens(self, width: int, kind: str, weight_bytes: int) -> int:
        """Tokens whose activations fit into a GPU beside the models; 1 where none would."""
        memory = torch.cuda.get_device_properties(self.device).total_memory
        left = memory - _COPIES_OF_WEIGHTS * weight_bytes
        room = min(_SHARE_FOR_ACTIVATIONS * memory, _SHARE_OF_WHAT_IS_LEFT * left)
        return max(1, int(room / (_ACTIVATION_BYTES[kind] * width)))

    def send(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        """An array on the device; nothing waits for its copy, nor for what is under way there."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """A tensor's copy on the CPU, begun now; what is returned waits for it, and no longer."""
        if self.device.type == "cpu":
            return lambda: tensor
        copy = tensor.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def wait() -> torch.Tensor:
            copied.synchronize()
            return copy

        return wait

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in `dtype`."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)


def resolve_compute(config: ComputeConfig) -> Compute:
    """Choose device and precision.

    Raises:
        InvalidInput: the device is unknown or not on this machine.
    """
    device = _resolve_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what asks about "the" GPU means this one
    if config.dtype == "auto":
        dtype = torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    else:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    return Compute(device, dtype, config.microbatch_tokens)


def tune_memory() -> None:
    """Let this process hold freed buffers, and let go of kernels.

    A training step on the CPU frees and takes tensors of many megabytes again and again. By default
    glibc maps and unmaps each, and its pages are cleared by the kernel every time: a fifth to a
    third of the time of a small model. So it is to keep them. A no-op elsewhere. Arrow is to take
    its buffers from there too, since what a heap of its own keeps cannot be given back.

    What other threads free is kept for good from then on, so text should be tokenized before.

    oneDNN holds the last 1,024 matrix products' kernels, a quarter of a megabyte each, which adds
    up as shapes come by, and PyTorch holds as many beside it. Both are told before their first
    product, or never.
    """
    pa.default_memory_pool().release_unused()
    pa.set_memory_pool(pa.system_memory_pool())
    for name, held in _HELD_KERNELS.items():
        os.environ.setdefault(name, str(held))
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for least in _MAPPED_FROM:
            mallopt(_M_MMAP_THRESHOLD, least)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class FreedMemory:
    """Gives back to the system what `tune_memory` kept: the holes between live buffers.

    Holes grow while buffers of many sizes come and go; what is in use does not. A no-op where the C
    library has no malloc_trim, or the system no /proc.
    """

    def __init__(self) -> None:
        self._left = _resident_pages()

    def when_grown(self) -> None:
        """Give back what there is if the process has grown: pages are cleared when used anew."""
        if _resident_pages() > (1 + _GROWTH_BETWEEN_RETURNS) * self._left:
            self.give_back()

    def give_back(self) -> None:
        """Give back what there is now."""
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._left = _resident_pages()


def _resident_pages() -> int:
    """Memory of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1])
    return 0


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        device = torch.device("cuda")
        if reason := _failure_on(device):
            said = f"The GPU cannot be used ({reason}), so models run on the CPU."
            warnings.warn(said, stacklevel=2)
            return torch.device("cpu")
        return device
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(
            f"compute.device must be auto, cpu, cuda or cuda:N, but is {name}.",
            "Set --device to one of them.",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"There is no device {name} on this machine.", "Use --device cpu or --device auto."
        )
    if device.type == "cuda" and (reason := _failure_on(device)):
        raise InvalidInput(
            f"The device {name} cannot be used ({reason}).", "Use --device cpu, or another device."
        )
    return device


def _failure_on(device: torch.device) -> str | None:
    """Why nothing can be computed on a GPU: a build of PyTorch without its kernels, or no room."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # the second where PyTorch has no GPUs at all
        return short_reason(error)
    return None


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
