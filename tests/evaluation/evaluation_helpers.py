"""A model small enough for tests, and evaluations of the runs that tests share."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_helpers import Run, words

from curate.evaluation import EvaluateSettings, Evaluation, evaluate
from curate.train.model import PRESETS

SMALL = {"window": 32, "batch_tokens": 128, "tokens": 384, "threads": 1, "seeds": 2}
"""Three steps for each of two seeds."""


@pytest.fixture(autouse=True, scope="module")
def small_preset() -> Iterator[None]:
    """For test modules to import: `tiny` becomes a model of one layer of 32."""
    llama = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64}
    shape = replace(PRESETS["tiny"], llama=llama, learning_rate=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", shape)
        yield


def write_test(path: Path, texts: list[str] | None = None) -> Path:
    """A test set of the words that the shared pool is made of, an empty document among them."""
    random = np.random.default_rng(1234)
    given = [*(words(random, 11) for _ in range(8)), ""] if texts is None else texts
    pq.write_table(pa.table({"text": given}), path)
    return path


def settings_of(run: Run, test: Path, **changes: Any) -> EvaluateSettings:
    """The settings of a small evaluation of a run."""
    values: dict[str, Any] = {"out": run.out, "test": str(test), "multiples": (1.0, 2.0), **SMALL}
    return EvaluateSettings(**{**values, **changes})


def evaluate_small(run: Run, test: Path, **changes: Any) -> tuple[Evaluation, str]:
    """A small evaluation in this process, and what it printed on the way."""
    printed = io.StringIO()
    return evaluate(settings_of(run, test, **changes), printed), printed.getvalue()


def report_of(run: Run) -> dict[str, Any]:
    """The report in a run's folder."""
    report: dict[str, Any] = json.loads((run.out / "evaluation.json").read_text())
    return report


def without_times(tree: Any) -> Any:
    """A report with every number of seconds left out."""
    if isinstance(tree, dict):
        return {key: without_times(one) for key, one in tree.items() if "seconds" not in key}
    if isinstance(tree, list):
        return [without_times(one) for one in tree]
    return tree
