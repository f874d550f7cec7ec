"""Interrupted runs: the same command goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import (
    Fault,
    Run,
    assert_same_outcome,
    curate,
    environment,
    listing,
    run_arguments,
    run_tiny,
    shared_run,
    snapshot,
    write_plain_pool,
)

from curate.pipeline.lock import locked

SETTINGS = {
    "blade__passes": 2,
    "blade__sync_every": 3,
    "blade__final": "rescore",
    "blade.lambda": 0.5,
    "train__batch_tokens": 1024,
}
"""Two models besides the proxy, two visits and a rescore: everything a checkpoint can hold."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run."""
    return shared_run(tmp_path_factory, **SETTINGS)


def stages_of(run: Run) -> list[str]:
    return list(json.loads((run.out / "manifest.json").read_text())["stages"])


@pytest.mark.parametrize("parity", [0, 1])
def test_interrupted_at_every_stage_in_turn(
    whole: Run, tmp_path: Path, fault: Fault, parity: int
) -> None:
    """One run that is interrupted at each stage, and started again each time.

    Every other stage is interrupted just before it is recorded, and the others just after. No file
    is left over.
    """
    out = tmp_path / "out"
    stages = stages_of(whole)
    assert stages[0] == "tokenizer"
    assert stages[-1] == "complete"
    assert len([stage for stage in stages if stage.startswith("round-")]) >= 2
    for index, stage in enumerate(stages):
        after = index % 2 == parity
        fault.at(stage, after=after)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(whole.inputs, out, **SETTINGS)
        assert stages_of(Run(whole.inputs, out)) == stages[: index + after]
    fault.at(None, after=True)
    assert_same_outcome(run_tiny(whole.inputs, out, **SETTINGS), whole)
    assert listing(out) == listing(whole.out)


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_random_interrupted_at_every_stage_in_turn(
    whole_random: Run, tmp_path: Path, fault: Fault, after: bool
) -> None:
    out = tmp_path / "out"
    for stage in stages_of(whole_random):
        fault.at(stage, after=after)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(whole_random.inputs, out, method="random")
    fault.at(None, after=after)
    assert_same_outcome(run_tiny(whole_random.inputs, out, method="random"), whole_random)


def test_interrupted_before_the_first_manifest(
    whole_random: Run, tmp_path: Path, fault: Fault
) -> None:
    out = tmp_path / "out"
    fault.at("create", after=False)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(whole_random.inputs, out, method="random")
    assert listing(out) == ["state", "state/lock"]
    fault.at(None, after=False)
    assert_same_outcome(run_tiny(whole_random.inputs, out, method="random"), whole_random)


INSIDE: dict[str, tuple[str, str, int]] = {
    "tokens": ("curate.read.cache", "_FragmentWriter._write_documents", 2),
    "warm-up": ("curate.select.methods.proxy", "Proxy.train", 2),
    "a sync": ("curate.select.methods.pair", "Pair.sync", 2),
    "a round": ("curate.select.methods.blade", "BladeMethod.learn", 2),
    "the rescore": ("curate.pipeline.rounds", "mark_top", 1),
    "the data": ("curate.pipeline.outputs", "write_part", 2),
    "the log": ("curate.pipeline.outputs", "build_log", 1),
    "the card": ("curate.pipeline.outputs", "write_card", 1),
    "the report": ("curate.pipeline.outputs", "write_report", 1),
}


def break_call(monkeypatch: pytest.MonkeyPatch, place: tuple[str, str, int]) -> None:
    """Let the given call of a function do its work and then raise KeyboardInterrupt."""
    import importlib

    module, name, count = place
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real: Callable[..., Any] = getattr(owner, last)
    calls = 0

    def faulty(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*arguments, **named)
        if calls == count:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, last, faulty)


@pytest.mark.parametrize("where", INSIDE, ids=lambda where: where.replace(" ", "-"))
def test_interrupted_inside_a_stage(
    whole: Run, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    """What a stage left half done is made anew; one run goes through all of these in turn."""
    out = tmp_path_factory.getbasetemp() / "interrupted-inside"
    with pytest.MonkeyPatch.context() as patch:
        break_call(patch, INSIDE[where])
        with pytest.raises(KeyboardInterrupt):
            run_tiny(whole.inputs, out, **SETTINGS)
    assert "complete" not in stages_of(Run(whole.inputs, out))
    if where == list(INSIDE)[-1]:
        assert_same_outcome(run_tiny(whole.inputs, out, **SETTINGS), whole)


def test_half_written_data_is_no_finished_run(
    whole_random: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of an interrupted run would be silently incomplete."""
    out = tmp_path / "out"
    break_call(monkeypatch, ("curate.pipeline.outputs", "write_part", 2))
    with pytest.raises(KeyboardInterrupt):
        run_tiny(whole_random.inputs, out, method="random")
    assert list((out / "data").iterdir())
    dest = tmp_path / "dest"
    for verb in (["log", out], ["export", out, "--to", "parquet", "--dest", dest]):
        result = curate(*verb)
        assert result.exit_code == 2, verb
        assert result.stderr.endswith("To fix: Give the output folder of a finished curate run.\n")
    assert not dest.exists()


def test_an_output_folder_inside_the_pool(tmp_path: Path) -> None:
    """The run's own files never become its pool: it can be started again."""
    inputs = write_plain_pool(tmp_path)
    out = inputs / "pool" / "out"
    settings = {"method": "random"}
    result = curate(*run_arguments(inputs, out, **settings))
    if result.exit_code == 2:
        assert not out.exists()
        return
    assert result.exit_code == 0, result.stderr
    again = curate(*run_arguments(inputs, out, **settings))
    assert again.exit_code == 0, again.stderr


# Through the command line.


def test_interrupt_says_how_to_go_on(tmp_path: Path, fault: Fault) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    fault.at("tokens", after=True)
    result = curate(*run_arguments(inputs, out))
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.endswith("\nInterrupted. Run the same command again to go on.\n")
    assert stages_of(Run(inputs, out)) == ["tokenizer", "tokens"]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Nothing is cleaned up when a process is killed, so what it left must not matter."""
    inputs = write_plain_pool(tmp_path)
    whole = run_tiny(inputs, tmp_path / "whole", method="random")
    out = tmp_path / "out"
    program = (
        "import os, sys\n"
        "from curate.cli import main\n"
        "from curate.pipeline import outputs\n"
        "outputs.write_card = lambda path, log: os._exit(9)\n"
        "main()\n"
    )
    arguments = run_arguments(inputs, out, method="random")
    killed = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(), cwd=tmp_path, check=False,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert killed.returncode == 9
    for name in (".manifest.json.tmp", ".selection_log.duckdb.tmp.wal", ".README.md.tmp"):
        (out / name).write_bytes(b"half")
    result = curate(*arguments)
    assert result.exit_code == 0, result.stderr
    assert_same_outcome(Run(inputs, out), whole)
    assert not [name for name in listing(out) if name.startswith(".")]


def test_its_own_config_goes_on_with_a_run(tmp_path: Path, fault: Fault) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    whole = run_tiny(inputs, tmp_path / "whole")
    fault.at("round-0000", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out)
    fault.at(None, after=True)
    result = curate("run", str(out / "config.yaml"))
    assert result.exit_code == 0, result.stderr
    assert_same_outcome(Run(inputs, out), whole)


# One process at a time.


def test_a_folder_in_use_is_refused_and_says_by_whom(whole_random: Run, tmp_path: Path) -> None:
    inputs, out = whole_random.inputs, tmp_path / "out"
    with locked(out):
        before = snapshot(out)
        result = curate(*run_arguments(inputs, out, method="random"))
        assert snapshot(out) == before
    assert result.exit_code == 2
    assert re.fullmatch(
        f"Error: The output folder {re.escape(str(out))} is in use by process {os.getpid()} on "
        r"\S+ since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\.\n"
        "To fix: Wait until it is done or stop it, or give another folder with --out.\n",
        result.stderr,
    )
    # Whoever held it is gone, though the file still names it.
    assert "process" in (out / "state" / "lock").read_text()
    assert_same_outcome(run_tiny(inputs, out, method="random"), whole_random)


def test_a_finished_run_is_reported_while_it_is_in_use(whole_random: Run, tmp_path: Path) -> None:
    run = whole_random.copy(tmp_path / "out")
    with locked(run.out):
        result = curate(*run_arguments(run.inputs, run.out, method="random"))
    assert result.exit_code == 0, result.stderr
