"""Files that are either whole or absent (temporary name, fsync, rename), and folders that hold.

What the system refuses on the way becomes an `OutputFailed` (`refusal`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curate.errors import InvalidInput
from curate.refusal import writing

StrPath = str | os.PathLike[str]
"""A path as callers of the library may give it."""

SEAL = "sha256"
"""The last entry of a sealed JSON text: the SHA-256 of the same text without it."""
_LAST_BYTES = (b"PAR1", b"ARROW1")
"""Of a Parquet and of an Arrow file."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success fsync it and rename it into place.

    On an exception the temporary file is removed and `path` is left as it was.

    Raises:
        OutputFailed: the system refused.
    """
    temporary = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a flat folder: what is written into the one yielded takes the place of `path`.

    Raises:
        OutputFailed: the system refused.
    """
    temporary = _temporary(path)
    try:
        with writing(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for one in (*temporary.iterdir(), temporary):
                _fsync(one)
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(tree: Mapping[str, Any]) -> str:
    """Plain values as the one JSON text that stands for them: read and written, it is the same."""
    return json.dumps(tree, indent=1) + "\n"


def sealed_json_text(tree: Mapping[str, Any]) -> str:
    """The same with a seal, so that a damaged text is known without any other record of it."""
    plain = json_text({key: value for key, value in tree.items() if key != SEAL})
    digest = hashlib.sha256(plain.encode()).hexdigest()
    end = "\n}\n"
    if not plain.endswith(end):  # there is nothing else
        return json_text({SEAL: digest})
    return f'{plain.removesuffix(end)},\n "{SEAL}": "{digest}"{end}'


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
    for link in _links(folder):
        if not Path(os.path.realpath(link)).is_relative_to(home):
            raise InvalidInput(
                f"{link} is a link that leads out of its folder.",
                "Put what it leads to in its place, or give another folder.",
            )


def _links(folder: Path) -> Iterator[str]:
    """The links below a folder; none is followed, and of other files nothing is asked."""
    waiting = [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def pattern_of(path: Path) -> str:
    """The pattern that stands for this one file where DuckDB reads files, which takes patterns."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path.absolute()))


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a Parquet or Arrow file is there and ends as such files do; one cut off does not."""
    try:
        with path.open("rb") as file:
            file.seek(-max(map(len, _LAST_BYTES)), os.SEEK_END)
            return file.read().endswith(_LAST_BYTES)
    except OSError:  # it is not there, or shorter than that
        return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def local_folder(path: StrPath, flag: str) -> Path:
    """The folder that a path names, `~` resolved; addresses, and what Arrow takes for one, are not.

    Args:
        path: what was given.
        flag: by which flag, for the remedy.

    Raises:
        InvalidInput: it looks like an address, or names the home of nobody.
    """
    folder = Path(path)
    try:
        folder = folder.expanduser()
    except RuntimeError:
        raise InvalidInput(
            f"There is no user of the name in {folder}.", f"Give another folder with {flag}."
        ) from None
    if folder.parts and ":" in folder.parts[0]:
        raise InvalidInput(
            f"The output folder {path} looks like an address, but output goes to a local disk.",
            f"Give a local folder with {flag}; one with a colon in it by its absolute path.",
        )
    return folder


def model_source(name: str) -> str:
    """The name that a user gave of a model, with `~` resolved, which transformers takes for an id.

    Raises:
        InvalidInput: it names the home of nobody.
    """
    return str(local_folder(name, "--model")) if name.startswith("~") else name
