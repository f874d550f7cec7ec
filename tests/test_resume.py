"""Interrupted runs: the same command goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
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
    write_plain_pool,
)

from curate.errors import OutputConflict, OutputFailed
from curate.pipeline.folder import START_AGAIN, RunFolder
from curate.pipeline.lock import locked
from curate.pipeline.model_files import model_files
from curate.read.tokenizer import train_tokenizer
from curate.train.model import PRESETS, build_network

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


@pytest.fixture(scope="session")
def whole_random(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, method="random")


class Fault:
    """Raises KeyboardInterrupt as one stage is recorded, just before or just after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage: str | None = None
        self.after = False
        finish, write = RunFolder.finish, RunFolder._write

        def faulty_finish(folder: RunFolder, stage: str, *rest: Any) -> None:
            self.current = stage
            finish(folder, stage, *rest)
            if stage == self.stage and self.after:
                raise KeyboardInterrupt

        def faulty_write(folder: RunFolder) -> None:
            if self.current == self.stage and not self.after:
                raise KeyboardInterrupt
            write(folder)

        self.current = "create"
        monkeypatch.setattr(RunFolder, "finish", faulty_finish)
        monkeypatch.setattr(RunFolder, "_write", faulty_write)

    def at(self, stage: str | None, *, after: bool) -> None:
        self.stage, self.after, self.current = stage, after, "create"


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch)


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


# What may not change between two starts.


def interrupted(inputs: Path, out: Path, fault: Fault) -> None:
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out)
    fault.at(None, after=True)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"keep": 0.3}, "keep (0.2 then, 0.3 now)"),
        ({"seed": 1}, "seed (0 then, 1 now)"),
        ({"blade.lambda": 0.5}, "blade.lambda (0.0 then, 0.5 now)"),
        ({"model.window": 64}, "model.window (32 then, 64 now)"),
        ({"keep": 0.3, "seed": 1, "method": "random"}, "keep (0.2 then, 0.3 now) and 2 more"),
        ({"metadata_columns": ["id"]}, "metadata_columns (None then, ['id'] now)"),
    ],
)
def test_a_changed_setting_is_named(
    tmp_path: Path, fault: Fault, settings: dict[str, Any], difference: str
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    before = snapshot(out)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out, **settings)
    assert caught.value.exit_code == 2
    assert caught.value.problem == (
        f"The output folder {out} holds a run that differs in {difference}."
    )
    assert caught.value.remedy == "Give another folder with --out, or remove this one."
    assert snapshot(out) == before


def test_a_run_goes_on_with_the_version_that_began_it_alone(tmp_path: Path, fault: Fault) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "curate_version": "0.0.1"}))
    before = snapshot(out)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out)
    assert caught.value.problem == (
        f"The run in {out} was begun by curate 0.0.1, and this is {version('curate')}, "
        "which may decide otherwise."
    )
    assert caught.value.remedy == (
        "Go on with the version that began it, or give another folder with --out."
    )
    assert snapshot(out) == before


def test_a_finished_run_of_other_settings_is_left_alone(whole_random: Run) -> None:
    before = snapshot(whole_random.out)
    result = curate(*run_arguments(whole_random.inputs, whole_random.out, method="random", seed=5))
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: The output folder {whole_random.out} holds a run that differs in "
        "seed (0 then, 5 now).\n"
        "To fix: Give another folder with --out, or remove this one.\n"
    )
    assert snapshot(whole_random.out) == before


def change(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


@pytest.mark.parametrize(
    ("alter", "name", "difference"),
    [
        (change, "pool/1.parquet", "the pool shard {path} (changed)"),
        (change, "target.parquet", "the target shard {path} (changed)"),
        (Path.unlink, "pool/1.parquet", "the pool shard {path} (gone)"),
    ],
    ids=["changed", "target", "gone"],
)
def test_a_changed_input_is_named(
    tmp_path: Path, fault: Fault, alter: Callable[[Path], None], name: str, difference: str
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    alter(inputs / name)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out)
    named = difference.format(path=inputs / name)
    assert caught.value.problem == (f"The output folder {out} holds a run that differs in {named}.")


def test_an_added_shard_is_named(tmp_path: Path, fault: Fault) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    added = inputs / "pool" / "2.parquet"
    added.write_bytes((inputs / "pool" / "1.parquet").read_bytes())
    with pytest.raises(OutputConflict, match=re.escape(f"the pool shard {added} (added)")):
        run_tiny(inputs, out)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with its tokenizer; never change it."""
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    tokenizer = train_tokenizer(iter(["river stone cloud amber"] * 9), 300)
    tokenizer.save(folder)
    size, prefix = tokenizer.vocabulary_size, tokenizer.prefix_id
    network: Any = build_network(PRESETS["nano"], size, prefix, 0)
    network.save_pretrained(str(folder))
    return folder


def other_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2000] ^= 1
    times = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


def other_shape(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))


@pytest.mark.parametrize(
    ("alter", "difference"),
    [
        (other_weights, "the model's model.safetensors (changed)"),
        (other_shape, "the model's config.json (changed)"),
        (lambda model: (model / "merges.txt").touch(), "the model's merges.txt (added)"),
        (lambda model: (model / "README.md").write_text("notes"), None),
    ],
    ids=["weights", "config", "added", "notes"],
)
def test_a_changed_model_is_named(
    tmp_path: Path,
    fault: Fault,
    pretrained: Path,
    alter: Callable[[Path], None],
    difference: str | None,
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    model = Path(shutil.copytree(pretrained, tmp_path / "model"))
    settings = {"model.name": str(model), "method": "random"}
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **settings)
    fault.at(None, after=True)
    alter(model)
    if difference is None:
        run_tiny(inputs, out, **settings)
        assert curate("verify", str(out)).exit_code == 0
        return
    before = snapshot(out)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out, **settings)
    assert caught.value.problem == (
        f"The output folder {out} holds a run that differs in {difference}."
    )
    assert snapshot(out) == before


def test_a_run_of_before_models_were_recorded_goes_on(
    tmp_path: Path, fault: Fault, pretrained: Path
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    settings = {"model.name": str(pretrained), "method": "random"}
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **settings)
    fault.at(None, after=True)
    manifest = json.loads((out / "manifest.json").read_text())
    files = {one["name"] for one in manifest.pop("model")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    (out / "manifest.json").write_text(json.dumps(manifest))
    run_tiny(inputs, out, **settings)
    assert "model" not in json.loads((out / "manifest.json").read_text())
    assert curate("verify", str(out)).exit_code == 0


def test_a_model_of_the_hub_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_files("nano") == model_files("owner/name") == []
    place = tmp_path / "models--owner--name"
    for folder in ("refs", "snapshots/c0ffee"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    (place / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    assert model_files("owner/name") == [{"name": "commit", "fingerprint": "c0ffee"}]


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


def interrupted_after(fault: Fault, stage: str, place: Path, **settings: Any) -> Path:
    """The inputs of a run in `place`/out that ended once a stage was recorded."""
    inputs = write_plain_pool(place)
    fault.at(stage, after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, place / "out", **settings)
    fault.at(None, after=True)
    return inputs


def kept_state(run: Path) -> list[Path]:
    """The files of an unfinished run that it cannot go on without."""
    every = (run / "state").rglob("*.*")
    kept = [path for path in every if path.suffix in (".arrow", ".parquet")]
    kept = [path for path in kept if ".scored." not in path.name]  # of which decisions were made
    assert {path.parent.name for path in kept} == {"tokens", "rounds"}
    return kept


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "gone"])
def test_a_file_of_its_own_that_is_gone_or_cut_off_is_named(
    tmp_path: Path, fault: Fault, cut: bool
) -> None:
    """A fragment of decisions that is gone would be passed over in silence."""
    inputs = interrupted_after(fault, "scoring", tmp_path)
    for path in kept_state(tmp_path / "out"):
        content = path.read_bytes()
        if cut:
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        with pytest.raises(OutputFailed) as error:
            run_tiny(inputs, tmp_path / "out")
        assert error.value.problem == f"The run's own file {path} is gone or damaged."
        assert error.value.remedy == START_AGAIN
        path.write_bytes(content)
    run_tiny(inputs, tmp_path / "out")


def test_its_own_tokenizer_is_gone(tmp_path: Path, fault: Fault) -> None:
    inputs = interrupted_after(fault, "tokens", tmp_path, method="random")
    shutil.rmtree(tmp_path / "out/state/tokenizer")
    with pytest.raises(OutputFailed) as error:
        run_tiny(inputs, tmp_path / "out", method="random")
    place = tmp_path / "out/state/tokenizer"
    assert error.value.problem == f"The run's own tokenizer {place} cannot be read."
    assert error.value.remedy == START_AGAIN


def test_times_are_not_worth_a_run(tmp_path: Path, fault: Fault) -> None:
    inputs = interrupted_after(fault, "tokens", tmp_path, method="random")
    (tmp_path / "out/state/times.json").write_bytes(b'{"stages": \xff')
    run = run_tiny(inputs, tmp_path / "out", method="random")
    assert run.sql("SELECT stage_seconds IS NOT NULL FROM run") == [(True,)]
