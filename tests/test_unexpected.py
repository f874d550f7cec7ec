"""Failures that nobody foresaw: two sentences, an exit code and a file with the details."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import duckdb
import numpy as np
import pytest
import torch
from click.testing import Result
from run_helpers import (
    PROGRAM,
    Run,
    curate,
    environment,
    run_arguments,
    shared_run,
    write_plain_pool,
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `curate run` with a stage that raises what it is given."""
    inputs = write_plain_pool(tmp_path / "inputs")

    def run(error: BaseException) -> Result:
        def tokens_stage(*arguments: object) -> None:
            raise error

        monkeypatch.setattr("curate.pipeline.order.tokens_stage", tokens_stage)
        return curate(*run_arguments(inputs, tmp_path / "out", method="random"))

    return run


def test_a_failure_that_nobody_foresaw(
    failing: Any, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-environment")
    monkeypatch.setattr(sys, "argv", ["curate", "run", "--pool", "s3://KEY:S3CR/ET@bucket/a"])
    result = failing(ValueError("the sky\nfell"))
    [details] = temporary.iterdir()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: curate met a failure it does not know (ValueError: the sky).\n"
        f"To fix: Report it with the file {details}, which holds the details; "
        "the same command goes on from the last checkpoint, if there is one.\n"
    )
    text = details.read_text()
    assert text.startswith("command: curate run --pool s3://bucket/a\npython 3.")
    for name in ("curate", "torch", "pyarrow", "duckdb"):
        assert f"\n{name} {version(name)}\n" in text
    assert "Traceback (most recent call last):" in text
    assert "in tokens_stage\n" in text
    assert text.endswith("ValueError: the sky\nfell\n")
    assert "S3CR" not in text
    assert "of-the-environment" not in text
    assert stat.S_IMODE(details.stat().st_mode) == 0o600


SECRETS = {
    "https://user:hunter2@host.example/data?token=t0ken": "https://host.example/data",
    "s3://KEY:hunter2/t0ken@bucket/pool": "s3://bucket/pool",
    "abfs://box@account.example/a?sig=t0ken": "abfs://box@account.example/a",
}


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_are_shown_nowhere(failing: Any, temporary: Path, url: str) -> None:
    error = ValueError(f"cannot reach '{url}' today")
    error.__cause__ = RuntimeError(f"<{url}> refused")
    result = failing(error)
    [details] = temporary.iterdir()
    text = details.read_text()
    assert f"(ValueError: cannot reach '{SECRETS[url]}' today)." in result.stderr
    assert f"ValueError: cannot reach '{SECRETS[url]}' today\n" in text
    assert f"RuntimeError: <{SECRETS[url]}> refused\n" in text
    assert not [one for one in ("hunter2", "t0ken") if one in result.stderr + text]


def test_details_that_cannot_be_written(
    failing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    result = failing(ZeroDivisionError())
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: curate met a failure it does not know (ZeroDivisionError).\n"
        "To fix: Report it as it stands; its details could not be written (FileNotFoundError: "
    )
    assert result.stderr.endswith(
        "); the same command goes on from the last checkpoint, if there is one.\n"
    )
    assert "Traceback" not in result.stderr


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


def endless(depth: int = 0) -> int:
    return endless(depth + 1) + 1


def test_any_exception_ends_in_a_sentence(failing: Any, temporary: Path) -> None:
    try:
        endless()
    except RecursionError as error:
        result = failing(error)
    assert "does not know (RecursionError: maximum recursion depth exceeded" in result.stderr
    result = failing(Mute())
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: curate met a failure it does not know (Mute).\n")
    assert len(list(temporary.iterdir())) == 2


def test_the_run_goes_on_after_it(
    failing: Any, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failing(ValueError("once")).exit_code == 1
    monkeypatch.undo()
    result = curate(*run_arguments(tmp_path / "inputs", tmp_path / "out", method="random"))
    assert result.exit_code == 0, result.stderr


def test_other_verbs_have_no_checkpoints(
    tmp_path_factory: pytest.TempPathFactory, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Run = shared_run(tmp_path_factory, method="random")
    monkeypatch.setattr("curate.log.render.render_summary", lambda summary: summary["nothing"])
    result = curate("log", run.out)
    [details] = temporary.iterdir()
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: curate met a failure it does not know (KeyError: 'nothing').\n"
        f"To fix: Report it with the file {details}, which holds the details.\n",
    )


def allocation(allocate: Any) -> Exception:
    """What a library raises that is asked for more than there is."""
    with pytest.raises(Exception) as caught:
        allocate()
    return caught.value


def spill_nowhere() -> None:
    with duckdb.connect(config={"memory_limit": "1MB", "temp_directory": ""}) as database:
        database.execute("CREATE TABLE t AS SELECT random() AS r FROM range(1000000)")


TOO_MUCH = 1 << 60
OUT_OF_MEMORY = {
    "python": (lambda: bytearray(TOO_MUCH), "machine"),
    "numpy": (lambda: np.zeros(TOO_MUCH, np.uint8), "machine"),
    "torch": (lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), "machine"),
    "duckdb": (spill_nowhere, "machine"),
}


@pytest.mark.parametrize("library", OUT_OF_MEMORY)
def test_out_of_memory(failing: Any, temporary: Path, library: str) -> None:
    allocate, where = OUT_OF_MEMORY[library]
    assert_of_memory(failing(allocation(allocate)), where)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "device"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublas"), "device"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "device"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "machine"),
    ],
)
def test_out_of_memory_elsewhere(failing: Any, error: Exception, where: str) -> None:
    assert_of_memory(failing(error), where)


def assert_of_memory(result: Result, where: str) -> None:
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: The {where} ran out of memory.\n"
        "To fix: Close other programs and run the same command again to go on, or start anew in "
        "another folder with a lower compute.microbatch_tokens, a smaller model or fewer "
        "compute.threads.\n",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [(click.UsageError("no"), 2), (click.exceptions.Exit(7), 7), (click.Abort(), 1)],
)
def test_what_is_clicks_own_passes(
    failing: Any, temporary: Path, error: Exception, code: int
) -> None:
    result = failing(error)
    assert result.exit_code == code
    assert "does not know" not in result.stderr
    assert list(temporary.iterdir()) == []


def test_a_closed_pipe_is_quiet(failing: Any, temporary: Path) -> None:
    result = failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (result.exit_code, result.stderr) == (1, "")
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is full")
@pytest.mark.parametrize("more", [["log"], ["verify"], ["verify", "--format", "json"]], ids=str)
def test_a_standard_output_that_is_full(
    tmp_path_factory: pytest.TempPathFactory, more: list[str]
) -> None:
    run: Run = shared_run(tmp_path_factory, method="random")
    program = [sys.executable, "-c", PROGRAM, *more, str(run.out)]
    with Path("/dev/full").open("wb", buffering=0) as full:
        done = subprocess.run(
            program, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        4,
        "Error: Standard output cannot be written (No space left on device).\n"
        "To fix: Make room where it goes and run the same command again.\n",
    )
