"""Losses and scores that are not finite: the run goes back, halves its rates, and goes on or ends.

A divergence is planted in one step of one stage, and vanishes at a lower learning rate, as a real
one would. What is said of it is held to the letter.
"""

from __future__ import annotations

import json
import math
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from run_helpers import (
    Run,
    assert_same_outcome,
    curate,
    listing,
    run_arguments,
    run_tiny,
    write_plain_pool,
)
from test_parts import StopAt
from test_resume import break_call

from curate.errors import NonFiniteLoss
from curate.pipeline.folder import RunFolder
from curate.pipeline.rounds import Rounds
from curate.read.tokenizer import train_tokenizer
from curate.select.methods import METHODS
from curate.select.methods.proxy import Proxy
from curate.stop import Interrupted
from curate.train.model import PRESETS, build_network
from curate.train.optimizer import Optimizer, StepRecord

SMALL = {
    "model__name": "nano",
    "train__batch_tokens": 80,
    "blade__warmup_tokens": 400,
    "blade__sync_every": 3,
    "blade__reference_steps": 3,
}
"""Some steps in every stage: 0 to 4 of the proxy in the warm-up, 5 in the first round (to 7 in a
whole pass)."""

SETTINGS = {**SMALL, "blade__final": "rescore", "blade.lambda": 0.5}
"""Two models besides the proxy."""

NOT_TRAINED = "Run with --set compute.dtype=float32, or with another model."
REMEDY = "Lower train.learning_rate, or run with --set compute.dtype=float32."


@dataclass
class Divergence:
    """A loss of NaN at one step of one stage, until rates are as low as after so many rollbacks."""

    stage: str
    model: str
    step: int
    rollbacks: int = 1
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Stage and model of every step that was taken or tried."""

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        run_stage, finish = Rounds._run_stage, Optimizer._finish
        first: dict[str, float] = {}
        at = ""

        def noted(rounds: Rounds, stage: str, *rest: Any) -> None:
            nonlocal at
            at = stage
            run_stage(rounds, stage, *rest)

        def diverging(
            optimizer: Optimizer, losses: Sequence[torch.Tensor], *rest: Any
        ) -> StepRecord:
            rate = optimizer.schedule(0)
            wild = rate / first.setdefault(optimizer.name, rate) > 0.5**self.rollbacks
            self.steps.append((at, optimizer.name))
            here = (at, optimizer.name, optimizer.steps) == (self.stage, self.model, self.step)
            lost = [torch.tensor(math.nan)]
            return finish(optimizer, lost if here and wild else losses, *rest)

        patch.setattr(Rounds, "_run_stage", noted)
        patch.setattr(Optimizer, "_finish", diverging)


def rollbacks_of(run: Run) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(run.sql("SELECT rollbacks FROM run")[0][0])
    return found


def problem_of(step: int, model: str = "proxy") -> str:
    """The sentence of a planted divergence, but for its end."""
    return rf"Step {step} of the {model} model gave a loss of nan and a gradient norm of [\d.]+"


def spoken(inputs: Path, out: Path, **settings: Any) -> tuple[Run, str]:
    """A run, and what it says on its way."""
    result = curate(*run_arguments(inputs, out, **settings))
    assert result.exit_code == 0, result.stderr
    return Run(inputs, out), result.stderr


def assert_files_are_finite(out: Path) -> None:
    """No fragment and no part has a number that is not finite."""
    for path in out.rglob("*.parquet"):
        for name, column in zip(*_float_columns(path), strict=True):
            values = column.drop_null().to_numpy()
            assert np.isfinite(values).all(), (path.name, name)


def assert_all_finite(run: Run) -> None:
    """Nor has any table of the log."""
    assert_files_are_finite(run.out)
    for table in ("round", "decision", "document", "training"):
        for name, kind, *_ in run.sql(f"DESCRIBE {table}"):
            if kind in ("FLOAT", "DOUBLE"):
                broken = f'SELECT count(*) FROM {table} WHERE NOT isfinite("{name}")'
                assert run.sql(broken) == [(0,)], (table, name)


def _float_columns(path: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    table = pq.read_table(path)
    names = [one.name for one in table.schema if pa.types.is_floating(one.type)]
    return names, [table[name] for name in names]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_pool(tmp_path_factory.mktemp("rollback"))


PLANTED = Divergence("round-0001", "proxy", 10)
"""After two steps of the stage, the sync's aside."""


@pytest.fixture(scope="module")
def gone_back(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run that went back once, uninterrupted, and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        Divergence(PLANTED.stage, PLANTED.model, PLANTED.step).plant(patch)
        return spoken(inputs, tmp_path_factory.mktemp("back") / "out", **SETTINGS)


# Going back.


def test_the_run_goes_on_at_half_the_rate(gone_back: tuple[Run, str]) -> None:
    run, said = gone_back
    (line,) = [line for line in said.splitlines() if "halved" in line]
    going = "; going on from the end of round 0 with learning rates halved (1 of 3)."
    assert re.fullmatch(problem_of(10) + re.escape(going), line)
    (found,) = rollbacks_of(run)
    assert found["stage"] == "round-0001"
    assert re.fullmatch(problem_of(10) + r"\.", found["problem"])
    assert_all_finite(run)
    rates = run.sql("SELECT step, learning_rate FROM training WHERE model = 'proxy' ORDER BY step")
    assert [step for step, _ in rates] == list(range(len(rates)))
    first = run.sql("SELECT proxy_step FROM round WHERE round = 1")[0][0]
    assert first == 8
    assert len(rates) > 10
    assert {2 * rate for _, rate in rates[first:]} == {rate for _, rate in rates[3:first]}
    syncs = run.sql("SELECT step // 3, max(learning_rate) FROM training WHERE model = 'reference' "
                    "GROUP BY 1 ORDER BY 1")  # fmt: skip
    peak = syncs[0][1]
    assert [rate for _, rate in syncs] == pytest.approx([peak] + [peak / 2] * (len(syncs) - 1))


def test_the_people_who_read_of_the_run_are_told(gone_back: tuple[Run, str]) -> None:
    run, _ = gone_back
    sentence = (
        "Learning rates were halved once after a loss or score that was not finite, in round-0001."
    )
    assert curate("log", run.out).stdout.endswith(f"\n{sentence}\n\n")
    assert f"\n{sentence}\n" in (run.out / "README.md").read_text()
    assert f"<p>{sentence}</p>" in (run.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("stage", "model", "step", "settings", "way"),
    [
        ("warm-up", "proxy", 3, {}, "starting again"),
        ("round-0000", "reference", 2, {}, "going on from the end of warm-up"),
        ("scoring", "lookahead", 2, SETTINGS, "going on from the end of round 1"),
        ("round-0000", "proxy", 6, {"granularity": "token", "blade__control": "proxy"},
         "going on from the end of warm-up"),
    ],
    ids=["warm-up", "reference", "lookahead", "tokens"],
)  # fmt: skip
def test_every_model_in_every_stage(
    stage: str,
    model: str,
    step: int,
    settings: dict[str, Any],
    way: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Divergence(stage, model, step, rollbacks=2).plant(monkeypatch)
    run, said = spoken(inputs, tmp_path / "out", **{**SMALL, **settings})
    lines = [line for line in said.splitlines() if "halved" in line]
    assert [line.partition("; ")[2] for line in lines] == [
        f"{way} with learning rates halved ({time} of 3)." for time in (1, 2)
    ]
    assert [one["stage"] for one in rollbacks_of(run)] == [stage, stage]
    assert_all_finite(run)


def test_a_run_without_a_rollback_says_nothing_of_it(blade: Run) -> None:
    assert blade.sql("SELECT rollbacks::VARCHAR FROM run") == [("[]",)]
    texts = [(blade.out / name).read_text() for name in ("README.md", "report.html")]
    for text in [curate("log", blade.out).stdout, *texts]:
        assert "halved" not in text


def test_numbers_are_finite_whatever_the_method(finished: Run) -> None:
    assert_all_finite(finished)


def test_there_are_never_two_methods(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two would need twice the memory."""
    made: list[weakref.ref[Any]] = []
    build = Proxy.__init__

    def counted(proxy: Proxy, *rest: Any) -> None:
        assert [one for one in made if one() is not None] == []
        build(proxy, *rest)
        made.append(weakref.ref(proxy.model.network))

    monkeypatch.setattr(Proxy, "__init__", counted)
    Divergence("round-0000", "proxy", 5, rollbacks=2).plant(monkeypatch)
    run_tiny(inputs, tmp_path / "out", **SMALL)
    assert len(made) == 3


# Interrupted around it.


@pytest.mark.parametrize("look", [1, 4])
def test_stopped_again_and_again(
    gone_back: tuple[Run, str], look: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, in and after the stage that starts over."""
    whole, _ = gone_back
    Divergence(PLANTED.stage, PLANTED.model, PLANTED.step).plant(monkeypatch)
    places = set()
    while True:
        try:
            run_tiny(whole.inputs, tmp_path / "out", StopAt(look), **SETTINGS)
        except Interrupted:
            manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
            stage = manifest.get("partial", {}).get("stage", "between")
            places.add((stage, len(manifest.get("rollbacks", []))))
        else:
            break
    if look == 1:
        assert places >= {("round-0000", 0), ("round-0001", 0), ("round-0001", 1), ("scoring", 1)}
    assert_same_outcome(Run(whole.inputs, tmp_path / "out"), whole)


def interrupt_the_rollback(patch: pytest.MonkeyPatch, *, recorded: bool) -> None:
    """Raise KeyboardInterrupt before or after the manifest is told of a rollback."""
    if recorded:
        break_call(patch, ("curate.pipeline.folder", "RunFolder.roll_back", 1))
        return

    def unheard(folder: RunFolder, *rest: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr(RunFolder, "roll_back", unheard)


@pytest.mark.parametrize("recorded", [False, True], ids=["before", "after"])
def test_killed_in_the_rollback_with_parts_of_the_stage_on_disk(
    gone_back: tuple[Run, str], recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage had many parts; when it starts over it has one, and none of the others count."""
    whole, _ = gone_back
    out = tmp_path / "out"
    Divergence(PLANTED.stage, PLANTED.model, PLANTED.step).plant(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_the_rollback(patch, recorded=recorded)
        for _ in range(100):
            with pytest.raises(KeyboardInterrupt) as caught:
                run_tiny(whole.inputs, out, StopAt(1), **SETTINGS)
            if not isinstance(caught.value, Interrupted):
                break
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest.get("rollbacks", [])) == recorded
    assert ("partial" in manifest) == (not recorded)
    left = [name for name in listing(out / "state" / "rounds") if "round-0001" in name]
    assert "round-0001.0001.decisions.parquet" in left
    run = run_tiny(whole.inputs, out, **SETTINGS)
    assert_same_outcome(run, whole)
    left = [name for name in listing(out / "state" / "rounds") if "round-0001" in name]
    assert left == [f"round-0001.0000.{kind}.parquet" for kind in ("decisions", "training")]
    assert listing(out / "state" / "checkpoints") == []


# Giving up.


def ended(inputs: Path, out: Path, **settings: Any) -> str:
    """The first line of the error that a run ends with; no data was written."""
    result = curate(*run_arguments(inputs, out, **{**SMALL, **settings}))
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not (out / "data").exists()
    assert not (out / "selection_log.duckdb").exists()
    *_, error, remedy = result.stderr.splitlines()
    assert remedy == f"To fix: {REMEDY}"
    return error


@pytest.mark.parametrize(
    ("most", "end"),
    [
        (0, "."),
        (1, ", after the run had gone back once with learning rates halved."),
        (3, ", after the run had gone back 3 times, each time with learning rates halved."),
    ],
)
def test_it_ends_after_so_many_times_and_again_at_once(
    most: int, end: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command tries what is left of the stage since its last part, and no more."""
    planted = Divergence("round-0000", "proxy", 6, rollbacks=99)
    planted.plant(monkeypatch)
    out = tmp_path / "out"
    settings = {**SETTINGS, "train__max_rollbacks": most, "compute__checkpoint_minutes": 0}
    error = ended(inputs, out, **settings)
    assert re.fullmatch(f"Error: {problem_of(6)}{re.escape(end)}", error)
    manifest = (out / "manifest.json").read_text()
    assert len(json.loads(manifest).get("rollbacks", [])) == most
    tried = planted.steps.count(("round-0000", "proxy"))
    planted.steps.clear()
    assert ended(inputs, out, **settings) == error
    assert (out / "manifest.json").read_text() == manifest
    assert planted.steps == [("round-0000", "proxy")]
    assert tried == 2 * (most + 1)


def test_the_first_step_of_all_is_not_tried_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Divergence("warm-up", "proxy", 0, rollbacks=99).plant(monkeypatch)
    with pytest.raises(NonFiniteLoss) as caught:
        run_tiny(inputs, tmp_path / "out", **SMALL)
    end = "; no step has been taken yet, so going back would change nothing."
    assert re.fullmatch(problem_of(0) + re.escape(end), caught.value.problem)
    assert caught.value.remedy == NOT_TRAINED


def spoil(patch: pytest.MonkeyPatch, method: str, document: int, value: float) -> None:
    """Let a method give one document a score that is not finite."""
    kind = METHODS[method]
    score = kind.score

    def spoilt(self: Any, block: Any) -> Any:
        scores = score(self, block)
        scores.score[block.ids == document] = value
        return scores

    patch.setattr(kind, "score", spoilt)


def test_a_score_with_no_step_before_it_is_not_tried_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "perplexity", 5, math.nan)
    assert ended(inputs, tmp_path / "out", method="perplexity") == (
        "Error: Document 5 got a score that is not a finite number; no step has been taken since "
        "the end of warm-up, so going back would change nothing."
    )
    assert_files_are_finite(tmp_path / "out")


@pytest.mark.parametrize(
    ("final", "end"),
    [
        (
            "rescore",  # which begins with a sync
            ", after the run had gone back 2 times, each time with learning rates halved.",
        ),
        (
            "ensemble",
            "; no step has been taken since the end of round 0, so going back would change "
            "nothing.",
        ),
    ],
)
def test_a_document_that_no_rate_helps_is_named(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: str, end: str
) -> None:
    spoil(monkeypatch, "blade", 5, math.inf)
    assert ended(inputs, tmp_path / "out", train__max_rollbacks=2, blade__final=final) == (
        f"Error: Document 5 got a score that is not a finite number{end}"
    )
    assert_files_are_finite(tmp_path / "out")


def test_a_method_without_steps_is_not_tried_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "dsir", 5, math.inf)
    error = ended(inputs, tmp_path / "out", method="dsir")
    assert error == "Error: Document 5 got a score that is not a finite number."


# Without anything planted.


@pytest.mark.parametrize(
    ("setting", "model"),
    [("train__learning_rate", "proxy"), ("blade__reference_learning_rate", "reference")],
)
def test_a_rate_that_is_far_too_high_ends_in_a_sentence(
    setting: str, model: str, inputs: Path, tmp_path: Path
) -> None:
    error = ended(inputs, tmp_path / "out", **{setting: 1e30})
    assert re.fullmatch(
        f"Error: Step 1 of the {model} model gave a loss of .* and a gradient norm of (nan|inf), "
        r"after the run had gone back 3 times, each time with learning rates halved\.",
        error,
    )


def test_a_rate_is_halved_until_it_does(inputs: Path, tmp_path: Path) -> None:
    """A real divergence, from weights that overflow."""
    rate = 1e4
    settings = {**SMALL, "train__learning_rate": rate, "train__max_rollbacks": 100}
    run, said = spoken(inputs, tmp_path / "out", method="perplexity", **settings)
    times = len(rollbacks_of(run))
    assert 0 < times < 100
    assert said.count("; starting again with learning rates halved") == times
    (peak,) = run.sql("SELECT max(learning_rate) FROM training")[0]
    assert peak == pytest.approx(rate / 2**times, rel=1e-6)
    assert_all_finite(run)


def test_a_classifier_that_overflows_ends_in_a_sentence(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss) as caught:
        run_tiny(inputs, tmp_path / "out", method="classifier", classifier__learning_rate=1e300)
    assert re.fullmatch(
        r"The classifier was trained to log-odds as large as \S+\.", caught.value.problem
    )
    assert caught.value.remedy == "Lower classifier.learning_rate."


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model whose weights overflow, in bfloat16 as in float32."""
    folder = tmp_path_factory.mktemp("model") / "model"
    tokenizer = train_tokenizer(iter(["river stone cloud amber"] * 9), 300)
    tokenizer.save(folder)
    size, prefix = tokenizer.vocabulary_size, tokenizer.prefix_id
    network: Any = build_network(PRESETS["nano"], size, prefix, 0)
    network.get_input_embeddings().weight.data.mul_(1e38)
    network.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    ("method", "dtype", "warmup"),
    [("blade", "bfloat16", 400), ("blade", "float32", 0), ("perplexity", "bfloat16", 0)],
)
def test_a_pretrained_model_that_overflows_ends_in_a_sentence_at_once(
    method: str, dtype: str, warmup: int, overflowing: Path, inputs: Path, tmp_path: Path
) -> None:
    """With and without a step of training before the first score."""
    settings = {**SMALL, "blade__warmup_tokens": warmup, "compute__dtype": dtype}
    settings |= {"model__name": str(overflowing), "method": method}
    with pytest.raises(NonFiniteLoss) as caught:
        run_tiny(inputs, tmp_path / "out", **settings)
    assert re.fullmatch(
        "Step 0 of the proxy model gave a loss of .* and a gradient norm of (nan|inf); no step has "
        r"been taken yet, so going back would change nothing\.",
        caught.value.problem,
    )
    assert caught.value.remedy == NOT_TRAINED
    assert "rollbacks" not in json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert_files_are_finite(tmp_path / "out")
