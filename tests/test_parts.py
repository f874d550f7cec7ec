"""Stopped in the middle of a stage: the run goes on from there, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from run_helpers import (
    PROGRAM,
    Run,
    assert_same_outcome,
    curate,
    data_digests,
    environment,
    listing,
    run_arguments,
    run_tiny,
    shared_run,
    write_plain_pool,
)
from test_resume import SETTINGS, break_call

from curate.errors import DiskFull
from curate.pipeline import checkpoints
from curate.pipeline.checkpoints import save_state
from curate.pipeline.folder import RunFolder
from curate.stop import Interrupted, Stop


class StopAt(Stop):
    """Asks to stop at the given time that the run looks."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self._left = look

    @property
    def asked(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self._signal = signal.SIGTERM
        return super().asked


def stop_until_done(inputs: Path, out: Path, look: int, **settings: Any) -> list[str]:
    """Stop a run at every `look`-th look and start it again; what it was stopped in."""
    stopped: list[str] = []
    while True:
        try:
            run_tiny(inputs, out, StopAt(look), **settings)
        except Interrupted as error:
            assert error.signal == signal.SIGTERM
            manifest = json.loads((out / "manifest.json").read_text())
            stopped.append(manifest.get("partial", {}).get("stage", "between"))
            left = [name for name in listing(out) if name.rpartition("/")[2].startswith(".")]
            assert not left
            checkpoints = list((out / "state" / "checkpoints").iterdir())
            # That of the stage before is kept for a rollback; the warm-up has none.
            assert len(checkpoints) == (1 if stopped[-1] in ("warm-up", "between") else 2)
        else:
            return stopped


@pytest.mark.parametrize(
    ("settings", "look", "stages"),
    [
        (SETTINGS, 1, {"warm-up", "round-0000", "scoring"}),
        ({}, 2, {"warm-up", "scoring"}),
        ({"granularity": "token", "blade__control": "proxy"}, 3, {"round-0000"}),
        ({"method": "rho1"}, 3, {"round-0000"}),
        ({"method": "perplexity"}, 2, {"warm-up"}),
    ],
    ids=["rescore", "ensemble", "tokens", "rho1", "perplexity"],
)
def test_stopped_again_and_again(
    settings: dict[str, Any],
    look: int,
    stages: set[str],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    whole = shared_run(tmp_path_factory, **settings)
    stopped = stop_until_done(whole.inputs, tmp_path / "out", look, **settings)
    assert set(stopped) >= stages
    ours = Run(whole.inputs, tmp_path / "out")
    assert_same_outcome(ours, whole)
    manifests = [json.loads((one.out / "manifest.json").read_text()) for one in (ours, whole)]
    for manifest in manifests:
        manifest.pop("sha256")
        for name in ("config.yaml", "selection_log.duckdb", "report.html", "README.md"):
            manifest["files"].pop(name)  # they hold times or the folder's name
        for result in manifest["stages"].values():
            result.get("record", {}).pop("seconds", None)
            result.pop("parts", None)
    assert manifests[0] == manifests[1]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Checkpoints are written in the background, slowly, as those of a GPU; which, so far."""
    written: list[str] = []

    def slowly(state: Mapping[str, Any], path: Path) -> None:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.02)
        save_state(state, path)
        written.append(path.name)

    monkeypatch.setattr(checkpoints, "save_state", slowly)
    monkeypatch.setattr(checkpoints, "_is_elsewhere", lambda tensor: True)
    monkeypatch.setattr(checkpoints, "_spare_memory", lambda: 1 << 40)
    return written


@pytest.mark.parametrize(
    ("look", "stages"), [(1, {"warm-up", "round-0000", "scoring"}), (3, {"round-0000"})]
)
def test_checkpoints_written_beside_the_run_are_gone_on_from(
    look: int,
    stages: set[str],
    beside: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    whole = shared_run(tmp_path_factory, **SETTINGS)
    stopped = stop_until_done(whole.inputs, tmp_path / "out", look, **SETTINGS)
    assert set(stopped) >= stages
    assert_same_outcome(Run(whole.inputs, tmp_path / "out"), whole)


def test_what_follows_a_checkpoint_waits_for_its_file(
    beside: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The manifest never names a stage or a part whose checkpoint is not there."""
    whole = shared_run(tmp_path_factory, **SETTINGS)
    beside.clear()
    recorded: list[str] = []

    def finished(folder: RunFolder, stage: str, *others: Any) -> None:
        if stage == "warm-up" or stage.startswith("round"):
            recorded.append(f"{stage}.pt")
            assert recorded[-1] in beside
        finish(folder, stage, *others)

    def paused(folder: RunFolder, stage: str, result: Mapping[str, Any], *others: Any) -> None:
        if stage == "warm-up" or stage.startswith("round"):
            recorded.append(f"{stage}.{result['part']:04d}.pt")
            assert recorded[-1] in beside
        pause(folder, stage, result, *others)

    finish, pause = RunFolder.finish, RunFolder.pause
    monkeypatch.setattr(RunFolder, "finish", finished)
    monkeypatch.setattr(RunFolder, "pause", paused)
    out = run_tiny(whole.inputs, tmp_path / "out", **SETTINGS, compute__checkpoint_minutes=0)
    assert {"warm-up.0000.pt", "warm-up.pt", "round-0000.0000.pt", "round-0000.pt"} <= {*recorded}
    assert data_digests(out) == data_digests(whole)


@pytest.mark.parametrize(
    "name",
    ["warm-up.0000.pt", "warm-up.pt", "round-0000.0000.pt", "round-0000.pt", "scoring.0000.pt"],
)
def test_a_checkpoint_that_cannot_be_written_beside_the_run_stops_it(
    name: str,
    beside: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What came after the one before it is done again, as after a kill."""
    whole = shared_run(tmp_path_factory, **SETTINGS)
    save, out = checkpoints.save_state, tmp_path / "out"

    def refused(state: Mapping[str, Any], path: Path) -> None:
        if path.name == name:
            raise DiskFull(path, 0)
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_state", refused)
        with pytest.raises(DiskFull):
            run_tiny(whole.inputs, out, **SETTINGS, compute__checkpoint_minutes=0)
    assert name not in beside
    assert not (out / "state" / "checkpoints" / name).exists()
    run_tiny(whole.inputs, out, **SETTINGS)
    assert data_digests(Run(whole.inputs, out)) == data_digests(whole)


def test_parts_are_written_as_time_passes(tmp_path: Path) -> None:
    """Without an interval every step and block is a part, and nothing else changes."""
    inputs = write_plain_pool(tmp_path)
    settings = {"blade__warmup_tokens": 1000, "granularity": "token"}
    one = run_tiny(inputs, tmp_path / "one", **settings)
    many = run_tiny(inputs, tmp_path / "many", **settings, compute__checkpoint_minutes=0)
    names = [name for name in listing(many.out / "state") if "decisions" in name]
    assert len(names) > len(many.sql("FROM round"))
    for query in ("FROM document", "FROM decision", "SELECT step, model, loss FROM training"):
        assert one.sql(query) == many.sql(query)
    assert [path.read_bytes() for path in one.parts()] == [
        path.read_bytes() for path in many.parts()
    ]


def test_models_that_only_score_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the scoring is stopped: gigabytes every few minutes for a large model."""
    monkeypatch.setattr("curate.select.schedule._SCORING_TOKENS", 100)
    monkeypatch.setattr("curate.select.schedule._SCORING_BATCHES", 0)
    inputs = write_plain_pool(tmp_path)
    whole = run_tiny(inputs, tmp_path / "whole")
    saved = []

    def recording(state: Mapping[str, Any], path: Path) -> None:
        saved.append(path.name)
        save_state(state, path)

    monkeypatch.setattr(checkpoints, "save_state", recording)
    stopped = stop_until_done(inputs, tmp_path / "out", 1)
    assert stopped.count("scoring") > 1
    assert [name for name in saved if "scoring" in name] == ["scoring.0000.pt"]
    assert_same_outcome(Run(inputs, tmp_path / "out"), whole)


@pytest.mark.parametrize("removed", [1, 2])
def test_ended_between_two_removals(
    removed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scoring round held until it was decided is removed file by file."""
    inputs = write_plain_pool(tmp_path)
    settings = {"blade__final": "rescore", "compute__checkpoint_minutes": 0}
    whole = run_tiny(inputs, tmp_path / "whole", **settings)
    unlink, left = Path.unlink, removed

    def faulty(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        unlink(path, missing_ok)
        left -= path.name.endswith("scored.parquet")
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", faulty)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(inputs, tmp_path / "out", **settings)
    ours = run_tiny(inputs, tmp_path / "out", **settings)
    assert listing(ours.out) == listing(whole.out)
    assert_same_outcome(ours, whole)


def test_what_a_killed_sort_spilled_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_plain_pool(tmp_path)
    whole = run_tiny(inputs, tmp_path / "whole", method="random")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        break_call(patch, ("curate.pipeline.outputs", "select_documents", 1))
        with pytest.raises(KeyboardInterrupt):
            run_tiny(inputs, out, method="random")
    (out / "state" / "duckdb.tmp").mkdir()
    (out / "state" / "duckdb.tmp" / "duckdb_temp_storage-0.tmp").write_bytes(bytes(1000))
    ours = run_tiny(inputs, out, method="random")
    assert listing(ours.out) == listing(whole.out)
    assert_same_outcome(ours, whole)


def test_parts_of_the_dataset_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_plain_pool(tmp_path, shards=4)
    settings = {"method": "random", "granularity": "token", "compute__checkpoint_minutes": 0}
    whole = run_tiny(inputs, tmp_path / "whole", **settings)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        break_call(patch, ("curate.pipeline.outputs", "write_part", 3))
        with pytest.raises(KeyboardInterrupt):
            run_tiny(inputs, out, **settings)
    first = out / "data" / "part-00000.parquet"
    before = first.stat().st_mtime_ns
    ours = run_tiny(inputs, out, **settings)
    assert first.stat().st_mtime_ns == before
    assert_same_outcome(ours, whole)


def test_shards_that_were_tokenized_are_not_tokenized_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.read.cache.FRAGMENT_TOKENS", 100)
    inputs = write_plain_pool(tmp_path, rows=600)
    settings = {"method": "random"}
    whole = run_tiny(inputs, tmp_path / "whole", **settings)
    fragments = [name for name in listing(whole.out / "state" / "tokens") if "arrow" in name]
    assert len(fragments) == 6
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        break_call(patch, ("curate.read.cache", "_FragmentWriter._write_tokens", 5))
        with pytest.raises(KeyboardInterrupt):
            run_tiny(inputs, out, **settings)
    first = out / "state" / "tokens" / fragments[0]
    before = first.stat().st_mtime_ns
    ours = run_tiny(inputs, out, **settings)
    assert first.stat().st_mtime_ns == before
    assert_same_outcome(ours, whole)


def start(arguments: list[str], cwd: Path, program: str = PROGRAM) -> subprocess.Popen[str]:
    """The command line in a process of its own, which hears every signal, whoever starts it."""

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=cwd, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear,  # noqa: PLW1509
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], path: Path, text: str) -> None:
    while process.poll() is None and not (path.exists() and text in path.read_text()):
        time.sleep(0.005)


def signalled_in_training(number: signal.Signals, step: int, more: str = "") -> str:
    """The command line, which sends itself a signal as the proxy takes one of its steps."""
    return (
        "import os\n"
        "from curate.select.methods.proxy import Proxy\n"
        "train, calls = Proxy.train, []\n"
        "def signalled(self, documents):\n"
        "    calls.append(documents)\n"
        f"    if len(calls) == {step}:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    train(self, documents)\n"
        "Proxy.train = signalled\n" + more + PROGRAM
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_in_the_middle_of_a_stage(
    tmp_path: Path, number: signal.Signals
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    settings = {"blade__warmup_tokens": 5_000}
    process = start(
        run_arguments(inputs, out, **settings), tmp_path, signalled_in_training(number, 4)
    )
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (128 + number, "")
    assert stderr.endswith("\nInterrupted. Run the same command again to go on.\n")
    assert "Traceback" not in stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["partial"]["stage"] == "warm-up"
    assert manifest["partial"]["result"]["losses"]["proxy"][1] == 4
    assert curate(*run_arguments(inputs, out, **settings)).exit_code == 0
    whole = run_tiny(inputs, tmp_path / "whole", **settings)
    assert_same_outcome(Run(inputs, out), whole)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    inputs, out, mark = write_plain_pool(tmp_path), tmp_path / "out", tmp_path / "mark"
    slow = (
        "import time\n"
        "from curate.pipeline.rounds import Rounds\n"
        "def slow(self, result):\n"
        f"    open({str(mark)!r}, 'w').write('busy')\n"
        "    time.sleep(600)\n"
        "Rounds._pause = slow\n"
    )
    program = signalled_in_training(signal.SIGTERM, 1, slow)
    process = start(run_arguments(inputs, out), tmp_path, program)
    try:
        wait_for(process, mark, "busy")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert curate(*run_arguments(inputs, out)).exit_code == 0


def test_the_signals_are_given_back() -> None:
    heard = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(one) for one in heard]
    stop = Stop()
    with stop.listening(), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.signal == signal.SIGTERM
    assert [signal.getsignal(one) for one in heard] == before
    with Stop().listening(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
