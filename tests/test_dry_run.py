"""`curate run --dry-run`: the same checks as a run, nothing written, and figures that follow."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import (
    TINY,
    Fault,
    Run,
    assert_same_outcome,
    curate,
    interrupted_after,
    listing,
    run_arguments,
    run_tiny,
    snapshot,
    words,
    write_plain_pool,
)

from curate.config import load_config
from curate.config.schema import Config
from curate.pipeline import Estimate, estimate, run
from curate.pipeline.dry_run import stage_seconds
from curate.pipeline.trial import Costs
from curate.select.schedule import Schedule, plan_scoring, sync_tokens


def estimate_tiny(inputs: Path, out: Path, **settings: Any) -> Estimate:
    """`run_tiny`, but a dry run."""
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    paths = {"pool": str(inputs / "pool"), "target": str(inputs / "target.parquet")}
    config = load_config(None, {**paths, "out": str(out), **TINY, **changed})
    return estimate(config, io.StringIO())


# What it says.


def test_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user sees it; nothing is written, and no temporary file is left."""
    inputs, scratch = write_plain_pool(tmp_path / "inputs"), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = snapshot(inputs)
    result = curate(*run_arguments(inputs, tmp_path / "out"), "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("pool ")
    assert "method blade, granularity document, seed 0" in lines[0]
    assert lines[1].startswith("model nano")
    assert lines[2].startswith("warm-up 1,000 tokens; 1 pass over 0.33 of the pool x ")
    assert lines[3].startswith("About, by a trial of ")
    assert lines[3].endswith(" on a sample of the pool (cpu, float32, 1 thread):")
    assert [line.split()[0] for line in lines[4:7]] == ["time", "memory", "disk"]
    assert [part.split()[0] for part in lines[4].partition(": ")[2].split(", ")] == [
        "tokenize", "start", "warm-up", "rounds", "scoring", "write",
    ]  # fmt: skip
    assert lines[7:] == ["Nothing was written."]
    assert not (tmp_path / "out").exists()
    assert listing(scratch) == []
    assert snapshot(inputs) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "random"},
        {"method": "random", "granularity": "token"},
        {"method": "dsir"},
        {"method": "classifier"},
        {"method": "perplexity"},
        {"method": "color"},
        {"method": "rho1"},
        {"method": "rho1", "granularity": "token"},
        {"granularity": "token"},
        {"blade__final": "rescore", "blade.lambda": 0.5, "blade__passes": 2},
        {"blade__warmup_tokens": 0, "blade__reference_steps": 1},
    ],
    ids=str,
)
def test_every_method(settings: dict[str, Any], tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path)
    found = estimate_tiny(inputs, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    assert all(seconds >= 0 for seconds in found.seconds.values())
    method = settings.get("method", "blade")
    by_rounds = method in ("rho1",) or (method == "blade" and settings.get("granularity"))
    assert (found.seconds["scoring"] > 0) == (not by_rounds)
    assert (found.seconds["rounds"] > 0) == (method in ("blade", "rho1"))
    assert found.memory_bytes > 10**7
    assert found.device_memory_bytes is None
    assert found.disk_bytes >= 10**6


@pytest.mark.parametrize("kind", ["rich", "plain", "jsonl"])
def test_the_size_of_the_pool(kind: str, tmp_path: Path, blade: Run) -> None:
    """As a run finds it, whatever other columns there are; to a twentieth, since a pool of JSON
    lines is known by its bytes alone, and tokens in three digits.
    """
    if kind == "rich":
        ran = blade
    else:
        inputs = write_plain_pool(tmp_path / "inputs")
        if kind == "jsonl":
            write_lines(inputs / "pool")
        ran = run_tiny(inputs, tmp_path / "ran", method="random")
    tokens, documents, size = ran.sql("SELECT sum(tokens), count(*), sum(bytes) FROM document")[0]
    found = estimate_tiny(ran.inputs, tmp_path / "out", method="random")
    assert found.pool_tokens == pytest.approx(int(tokens), rel=0.05)
    assert found.pool_documents == documents
    assert found.pool_bytes == int(size)


def write_lines(pool: Path) -> None:
    """JSON lines in place of the shards of a pool."""
    for shard in pool.iterdir():
        shard.unlink()
    random = np.random.default_rng(8)
    for shard in range(3):
        rows = [json.dumps({"text": words(random, 12), "id": row}) for row in range(20)]
        (pool / f"{shard}.jsonl").write_text("\n".join(rows) + "\n")


def test_a_pool_larger_than_its_sample(tmp_path: Path) -> None:
    """A few shards of many stand for all of them."""
    inputs = write_plain_pool(tmp_path, shards=40, rows=20)
    settings = {"method": "random", "model__tokenizer_sample_bytes": 2000}
    ran = run_tiny(inputs, tmp_path / "ran", **settings)
    found = estimate_tiny(inputs, tmp_path / "out", **settings)
    tokens, size = ran.sql("SELECT sum(tokens), sum(bytes) FROM document")[0]
    assert found.pool_documents == 800
    assert found.pool_bytes == pytest.approx(int(size), rel=0.2)
    assert found.pool_tokens == pytest.approx(int(tokens), rel=0.2)


def test_the_plan_is_that_of_the_run(tmp_path: Path) -> None:
    """Where the sample is all of the pool: nothing in it is a guess but the pool's last digits."""
    inputs = write_plain_pool(tmp_path)
    stream = io.StringIO()
    paths = {"pool": str(inputs / "pool"), "target": str(inputs / "target.parquet")}
    config = load_config(None, {**paths, "out": str(tmp_path / "out"), **TINY})
    plan = estimate(config, io.StringIO()).plan
    run(config, stream)
    lines = plan.splitlines()
    assert stream.getvalue().splitlines()[1 : len(lines)] == lines[1:]


# What it leaves alone.


def test_a_run_after_it_is_as_ever(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path)
    whole = run_tiny(inputs, tmp_path / "whole")
    estimate_tiny(inputs, tmp_path / "out")
    assert_same_outcome(run_tiny(inputs, tmp_path / "out"), whole)


def test_a_run_that_was_begun(tmp_path: Path, fault: Fault) -> None:
    """It is looked at, and goes on afterwards."""
    inputs = interrupted_after(fault, "tokens", tmp_path)
    out = tmp_path / "out"
    before = snapshot(out)
    found = estimate_tiny(inputs, out)
    assert found.begun
    assert found.text.splitlines()[-2:] == [
        f"{out} holds this run, finished or not: the time is that of all of it, the disk what is "
        "left.",
        "Nothing was written.",
    ]
    assert snapshot(out) == before
    assert_same_outcome(run_tiny(inputs, out), run_tiny(inputs, tmp_path / "whole"))


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--pool", "nowhere"], "no such"),
        (["--keep", "2"], "keep must be"),
        (["--set", "model.window=4", "--set", "model.window_overlap=9"], "model.window_overlap"),
    ],
)
def test_bad_input_is_that_of_a_run(flags: list[str], problem: str, tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path)
    arguments = [*run_arguments(inputs, tmp_path / "out"), *flags]
    dry, real = curate(*arguments, "--dry-run"), curate(*arguments)
    assert dry.exit_code == real.exit_code == 2
    assert dry.stderr == real.stderr
    assert not (tmp_path / "out").exists()


# How it is extrapolated.

COSTS = Costs(once=1.0, step=2.0, count=3.0, sync=5.0, draw=7.0, score=11.0)


def make_config(**settings: Any) -> Config:
    base = {"pool": "p", "target": "t", "out": "o", "blade.reference_steps": 4}
    config = load_config(None, {**base, "train.batch_tokens": 10, **settings})
    return dataclasses.replace(
        config, blade=dataclasses.replace(config.blade, warmup_tokens=100, control="lookahead")
    )


def test_the_parts_of_the_time() -> None:
    config = make_config()
    schedule = Schedule(
        passes=2, pass_tokens=300, rounds_per_pass=3, scoring=True, syncs=6, expected_tokens=0
    )
    assert sync_tokens(config) == 40
    assert stage_seconds(COSTS, config, schedule, 1000) == {
        "start": 1.0,
        "warm-up": 2.0 * 100,
        "rounds": 6 * 5.0 + 7.0 * 2 * 300 + 2.0 * 6 * 40,
        "scoring": 11.0 * 1000,
    }
    whole = dataclasses.replace(schedule, pass_tokens=None, scoring=False)
    found = stage_seconds(COSTS, config, whole, 1000)
    assert found["rounds"] == 6 * 5.0 + 7.0 * 2 * 1000 + 2.0 * 6 * 40
    assert found["scoring"] == 0


def test_the_time_of_methods_that_score_once() -> None:
    color = plan_scoring(expected_tokens=0, syncs=1)
    found = stage_seconds(COSTS, make_config(method="color"), color, 1000)
    assert found["rounds"] == 0
    assert found["scoring"] == 11.0 * 1000 + 2.0 * 40
    dsir = plan_scoring(expected_tokens=2000)
    found = stage_seconds(COSTS, make_config(method="dsir"), dsir, 1000)
    assert found["warm-up"] == 3.0 * 1000
    assert found["scoring"] == 11.0 * 1000


@given(st.integers(1, 10**12), st.integers(1, 10), st.booleans())
def test_time_grows_with_the_pool_and_no_faster(tokens: int, passes: int, scoring: bool) -> None:
    config = make_config()
    schedule = Schedule(passes=passes, scoring=scoring, syncs=passes)
    one, two = (
        sum(stage_seconds(COSTS, config, schedule, size).values()) for size in (tokens, 2 * tokens)
    )
    assert one < two <= 2 * one
