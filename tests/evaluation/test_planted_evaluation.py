"""A pool of two made-up languages: what was selected for one of them must be found to help."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_helpers import evaluate_small, small_preset, write_test  # noqa: F401
from run_helpers import Run, run_tiny
from tiny_models import one_thread, planted_text  # noqa: F401

ROWS = 800
EARLY = {
    "tokens": 2048,
    "batch_tokens": 256,
    "learning_rate": 0.01,
    "seeds": 3,
    "multiples": (1.0,),
}
"""Eight steps, while which letters there are is what is being learned."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even rows in one language, odd rows in the other; targets and tests of the first."""
    place = tmp_path_factory.mktemp("planted")
    (place / "pool").mkdir()
    texts = [planted_text(row % 2, row) for row in range(ROWS)]
    pq.write_table(pa.table({"text": texts}), place / "pool" / "0.parquet")
    target = [planted_text(0, 10_000 + row) for row in range(40)]
    pq.write_table(pa.table({"text": target}), place / "target.parquet")
    write_test(place / "test.parquet", [planted_text(0, 20_000 + row) for row in range(40)])
    return place


@pytest.fixture(scope="module")
def selected(planted: Path) -> Run:
    run = run_tiny(planted, planted / "out", keep=0.3)
    found = run.sql("SELECT avg((row % 2 = 0)::INTEGER) FROM document WHERE kept")
    assert found[0][0] > 0.8, "the selection did not find the planted language"
    return run


def test_a_planted_effect_is_found(planted: Path, selected: Run) -> None:
    other = run_tiny(planted, planted / "out-random", method="random", keep=0.3)
    test = planted / "test.parquet"
    report = evaluate_small(selected, test, against=(other.out,), **EARLY)[0].report
    assert report["verdict"]["words"] == "better"
    to_random, to_other, to_pool = report["comparisons"]
    assert [one["minus"] for one in report["comparisons"]] == ["random", str(other.out), "pool"]
    for one in (to_random, to_other, to_pool):
        assert one["target"]["high"] < 0
    assert to_random["general"]["mean"] > 0  # what was given up is told too
    assert report["token_multiplier"]["words"][0] != "l"


def test_selecting_the_other_language_is_worse(planted: Path, selected: Run) -> None:
    test = write_test(planted / "other.parquet", [planted_text(1, 30_000 + i) for i in range(40)])
    report = evaluate_small(selected, test, **EARLY)[0].report
    assert report["verdict"]["words"] == "worse"
    assert report["token_multiplier"]["words"] == "less than 1x"


def test_a_random_selection_has_no_measurable_benefit(planted: Path) -> None:
    run = run_tiny(planted, planted / "null", method="random", keep=0.3, seed=5)
    report = evaluate_small(run, planted / "test.parquet", **EARLY)[0].report
    assert report["verdict"]["words"] == "no measurable benefit"
    assert report["verdict"]["why"] == (
        "the 95 % interval of curated - random on the target test contains 0."
    )
