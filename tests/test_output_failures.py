"""Output that cannot be written: one sentence, exit code 4, and the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from run_helpers import (
    Run,
    assert_same_outcome,
    curate,
    environment,
    listing,
    run_arguments,
    run_tiny,
    shared_run,
    snapshot,
)

from curate.errors import DiskFull, OutputFailed, size_text
from curate.evaluation.store import open_store, write_store
from curate.files import atomic_path
from curate.pipeline.checkpoints import save_state
from curate.read.documents import Documents
from curate.read.tokenizer import train_tokenizer
from curate.refusal import writing


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run."""
    return shared_run(tmp_path_factory, method="random")


@pytest.fixture(scope="session")
def whole_blade(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


def left_over(folder: Path) -> list[str]:
    """Temporary files and folders, DuckDB's among them."""
    return [
        name
        for name in listing(folder)
        if name.rpartition("/")[2].startswith(".") or name.endswith((".tmp", ".wal", ".spill"))
    ]


# A full disk, at every writer.


class FullDisk:
    """Refuses the fsync of every file once, by its name and the stages done, with ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path, *, by_stage: bool) -> None:
        self.refused: list[str] = []
        self.on = True
        fsync = os.fsync

        def refuse(descriptor: int) -> None:
            name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            manifest = out / "manifest.json"
            done = manifest.read_text().count('\n  "') if by_stage and manifest.exists() else 0
            if name.endswith(".tmp") and self.on and (key := f"{name} {done}") not in self.refused:
                self.refused.append(key)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)

    def names(self) -> set[str]:
        return {key.partition(" ")[0].rpartition("/")[2] for key in self.refused}


def until_it_fits(out: Path, run: Callable[[], object]) -> list[DiskFull]:
    """Run again and again until the disk is not full; returns what was raised."""
    raised: list[DiskFull] = []
    while True:
        try:
            run()
        except DiskFull as full:
            assert isinstance(full.__cause__, OSError)
            assert left_over(out) == []
            raised.append(full)
        else:
            return raised


ALWAYS = {
    ".manifest.json.tmp", ".times.json.tmp", ".tokenizer.tmp", ".tokenizer.json.tmp",
    ".shard-00000-00000.arrow.tmp", ".shard-00000-00000.parquet.tmp", ".config.yaml.tmp",
    ".warm-up.pt.tmp", ".warm-up.0000.training.parquet.tmp", ".scoring.0000.decisions.parquet.tmp",
    ".selection.parquet.tmp", ".part-00000.parquet.tmp", ".selection_log.duckdb.tmp",
    ".README.md.tmp", ".report.html.tmp",
}  # fmt: skip


def test_a_full_disk_at_every_writer_in_turn(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, refused at every file of every stage in turn, and started again each time."""
    out = tmp_path / "out"
    disk = FullDisk(monkeypatch, out, by_stage=True)
    raised = until_it_fits(out, lambda: run_tiny(whole.inputs, out, method="random"))
    assert len(raised) == len(disk.refused) > 30
    assert disk.names() >= ALWAYS
    for full in raised:
        assert re.fullmatch(
            f"The disk that holds {re.escape(str(out))} is full: [0-9.]+ [kMGT]?B(ytes)? are free "
            r"and the run needs about \d\.\d MB more\.",
            full.problem,
        )
    assert_same_outcome(Run(whole.inputs, out), whole)


def test_a_full_disk_at_every_writer_of_an_evaluation(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.evaluation import EvaluateSettings, evaluate

    settings = EvaluateSettings(
        out=whole.copy(tmp_path / "out").out, test=str(whole.inputs / "target.parquet"), seeds=2,
        tokens=256, model="tiny", device="cpu", multiples=(1.0,), window=32, batch_tokens=128,
    )  # fmt: skip
    shutil.rmtree(settings.out / "state" / "tokens")
    disk = FullDisk(monkeypatch, settings.out, by_stage=False)
    raised = until_it_fits(settings.out, lambda: evaluate(settings, sys.stderr))
    assert len(raised) == len(disk.refused)
    assert disk.names() >= {
        ".shard-00000-00000.arrow.tmp", ".cache.json.tmp", ".store.json.tmp", ".sample.tmp",
        ".selection_log.duckdb.tmp", ".evaluation.json.tmp", ".manifest.json.tmp",
    }  # fmt: skip
    assert " and the evaluation needs about " in raised[0].problem
    again = evaluate(settings, sys.stderr)
    assert len(again.report["results"]) == 6


# A real limit, on the size of files.


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Within, no file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def met_limit(path: Path, size: int) -> str:
    return f"{path} met the limit of {size_text(size)} that this process has for one file."


def test_a_limit_on_the_size_of_files(whole: Run, tmp_path: Path) -> None:
    """Each limit lets the run get a little further."""
    out = tmp_path / "out"
    limits = {
        60: out / "manifest.json",
        1000: out / "manifest.json",
        4000: out / "state" / "tokenizer",
        1_000_000: out / "selection_log.duckdb",
    }
    for size, path in limits.items():
        with file_limit(size), pytest.raises(OutputFailed) as caught:
            run_tiny(whole.inputs, out, method="random")
        assert caught.value.problem == met_limit(path, size)
        assert caught.value.remedy == (
            "Raise the limit (ulimit -f) and run the same command again to go on."
        )
        assert caught.value.__cause__ is not None
        assert left_over(out) == []
    assert_same_outcome(run_tiny(whole.inputs, out, method="random"), whole)


def test_a_limit_below_a_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = shared_run(tmp_path_factory, method="perplexity")
    out = tmp_path_factory.mktemp("limit") / "out"
    with file_limit(2_000_000), pytest.raises(OutputFailed) as caught:
        run_tiny(whole.inputs, out, method="perplexity")
    path = out / "state" / "checkpoints" / "warm-up.pt"
    assert caught.value.problem == met_limit(path, 2_000_000)
    assert left_over(out) == []
    assert_same_outcome(run_tiny(whole.inputs, out, method="perplexity"), whole)


def test_the_command_line_says_so_and_goes_on(whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = run_arguments(whole.inputs, out, method="random")
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from curate.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(), cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.endswith(
        f"Error: {met_limit(out / 'manifest.json', 1000)}\n"
        "To fix: Raise the limit (ulimit -f) and run the same command again to go on.\n"
    )
    result = curate(*arguments)
    assert result.exit_code == 0, result.stderr
    assert_same_outcome(Run(whole.inputs, out), whole)


@pytest.mark.parametrize("form", ["hf", "parquet", "jsonl"])
def test_an_export_that_does_not_fit(whole: Run, tmp_path: Path, form: str) -> None:
    dest = tmp_path / "new" / "dest"
    with file_limit(1000):
        result = curate("export", whole.out, "--to", form, "--dest", dest)
    assert result.exit_code == 4
    assert " met the limit of 1.0 kB that this process has for one file.\n" in result.stderr
    assert listing(tmp_path) == ["new"]
    assert curate("export", whole.out, "--to", form, "--dest", dest).exit_code == 0


def documents() -> Documents:
    tokens = np.arange(3000, dtype=np.uint16)
    return Documents(np.zeros(1, np.int64), np.ones(1, np.int64), np.array([0, 3000]), tokens)


def fill(path: Path) -> None:
    write_store(path, [(documents(), np.ones(1))], {})


def train(path: Path) -> None:
    train_tokenizer(iter(["a b c"] * 20 + [str(i) for i in range(2000)]), 600).save(path)


def checkpoint(path: Path) -> None:
    save_state({"weights": torch.zeros(3000)}, path)


def database(path: Path) -> None:
    with atomic_path(path) as temporary, duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT random() FROM range(9999)) TO '{temporary}'")


@pytest.mark.parametrize("write", [fill, train, checkpoint, database])
def test_libraries_that_hide_what_the_system_said(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    """NumPy's `tofile` says nothing at all, the others say it in exceptions of their own."""
    path = tmp_path / "file"
    with file_limit(5000), pytest.raises(OutputFailed) as caught:
        write(path)
    assert caught.value.problem == met_limit(path, 5000)
    assert listing(tmp_path) == []
    write(path)
    if write is fill:
        assert open_store(path).documents.num_tokens == 3000


def test_a_spill_that_does_not_fit(tmp_path: Path) -> None:
    """As DuckDB 1.4 says it on a disk that is full."""
    error = duckdb.OutOfMemoryException(
        "Out of Memory Error: failed to offload data block of size 256.0 KiB (832.0 KiB/921.5 KiB "
        "used).\nThis limit was set by the 'max_temp_directory_size' setting."
    )
    with pytest.raises(DiskFull) as caught, writing(tmp_path):
        raise error
    assert caught.value.__cause__ is error


# A real disk, which only Linux lets a user make.

SMALL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
from run_helpers import run_tiny
from curate.errors import DiskFull

disk, inputs, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[1]) / "out"
for size in ("4k", "24k", "60k", "200k", "1200k"):
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    try:
        run_tiny(inputs, out, method="random")
    except DiskFull as full:
        print(full.problem)
    assert not [path for path in out.rglob(".*")]
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
try:
    run_tiny(inputs, out, method="random")
except Exception as error:
    print(error)
subprocess.run(["mount", "-o", "remount,rw,size=64m", disk], check=True)
run_tiny(inputs, out, method="random")
shutil.copytree(out, sys.argv[3])
"""


def test_a_disk_that_grows(whole: Run, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=4k tmpfs "$1" && exec "$0" -c "$2" "$1" "$3" "$4"'
    alone = ["unshare", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*alone, "mount", "-t", "tmpfs", "tmpfs", tmp_path / "disk"],
            check=False,
            capture_output=True,
        ).returncode
    ):
        pytest.skip("no disk can be mounted")
    tests = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parent)])
    done = subprocess.run(
        [*alone, "sh", "-c", script, sys.executable, tmp_path / "disk", SMALL_DISK, whole.inputs,
         tmp_path / "copy"],
        env=environment(PYTHONPATH=tests), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    out = re.escape(str(tmp_path / "disk" / "out"))
    for line in said[:-1]:
        assert re.fullmatch(
            rf"The disk that holds {out} is full: \S+ \w+ are free and the run needs about "
            r"\d\.\d MB more\.",
            line,
        )
    assert len(said) >= 5
    assert re.fullmatch(f"The file system that holds {out}.* is read-only. Make it .*", said[-1])
    assert_same_outcome(Run(whole.inputs, tmp_path / "copy"), whole)


# A folder that is gone, or may not be written.


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("curate.pipeline.order", "tokenizer_stage"),
        ("curate.pipeline.order", "tokens_stage"),
        ("curate.pipeline.outputs", "write_part"),
        ("curate.pipeline.outputs", "write_card"),
    ],
)
def test_an_output_folder_that_is_removed(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    """It is not made again, with the rest of its files; the same command starts anew."""
    import importlib

    out = tmp_path / "out"
    real = getattr(importlib.import_module(module), name)

    def removing(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        shutil.rmtree(out)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", removing)
        result = curate(*run_arguments(whole.inputs, out, method="random"))
    assert result.exit_code == 4
    assert result.stderr.endswith(
        f"Error: The output folder {out} was removed while curate was working in it.\n"
        "To fix: Run the same command again, which starts anew.\n"
    )
    assert not out.exists()
    if name == "write_card":
        assert_same_outcome(run_tiny(whole.inputs, out, method="random"), whole)


def test_a_file_of_the_run_that_is_gone(whole: Run, tmp_path: Path) -> None:
    run = whole.copy(tmp_path / "out")
    text = (run.out / "manifest.json").read_text()
    (run.out / "manifest.json").write_text(
        re.sub(
            r'"data": {},\s*"log": {},\s*"complete": {.*?}',
            '"x": {}',
            text,
            flags=re.S,
        )
    )
    (run.out / "state" / "selection.parquet").unlink()
    result = curate(*run_arguments(run.inputs, run.out, method="random"))
    assert result.exit_code == 4, result.stderr
    assert "Error: A file that curate needs is gone (" in result.stderr
    assert result.stderr.endswith(
        "To fix: Remove the output folder and run the same command again.\n"
    )


def test_an_output_below_a_file(whole: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = curate(*run_arguments(whole.inputs, tmp_path / "file" / "out", method="random"))
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: The output {tmp_path / 'file'} is a file.\n"
        "To fix: Give another folder with --out.\n",
    )


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("permissions do not bind this user")
        yield
    finally:
        folder.chmod(0o700)


def test_an_output_whose_parent_may_not_be_written(whole: Run, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    out = parent / "out"
    with read_only(parent):
        result = curate(*run_arguments(whole.inputs, out, method="random"))
    assert (result.exit_code, result.stderr) == (4, no_access(out))
    assert listing(parent) == []


def test_an_output_that_may_not_be_written(whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with read_only(out):
        result = curate(*run_arguments(whole.inputs, out, method="random"))
    assert (result.exit_code, result.stderr) == (4, no_access(out / "state"))
    run = whole.copy(tmp_path / "finished")
    before = snapshot(run.out)
    with read_only(run.out), read_only(run.out / "state"):
        result = curate(*run_arguments(run.inputs, run.out, method="random"))
    assert result.exit_code == 0, "a finished run is only reported"
    assert snapshot(run.out) == before


def no_access(path: Path) -> str:
    return (
        f"Error: There is no access to {path} (Permission denied).\n"
        "To fix: Give yourself permission to read and write it and run the same command again to "
        "go on.\n"
    )
