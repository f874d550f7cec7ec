"""What the system refuses to a writer, as one `OutputFailed`, whichever library was writing.

Every writer of files goes through `writing`, most of them by `files.atomic_path`. The system says
what is wrong as a number (no room, no permission, a folder that is gone); some libraries keep only
its text, in exceptions of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from curate.errors import CurateError, DiskFull, OutputFailed, size_text

_GO_ON = "run the same command again to go on"
_NOT_FILES = (errno.EPIPE, errno.ENOMEM, errno.ECONNRESET, errno.ECONNREFUSED)
"""Failures of the system that say nothing about a file."""

_SENTENCES = {
    errno.EROFS: (
        "The file system that holds {path} is read-only.",
        f"Make it writable and {_GO_ON}.",
    ),
    errno.EACCES: (
        "There is no access to {named} (Permission denied).",
        f"Give yourself permission to read and write it and {_GO_ON}.",
    ),
    errno.EPERM: (
        "There is no access to {named} (Operation not permitted).",
        f"Give yourself permission to read and write it and {_GO_ON}.",
    ),
    errno.EIO: (
        "The disk that holds {path} failed (Input/output error).",
        f"Check the disk and {_GO_ON}.",
    ),
    errno.ENOTDIR: (
        "{path} cannot be written, since a part of its path is a file.",
        f"Remove that file or give another folder, and {_GO_ON}.",
    ),
}
_SPOKEN = (*_SENTENCES, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.ESTALE)
"""What is looked for in the texts of libraries that do not keep the number."""

_DUCKDB = {
    "max_temp_directory_size": errno.ENOSPC,  # by default it spills no more than is free
    "No files found that match": errno.ENOENT,
}
"""What DuckDB says in words of its own."""

_held: list[tuple[Path, Path]] = []


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, an exception that says that the system refused to write `path` is an OutputFailed.

    Args:
        path: a file, or a folder that files are written into.

    Raises:
        OutputFailed: it refused, or `path` lies in a folder that is `held` and gone.
    """
    try:
        _check_held(path)
        yield
    except Exception as error:
        number = _system_error(error)
        if number is None and not isinstance(error, CurateError) and _removed(path):
            number = errno.ENOENT  # whatever else was made of it
        if number is None or number in _NOT_FILES:
            raise
        raise _failure(path, number, error) from error


@contextlib.contextmanager
def held(folder: Path, marker: Path) -> Iterator[None]:
    """Within, nothing is written below `folder` once `marker`, a file in it, is gone.

    A folder that was removed under a run would else be made again, with the rest of its files.
    """
    entry = (folder.absolute(), marker.absolute())
    _held.append(entry)
    try:
        yield
    finally:
        _held.remove(entry)


def _check_held(path: Path) -> None:
    if folder := _removed(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _removed(path: Path) -> Path | None:
    """The held folder that `path` lies in and that is gone."""
    inside = (one for one in _held if path.absolute().is_relative_to(one[0]))
    return next((folder for folder, marker in inside if not marker.exists()), None)


def _system_error(error: Exception) -> int | None:
    """What the system said, as its number, where the exception of a writer tells it.

    DuckDB and the tokenizers keep only the text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if not isinstance(error, OSError) and type(error) is not Exception and not _of_duckdb(error):
        return None
    text = str(error)
    if _of_duckdb(error):
        for words, number in _DUCKDB.items():
            if words in text:
                return number
    return next((number for number in _SPOKEN if os.strerror(number) in text), None)


def _of_duckdb(error: Exception) -> bool:
    return type(error).__module__ in ("duckdb", "_duckdb")


def _failure(path: Path, number: int, error: Exception) -> OutputFailed:
    if number in (errno.ENOENT, errno.ESTALE):
        return _gone(path, error)
    if number == errno.ENOSPC:
        return _no_space(path)
    if number == errno.EDQUOT:
        return DiskFull(path, None)
    if number == errno.EFBIG:
        return _too_large(path)
    plain = (f"{{path}} cannot be written ({os.strerror(number)}).", f"Repair that and {_GO_ON}.")
    problem, remedy = _SENTENCES.get(number, plain)
    return OutputFailed(problem.format(path=path, named=_named(error) or path), remedy)


def _no_space(path: Path) -> OutputFailed:
    place = next(one for one in (path, *path.absolute().parents) if one.exists())
    disk = os.statvfs(place)
    if disk.f_files and not disk.f_favail:
        return OutputFailed(
            f"The disk that holds {path} can hold no more files (no inodes are free).",
            f"Remove files from it and {_GO_ON}.",
        )
    return DiskFull(path, disk.f_bavail * disk.f_frsize)


def _too_large(path: Path) -> OutputFailed:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return OutputFailed(
            f"{path} is larger than its file system allows.",
            "Give an output folder on another file system.",
        )
    return OutputFailed(
        f"{path} met the limit of {size_text(limit)} that this process has for one file.",
        f"Raise the limit (ulimit -f) and {_GO_ON}.",
    )


def _gone(path: Path, error: Exception) -> OutputFailed:
    if folder := _removed(path):
        return OutputFailed(
            f"The output folder {folder} was removed while curate was working in it.",
            "Run the same command again, which starts anew.",
        )
    lines = str(error).splitlines()
    return OutputFailed(
        f"A file that curate needs is gone ({lines[0][:300] if lines else type(error).__name__}).",
        "Remove the output folder and run the same command again.",
    )


def _named(error: Exception) -> str | None:
    """The file that an exception of the system names."""
    name = error.filename if isinstance(error, OSError) else None
    return name if isinstance(name, str) else None
