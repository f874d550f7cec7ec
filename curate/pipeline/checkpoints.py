"""A method's state on disk: whole or absent, and from a GPU written beside the work that follows.

Of a large model it takes longer to write the state than to copy it into this machine's memory. So
the state is copied, and a thread writes the copy while the method goes on. What is to be recorded
of a checkpoint is recorded once its file is whole; until then a run that is killed goes on from the
one before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from curate.clock import CHECKPOINT, doing
from curate.files import atomic_path

_SHARE_OF_MEMORY = 0.25
"""Of what this machine has to spare; a larger state is not copied, and its writing waited for."""
_MEMORY, _CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class CheckpointWriter:
    """Writes one checkpoint at a time, and does what depends on it when it is there.

    Within `with`; at the end, however it comes, what is under way is finished.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: tuple[Future[None], Callable[[], None]] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            with contextlib.suppress(Exception):  # what came first is what is told
                self.finish()

    @doing(CHECKPOINT)
    def write(self, state: Mapping[str, Any], path: Path, then: Callable[[], None]) -> None:
        """Write a state to `path`, atomically, after what is under way.

        Args:
            state: tensors and plain values; it may change when this returns.
            path: where to.
            then: called by this thread when the file is whole: now, or in a later call.

        Raises:
            OutputFailed: the system refused, this file or the one before.
        """
        self.finish()
        copied = _copy_here(state)
        if copied is None:
            save_state(state, path)
            then()
        else:
            self._under_way = self._thread.submit(save_state, copied, path), then

    def look(self) -> None:
        """Do what depends on the file under way if it is whole; wait for nothing.

        Raises:
            OutputFailed: it could not be written.
        """
        if self._under_way is not None and self._under_way[0].done():
            self.finish()

    @doing(CHECKPOINT)
    def finish(self) -> None:
        """Wait for the file under way, and do what depends on it.

        Raises:
            OutputFailed: it could not be written.
        """
        if self._under_way is None:
            return
        written, then = self._under_way
        error = written.exception()  # a signal may end this wait, and __exit__ begins it anew
        self._under_way = None
        if error is not None:
            raise error
        then()


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a method's state to `path`, atomically, to be read with `weights_only`.

    Through a file of Python's, since PyTorch's own errors do not say what the system said.

    Raises:
        OutputFailed: the system refused.
    """
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:  # PyTorch closes what it was writing, which fails anew
            refused = error.__context__
            if isinstance(refused, OSError):
                raise OSError(refused.errno, refused.strerror) from error
            raise


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; tensors and plain values, and nothing else is read."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _copy_here(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """A copy in this machine's memory; None if nothing lies elsewhere, or it is too large.

    Tensors that share their memory go on doing so.
    """
    tensors = {_place(one): one for one in _tensors(state)}.values()
    size = sum(one.numel() * one.element_size() for one in tensors)
    if not any(map(_is_elsewhere, tensors)) or size > _SHARE_OF_MEMORY * _spare_memory():
        return None
    copies = {_place(one): one.detach().to("cpu", copy=True) for one in tensors}
    return {key: _with_copies(value, copies) for key, value in state.items()}


def _with_copies(value: Any, copies: Mapping[tuple[object, ...], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return copies[_place(value)]
    if isinstance(value, Mapping):
        return {key: _with_copies(one, copies) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_copies(one, copies) for one in value)
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _is_elsewhere(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "cpu"


def _spare_memory() -> int:
    """Bytes that this process could still take; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = _MEMORY.read_text().splitlines()
        free = {name: text for name, _, text in (one.partition(":") for one in lines)}
        spare = 1024 * int(free["MemAvailable"].split()[0])
        with contextlib.suppress(OSError, ValueError):  # no group, or "max": no limit
            limit, used = (
                int((_CONTROL_GROUP / name).read_text())
                for name in ("memory.max", "memory.current")
            )
            spare = min(spare, limit - used)
        return spare
    return 0
