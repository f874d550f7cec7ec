"""What the system refuses to a writer, in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from run_helpers import listing

from curate.errors import DiskFull, OutputFailed, size_text
from curate.files import atomic_folder, atomic_path, write_text
from curate.refusal import writing


@pytest.mark.parametrize(
    ("number", "problem", "remedy"),
    [
        (errno.EDQUOT, "The disk quota for {path} is used up.", "Make room and"),
        (errno.EROFS, "The file system that holds {path} is read-only.", "Make it writable and"),
        (
            errno.EPERM,
            "There is no access to {path} (Operation not permitted).",
            "Give yourself permission to read and write it and",
        ),
        (
            errno.EIO,
            "The disk that holds {path} failed (Input/output error).",
            "Check the disk and",
        ),
        (
            errno.ENOTDIR,
            "{path} cannot be written, since a part of its path is a file.",
            "Remove that file or give another folder, and",
        ),
        (
            errno.ENOTCONN,
            "{path} cannot be written (Transport endpoint is not connected).",
            "Repair that and",
        ),
    ],
)
def test_what_the_system_says(tmp_path: Path, number: int, problem: str, remedy: str) -> None:
    path = tmp_path / "file"
    error = OSError(number, os.strerror(number))
    with pytest.raises(OutputFailed) as caught, atomic_path(path):
        raise error
    assert caught.value.exit_code == 4
    assert caught.value.problem == problem.format(path=path)
    assert caught.value.remedy == f"{remedy} run the same command again to go on."
    assert caught.value.__cause__ is error
    assert listing(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOMEM])
def test_what_says_nothing_of_a_file_passes(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "file"):
        raise OSError(number, "")
    assert caught.value.errno == number


def test_a_file_larger_than_its_file_system_allows(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed) as caught, writing(tmp_path):
        raise OSError(errno.EFBIG, "")
    assert caught.value.problem == f"{tmp_path} is larger than its file system allows."
    assert caught.value.remedy == "Give an output folder on another file system."


@pytest.mark.parametrize("inodes", [0, 5])
def test_no_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inodes: int) -> None:
    disk = list(os.statvfs(tmp_path))
    disk[7] = inodes
    monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result(disk))
    with pytest.raises(OutputFailed) as caught, writing(tmp_path):
        raise OSError(errno.ENOSPC, "")
    assert isinstance(caught.value, DiskFull) == (inodes > 0)
    assert ("(no inodes are free)." in caught.value.problem) == (inodes == 0)


def test_a_folder_takes_the_place_of_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "folder") as temporary:
            write_text(temporary / name, name)
        assert listing(tmp_path) == ["folder", f"folder/{name}"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "folder") as temporary:
        write_text(temporary / "third", "")
        raise KeyboardInterrupt
    assert listing(tmp_path) == ["folder", "folder/second"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"),
        (999_960_000, "1.0 GB"), (5e9, "5.0 GB"), (2.5e15, "2500.0 TB"),
    ],
)  # fmt: skip
def test_sizes_for_people(size: float, text: str) -> None:
    assert size_text(size) == text


def test_how_much_more_is_needed() -> None:
    full = DiskFull("out/state/file", 0).needing("out", "run", 1_234_000_000)
    assert full.problem == (
        "The disk that holds out is full: 0 bytes are free and the run needs about 1.2 GB more."
    )
    assert full.remedy == "Make room and run the same command again to go on."
    assert DiskFull("x", None).needing("out", "evaluation", 2_000_000).problem == (
        "The disk quota for out is used up and the evaluation needs about 2.0 MB more."
    )
