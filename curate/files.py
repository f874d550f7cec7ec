"""Files that are either whole or absent (temporary name, fsync, rename), and folders that hold."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from curate.errors import InvalidInput


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success fsync it and rename it into place.

    On an exception the temporary file is removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_folder(source: Path, place: Path) -> None:
    """Copy the files of a flat folder, each atomically."""
    for file in sorted(source.iterdir()):
        with atomic_path(place / file.name) as temporary:
            shutil.copyfile(file, temporary)


def check_contained(folder: Path) -> None:
    """Make sure that what is read, written or removed below a folder lies in it.

    A run's folder may come from somebody else; a link in it could make a later verb empty or
    overwrite a folder of the user's. The folder itself may be a link.

    Raises:
        InvalidInput: a link in it leads out of it.
    """
    home = os.path.realpath(folder)
    for path in folder.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            raise InvalidInput(
                f"{path} is a link that leads out of its folder.",
                "Put what it leads to in its place, or give another folder.",
            )


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
