"""`curate evaluate` as a whole: what it writes, that it goes on, and what no arm may see."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_helpers import (
    SMALL,
    evaluate_small,
    report_of,
    small_preset,  # noqa: F401
    without_times,
    write_test,
)
from run_helpers import Run, curate, digest, log_rows, shared_run, snapshot
from tiny_models import one_thread  # noqa: F401

from curate.evaluation import Evaluation, order, record
from curate.evaluation.record import Results
from curate.evaluation.train import Measure
from curate.pipeline.folder import RunFolder
from curate.read.documents import Documents
from curate.read.tokenizer import train_tokenizer
from curate.train.model import PRESETS, build_network

FLAGS = [
    part
    for key, value in SMALL.items()
    for part in (f"--{key.replace('_', '-')}", str(value))
]  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test(tmp_path_factory.mktemp("test") / "test.parquet")


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the shared run, to be evaluated."""
    return finished.copy(tmp_path / "out")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(arm, seed) of every model trained, in order."""
    seen: list[tuple[str, int]] = []
    train = order._train

    def spy(inputs: Any, plan: Any, arm: str, seed: int, progress: Any) -> list[Measure]:
        seen.append((arm, seed))
        return train(inputs, plan, arm, seed, progress)

    monkeypatch.setattr(order, "_train", spy)
    return seen


@dataclass(frozen=True)
class Evaluated:
    """A run that was evaluated once for all tests that only look: what was there, what was said."""

    run: Run
    evaluation: Evaluation
    before: dict[str, str]
    log_before: dict[str, Any]

    @property
    def report(self) -> dict[str, Any]:
        return self.evaluation.report


@pytest.fixture(scope="module")
def evaluated(
    finished: Run,
    test_set: Path,
    small_preset: None,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Evaluated:
    run = finished.copy(tmp_path_factory.mktemp("evaluated") / "out")
    before, log = snapshot(run.out), log_rows(run)
    evaluation, _ = evaluate_small(run, test_set)
    return Evaluated(run, evaluation, before, log)


# What it writes and prints.


def test_the_command(run: Run, test_set: Path) -> None:
    result = curate(
        "evaluate", run.out, "--test", test_set, *FLAGS, "--multiples", "1,2"
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    first, second, third, fourth, *told = result.stderr.splitlines()
    assert first == f"evaluate {run.out}: curated; random; pool (1x, 2x); seeds 0, 1"
    assert second.startswith("model tiny, 0.0 M parameters, window 32, batch 128 tokens, ")
    assert re.match(r"384 tokens an arm = 3 steps; passes: [\d.]+ over curated \(\d+\), ", third)
    assert re.fullmatch(
        r"held out: target test \d+ tokens in 8 documents, "
        r"general sample \d+ tokens in \d+ pool documents",
        fourth,
    )
    names = [f"{arm}, seed {seed}" for seed in (0, 1) for arm in ("curated", "random", "pool")]
    assert [line.partition(":")[0] for line in told] == names
    numbers = r": target [\d.]+, general [\d.]+ bits per byte, [\d.]+ s"
    assert all(re.search(numbers, line) for line in told)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["curated", "random", "pool", "pool"]
    assert lines[6] == ""
    starts = ("curated - random: target ", "curated - pool: target ", "", "Verdict: ")
    starts += (
        "Token multiplier: ",
        "Cost: selection ",
        "Warning: The smallest budget is 3 steps of",
    )
    assert all(line.startswith(start) for line, start in zip(lines[7:], starts, strict=True))


def test_json(evaluated: Evaluated, test_set: Path) -> None:
    """A finished evaluation is only reported, so this costs nothing."""
    flags = [*FLAGS, "--multiples", "1,2", "--format", "json"]
    result = curate("evaluate", evaluated.run.out, "--test", test_set, *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == report_of(evaluated.run)


def test_the_report_is_complete(evaluated: Evaluated) -> None:
    report = report_of(evaluated.run)
    assert evaluated.report == report
    rows = [(one["arm"], one["multiple"], one["seed"]) for one in report["results"]]
    arms = [("curated", 1.0), ("random", 1.0), ("pool", 1.0), ("pool", 2.0)]
    assert rows == [(*arm, seed) for arm in arms for seed in (0, 1)]
    for one in report["results"]:
        budget = 384 * one["multiple"]
        assert one["budget"] == budget
        assert budget <= one["tokens"] < budget + SMALL["batch_tokens"] + SMALL["window"]
    assert report["settings"]["parameters"] > 0
    assert report["versions"].keys() == {"curate", "torch"}
    assert (report["device"], report["threads"]) == ("cpu", 1)
    kept = sum(pq.read_metadata(part).num_rows for part in evaluated.run.parts())
    sizes = report["sizes"]["datasets"]["curated"]
    assert sizes["documents"] + sizes["held_out_documents"] == kept


def test_the_means_are_those_of_the_results(evaluated: Evaluated) -> None:
    report = evaluated.report
    bits = {
        (one["arm"], one["multiple"], one["seed"]): one["bits_per_byte"]["target"]
        for one in report["results"]
    }
    curated = [bits["curated", 1.0, seed] for seed in (0, 1)]
    random = [bits["random", 1.0, seed] for seed in (0, 1)]
    summary = next(one for one in report["arms"] if one["arm"] == "random")
    assert summary["target"]["mean"] == pytest.approx(np.mean(random))
    difference = report["comparisons"][0]
    assert (difference["arm"], difference["minus"]) == ("curated", "random")
    values = np.subtract(curated, random)
    half = 12.7062047 * values.std(ddof=1) / 2**0.5
    assert difference["target"]["mean"] == pytest.approx(values.mean())
    assert difference["target"]["low"] == pytest.approx(values.mean() - half)
    assert difference["target"]["high"] == pytest.approx(values.mean() + half)


def test_the_multiplier_is_of_tokens_trained_on(run: Run, test_set: Path) -> None:
    """One step of 128 tokens, whether 30, 60 or 120 are asked for, is one point of the curve."""
    report = evaluate_small(run, test_set, tokens=30, multiples=(1.0, 2.0, 4.0))[0].report
    assert {one["steps"] for one in report["results"]} == {1}
    rows = {(one["arm"], one["multiple"]): one for one in report["arms"]}
    pool, curated = rows["pool", 1.0], rows["curated", 1.0]
    for multiple in (2.0, 4.0):
        for name in ("tokens", "passes", "target"):
            assert rows["pool", multiple][name] == pool[name]
    words = report["token_multiplier"]["words"]
    assert words.removeprefix("less than ").removeprefix("more than ") == (
        f"{pool['tokens'] / curated['tokens']:.3g}x"
    )


def test_the_log_has_the_results(evaluated: Evaluated) -> None:
    run = evaluated.run
    rows = run.sql("FROM evaluation")
    assert len(rows) == 8
    for row, one in zip(rows, evaluated.report["results"], strict=True):
        bits, loss = one["bits_per_byte"], one["loss"]
        expected = (one["arm"], one["seed"], one["tokens"], bits["target"], bits["general"])
        assert row == (*expected, loss["target"], loss["general"], one["seconds"])
    comments = run.sql(
        "SELECT column_name FROM duckdb_columns() "
        "WHERE table_name = 'evaluation' AND comment IS NOT NULL"
    )
    assert len(comments) == 8
    result = curate("log", run.out, "--sql", "SELECT DISTINCT arm FROM evaluation ORDER BY arm")
    assert result.stdout.split()[2:5] == ["curated", "pool", "random"]


def test_the_rest_of_the_log_is_what_it_was(evaluated: Evaluated) -> None:
    after = log_rows(evaluated.run)
    del after["evaluation"]
    assert after == evaluated.log_before
    views = evaluated.run.sql("SELECT count(*) FROM keep_rate_by_source")
    assert views[0][0] > 0


def test_the_manifest_knows_the_new_files(evaluated: Evaluated) -> None:
    folder = RunFolder.open_finished(evaluated.run.out)
    assert {"evaluation.json", "selection_log.duckdb"} <= folder.files.keys()
    for name, sha in folder.files.items():
        assert sha == digest(evaluated.run.out / name)
    assert folder.result("complete") is not None


def test_nothing_else_was_touched(evaluated: Evaluated) -> None:
    before, after = evaluated.before, snapshot(evaluated.run.out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"selection_log.duckdb", "manifest.json", "state/lock"}
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert new == {"evaluation", "evaluation.json"}
    assert not (evaluated.run.out / "evaluation" / "sample").exists()


def test_the_dataset_still_loads(evaluated: Evaluated, tmp_path: Path) -> None:
    rows = datasets.load_dataset(str(evaluated.run.out), split="train", cache_dir=str(tmp_path))
    assert len(rows) == sum(pq.read_metadata(part).num_rows for part in evaluated.run.parts())


# Resume and reuse.


def test_a_finished_evaluation_only_reports(
    run: Run, test_set: Path, trainings: list[tuple[str, int]]
) -> None:
    first, _ = evaluate_small(run, test_set)
    before = snapshot(run.out)
    trainings.clear()
    second, printed = evaluate_small(run, test_set)
    assert second == first
    assert (trainings, printed) == ([], "")
    assert snapshot(run.out) == before


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_evaluation_goes_on(
    run: Run,
    finished: Run,
    test_set: Path,
    tmp_path: Path,
    trainings: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    whole = finished.copy(tmp_path / "whole")
    evaluate_small(whole, test_set)
    trainings.clear()
    add = Results.add

    def interrupted(self: Results, facts: Any, measures: list[Measure]) -> None:
        if len(trainings) > after:
            raise KeyboardInterrupt
        add(self, facts, measures)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_small(run, test_set)
    assert not (run.out / "evaluation.json").exists()
    trainings.clear()
    _, printed = evaluate_small(run, test_set)
    assert len(trainings) == 6 - after
    assert (f"{after} of 6 results are there already" in printed) == (after > 0)
    assert without_times(report_of(run)) == without_times(report_of(whole))


@pytest.mark.parametrize(
    ("place", "name"), [(record, "write_text"), (RunFolder, "record_files"), (RunFolder, "_write")]
)
def test_an_interrupted_report_is_written_again(
    run: Run, test_set: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    """The log has the rows of two seeds, but neither the report nor the manifest knows."""

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    evaluate_small(run, test_set, seeds=1)
    old = report_of(run)
    evaluate_small(run, test_set)
    evaluate_small(run, test_set, seeds=1)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_small(run, test_set)
    evaluate_small(run, test_set, seeds=1)
    assert without_times(report_of(run)) == without_times(old)
    files = RunFolder.open_finished(run.out).files
    assert all(files[name] == digest(run.out / name) for name in files)
    assert len(run.sql("FROM evaluation")) == 4


def test_more_seeds_train_only_the_new_ones(
    run: Run, test_set: Path, trainings: list[tuple[str, int]]
) -> None:
    evaluate_small(run, test_set)
    trainings.clear()
    evaluate_small(run, test_set, seeds=3)
    assert trainings == [("curated", 2), ("random", 2), ("pool", 2)]
    trainings.clear()
    evaluate_small(run, test_set, seeds=1)
    assert trainings == []
    assert report_of(run)["settings"]["seeds"] == [0]
    evaluate_small(run, test_set, seeds=2, first_seed=2)
    assert trainings == [("curated", 3), ("random", 3), ("pool", 3)]
    assert report_of(run)["settings"]["seeds"] == [2, 3]
    evaluate_small(run, test_set, seeds=2)
    assert report_of(run)["settings"]["seeds"] == [0, 1]


def test_evaluations_can_share_results(
    run: Run, finished: Run, test_set: Path, tmp_path: Path, trainings: list[tuple[str, int]]
) -> None:
    shared = tmp_path / "results"
    evaluate_small(run, test_set, results=shared)
    trainings.clear()
    other = finished.copy(tmp_path / "other")
    evaluate_small(other, test_set, results=shared)
    assert trainings == []
    assert without_times(report_of(other)) == without_times(report_of(run))


def test_another_test_set_is_another_evaluation(
    run: Run, test_set: Path, tmp_path: Path, trainings: list[tuple[str, int]]
) -> None:
    evaluate_small(run, test_set)
    trainings.clear()
    evaluate_small(run, write_test(tmp_path / "b.parquet", ["river stone cloud"]))
    assert len(trainings) == 6


def test_the_same_seed_gives_the_same_numbers(
    run: Run, finished: Run, test_set: Path, tmp_path: Path
) -> None:
    other = finished.copy(tmp_path / "other")
    for one in (run, other):
        evaluate_small(one, test_set, seeds=1)
    assert without_times(report_of(run)) == without_times(report_of(other))


# What arms see.


def test_no_arm_sees_the_held_out_documents(
    run: Run, test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Run
) -> None:
    seen: dict[str, set[int]] = {}
    held: list[Callable[[Any], Any]] = []
    stream = order.arm_stream

    def watched(plan: Any, arm: str, seed: int, scratch: Path) -> Iterator[Documents]:
        held.append(plan.held_out.holds)
        for block in stream(plan, arm, seed, scratch):
            seen.setdefault(arm, set()).update(block.ids.tolist())
            yield block

    monkeypatch.setattr(order, "arm_stream", watched)
    other = finished.copy(tmp_path / "other")
    evaluate_small(run, test_set, against=(other.out,), tokens=3000, seeds=1)
    every = {number for (number,) in run.sql("SELECT document_id FROM document WHERE tokens > 0")}
    held_out = {number for number in every if held[0](np.array([number]))[0]}
    assert held_out
    assert seen["pool"] == every - held_out
    kept = {number for (number,) in run.sql("SELECT document_id FROM document WHERE kept")}
    assert seen["curated"] == seen[str(other.out)]
    assert seen["curated"] <= kept - held_out
    assert seen["random"] < every - held_out
    assert seen["random"] != seen["curated"]


def test_random_samples_differ_by_seed_and_have_the_kept_tokens(
    run: Run, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[dict[int, int]] = []
    stream = order.arm_stream

    def watched(plan: Any, arm: str, seed: int, scratch: Path) -> Iterator[Documents]:
        sizes: dict[int, int] = {}
        if arm == "random":
            samples.append(sizes)
        for block in stream(plan, arm, seed, scratch):
            if arm == "random":
                sizes.update(zip(block.ids.tolist(), block.lengths.tolist(), strict=True))
            yield block

    monkeypatch.setattr(order, "arm_stream", watched)
    report = evaluate_small(run, test_set, tokens=2000, window=1024, batch_tokens=1024)[0].report
    assert samples[0].keys() != samples[1].keys()
    longest = run.sql("SELECT max(tokens) FROM document")[0][0]
    wanted = report["sizes"]["random_sample_tokens"]
    for sizes in samples:
        assert abs(sum(sizes.values()) - wanted) <= longest


def test_a_run_against_its_own_copy_differs_by_nothing(
    run: Run, finished: Run, test_set: Path, tmp_path: Path, trainings: list[tuple[str, int]]
) -> None:
    other = finished.copy(tmp_path / "other")
    report = evaluate_small(run, test_set, against=(other.out,))[0].report
    assert len(trainings) == 8
    twin = next(one for one in report["comparisons"] if one["minus"] == str(other.out))
    nothing = {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 2}
    assert (twin["target"], twin["general"]) == (nothing, nothing)


def test_one_seed_says_that_it_cannot_tell(run: Run, test_set: Path) -> None:
    report = evaluate_small(run, test_set, seeds=1)[0].report
    assert report["verdict"] == {
        "words": "no measurable benefit",
        "why": "one seed cannot tell a gain from chance; give --seeds 3 or more.",
    }


# Text that is tokenized again, moved or known.


def test_tokens_are_made_again_where_the_state_is_gone(
    run: Run, finished: Run, test_set: Path, tmp_path: Path
) -> None:
    whole = finished.copy(tmp_path / "whole")
    evaluate_small(whole, test_set, seeds=1)
    tokenizer = run.out / "tokenizer"
    if not tokenizer.exists():
        shutil.copytree(run.out / "state" / "tokenizer", tokenizer)
    shutil.rmtree(run.out / "state")
    evaluate_small(run, test_set, seeds=1)
    assert (run.out / "evaluation" / "tokens" / "cache.json").exists()
    ours, theirs = report_of(run), report_of(whole)
    for key in ("sizes", "settings"):
        assert ours[key] == theirs[key]
    assert without_times(ours["results"]) == without_times(theirs["results"])


def test_a_pretrained_model_reads_with_its_own_tokenizer(
    run: Run, test_set: Path, tmp_path: Path, trainings: list[tuple[str, int]]
) -> None:
    """The pool and the dataset are tokenized again; other weights are another evaluation."""
    folder = tmp_path / "model"
    tokenizer = train_tokenizer(iter(["river stone cloud amber"] * 9), 300)
    tokenizer.save(folder)
    size, prefix = tokenizer.vocabulary_size, tokenizer.prefix_id
    for seed in (0, 1):
        build_network(PRESETS["tiny"], size, prefix, seed).save_pretrained(str(folder))
        few = {"model": str(folder), "seeds": 1, "multiples": (1.0,)}
        report = evaluate_small(run, test_set, **few)[0].report
        assert report["settings"]["model"] == str(folder)
        assert report["sizes"]["pool_tokens"] != run.sql("SELECT pool_tokens FROM run")[0][0]
        assert len(trainings) == 3 * (seed + 1)
    assert (run.out / "evaluation" / "tokens" / "cache.json").exists()


def test_a_test_that_was_a_target_is_told(run: Run, finished: Run, tmp_path: Path) -> None:
    other = finished.copy(tmp_path / "other").out
    target = run.inputs / "target.parquet"
    report = evaluate_small(run, target, seeds=1, against=(other,))[0].report
    assert report["warnings"][:2] == [
        f"The test is the target that {name} selected for: its gain on other text of the kind is "
        "likely smaller."
        for name in ("the run", other)
    ]


def test_a_test_document_in_the_kept_set_is_told(run: Run, tmp_path: Path) -> None:
    texts = pq.read_table(run.parts()[0])["text"].to_pylist()
    test = write_test(tmp_path / "test.parquet", [texts[0], "amber falcon"])
    result = curate("evaluate", run.out, "--test", test, *FLAGS, "--multiples", "1")
    assert result.exit_code == 0, result.stderr
    warning = (
        "1 documents of curated have the very text of a test document: the test is not unseen."
    )
    assert result.stdout.splitlines()[-1] == f"Warning: {warning}"
