"""Comparisons of small logs against the same figures in plain Python."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from compare_sample import (
    FIRST,
    RUN,
    SECOND,
    SOURCES,
    Sample,
    average_ranks,
    check_pair,
    expected_spearman,
    kept_rows,
    near,
    rewrite,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.log.compare import compare, spearman
from curate.log.compare_text import render_comparison


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that no test changes; they are where the example of the verb has them."""
    folder = tmp_path_factory.mktemp("compare")
    return FIRST.build(folder / "out"), SECOND.build(folder / "out-random")


def test_a_pair_is_what_plain_python_finds(pair):
    found = compare(pair)["pairs"][0]
    assert (found["first"], found["second"]) == ("A", "B")
    check_pair(found, FIRST, SECOND)
    assert (found["shared_tokens"], found["overlap"]) == (20, 20 / 70)
    assert found["random_overlap"] == 0.6


def test_runs_are_told_by_what_they_were_asked_for_and_what_they_kept(pair):
    assert compare(pair)["runs"] == [
        {
            "name": "A", "out": str(pair[0]), "run_id": None, "method": "blade",
            "granularity": "document", "keep": 0.35, "seed": 7, "pool_documents": 6,
            "pool_tokens": 200, "kept_documents": 3, "kept_tokens": 70,
        },
        {
            "name": "B", "out": str(pair[1]), "run_id": None, "method": "random",
            "granularity": "document", "keep": 0.6, "seed": 8, "pool_documents": 6,
            "pool_tokens": 200, "kept_documents": 2, "kept_tokens": 120,
        },
    ]  # fmt: skip


def test_shares_of_kept_tokens_by_metadata(pair):
    shares = compare(pair, by="source")["shares"]
    assert (shares["column"], shares["values"]) == ("source", 3)
    assert [row["value"] for row in shares["rows"]] == [None, "math", "web"]
    assert [row["share_of_pool_tokens"] for row in shares["rows"]] == [0.5, 0.3, 0.2]
    assert [row["kept_tokens"] for row in shares["rows"]] == [
        {"A": 0, "B": 100},
        {"A": 60, "B": 20},
        {"A": 10, "B": 0},
    ]
    assert shares["rows"][1]["share_of_kept_tokens"] == {"A": 60 / 70, "B": 20 / 120}


def test_the_documents_that_runs_disagree_on_most(pair):
    found = compare(pair, top=1)["pairs"][0]
    assert found["kept_by_first_only"] == [
        {
            "document": "0:0",
            "document_id": 0,
            "tokens": 10,
            "value": "web",
            "first": {
                "kept": True, "percentile": 0.9, "weight": 1.5, "reason": "selected",
            },
            "second": {
                "kept": False, "percentile": 0.1, "weight": 0.0, "reason": "never_selected",
            },
        }
    ]  # fmt: skip
    assert [one["document"] for one in found["kept_by_second_only"]] == ["0:5"]
    assert found["documents_kept_by_first_only"] == 2
    assert compare(pair, top=0)["pairs"][0]["kept_by_first_only"] == []


def test_three_runs_make_three_pairs(pair):
    found = compare([*pair, pair[0]])
    assert [run["name"] for run in found["runs"]] == ["A", "B", "C"]
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [
        ("A", "B"),
        ("A", "C"),
        ("B", "C"),
    ]
    assert found["pairs"][1]["spearman"] == 1.0
    assert set(found["shares"]["rows"][0]["kept_tokens"]) == {"A", "B", "C"}


def test_constant_scores_have_no_correlation(pair, tmp_path):
    constant = Sample(kept=SECOND.kept, rounds=[[0.1] * 6]).build(tmp_path / "constant")
    found = compare([pair[0], constant])["pairs"][0]
    assert (found["documents_scored"], found["spearman"]) == (5, None)
    assert found["kept_by_second_only"][0]["second"]["percentile"] == 0.5


def test_documents_without_a_score_come_last(pair, tmp_path):
    bare = Sample(kept=[False] * 6, rounds=[[None, 1.0, None, None, 2.0, None]])
    found = compare([pair[0], bare.build(tmp_path / "bare")])["pairs"][0]
    check_pair(found, FIRST, bare)
    assert found["kept_by_first_only"][-1]["document"] == "0:0"
    assert found["kept_by_first_only"][-1]["second"]["percentile"] is None


def test_runs_that_kept_and_scored_nothing(tmp_path):
    nothing = Sample(kept=[False] * 6, rounds=[], run={}, metadata={})
    found = compare([nothing.build(tmp_path / "a"), nothing.build(tmp_path / "b")])
    check_pair(found["pairs"][0], nothing, nothing)
    assert found["shares"] is None
    assert found["runs"][0]["method"] is None
    assert "A and B               0            -" in render_comparison(found)


def with_parts(sample: Sample, out: Path, tokens_kept: Sequence[int]) -> Path:
    values = ", ".join(f"({row}, {count})" for row, count in enumerate(tokens_kept))
    columns = "document_id, shard_id, row, tokens, bytes, weight, n AS tokens_kept, n > 0 AS kept"
    return rewrite(
        sample.build(out),
        f"CREATE TABLE parts AS SELECT {columns}, reason, source "
        f"FROM document JOIN (VALUES {values}) AS v(id, n) ON id = document_id",
        "DROP TABLE document",
        "ALTER TABLE parts RENAME TO document",
    )


def test_kept_parts_of_documents_are_counted_by_their_tokens(pair, tmp_path):
    parts = with_parts(SECOND, tmp_path / "parts", [5, 0, 0, 30, 40, 50])
    more = with_parts(FIRST, tmp_path / "more", [10, 0, 0, 15, 0, 90])
    found = compare([pair[0], parts, more], by="source")
    assert [run["kept_tokens"] for run in found["runs"]] == [70, 125, 115]
    whole, _, both = found["pairs"]
    assert (whole["shared_tokens"], whole["shared_tokens_at_least"]) == (45, 45)
    assert whole["overlap"] == 45 / 70
    assert (both["shared_tokens"], both["shared_tokens_at_least"]) == (5 + 15 + 50, 5 + 15 + 40)
    assert found["shares"]["rows"][0]["kept_tokens"] == {"A": 0, "B": 50, "C": 90}
    bounds = [both[name] for name in ("overlap_at_least", "overlap", "random_overlap")]
    assert bounds == [60 / 115, 70 / 115, pytest.approx(125 / 200)]
    assert (both["jaccard_at_least"], both["jaccard"]) == (60 / 180, 70 / 170)
    text = render_comparison(found)
    assert text.count("the logs do not say which") == 1
    assert "B and C: both keep parts of documents, and the logs do not say which: what" in text
    line = next(line for line in text.splitlines() if line.startswith("B and C"))
    assert "60 to 70  52.2 to 60.9 %     62.5 %  33.3 to 41.2 %     42.8 %" in line


def test_tokenizers_that_count_differently(pair, tmp_path):
    """Everything kept by both is the same selection, however many tokens it is."""
    other = [11, 19, 0, 60, 40, 130]
    everything = [True] * 6
    rounds = [[0.5, 0.25, None, 0.125, 0.0625, -2.0]]
    ours = Sample(kept=everything, rounds=rounds).build(tmp_path / "ours")
    theirs = Sample(kept=everything, rounds=rounds, tokens=other).build(tmp_path / "theirs")
    found = compare([ours, theirs], by="source")
    [one] = found["pairs"]
    assert one["documents_counted_differently"] == 4
    for name in ("overlap", "jaccard", "random_overlap", "random_jaccard"):
        assert one[name] == 1.0, name
    assert (one["shared_tokens"], one["shared_tokens_at_least"]) == (200, 200)
    for row in found["shares"]["rows"]:
        assert set(row["share_of_kept_tokens"].values()) == {row["share_of_pool_tokens"]}
    assert "A and B: their tokenizers differ; the tokens of both are counted as A counts" in (
        render_comparison(found)
    )
    less = Sample(kept=SECOND.kept, rounds=rounds, tokens=other).build(tmp_path / "less")
    there, back = (compare(outs)["pairs"][0] for outs in ([pair[0], less], [less, pair[0]]))
    assert (there["shared_tokens"], there["overlap"]) == (20, 20 / 70)
    assert (back["shared_tokens"], back["overlap"]) == (19, 19 / (11 + 19 + 40))


@pytest.mark.parametrize(
    ("average", "ahead"), [("last", True), ("uniform", False), ("linear", False)]
)
def test_documents_rank_as_the_run_averaged_its_decisions(tmp_path, average, ahead):
    """0:1 is a little ahead of 0:3 in the last round and far behind in the one before.

    Standardized: -1.34 and 1.34 in the first round, 0.45 and -0.45 in the last, so that weights of
    1 and 2 leave 0:3 ahead too.
    """
    sample = Sample(
        kept=[False] * 6,
        rounds=[[None, -3.0, None, 3.0, -1.0, 1.0], [None, 1.0, None, -1.0, 3.0, -3.0]],
        run={**RUN, "config": f'{{"blade": {{"average": "{average}"}}}}'},
    )
    out = sample.build(tmp_path / "a")
    other = Sample(kept=[False, True, False, True, False, False], rounds=sample.rounds, run=RUN)
    found = compare([other.build(tmp_path / "b"), out])["pairs"][0]
    ranks = {one["document"]: one["second"]["percentile"] for one in found["kept_by_first_only"]}
    assert (ranks["0:1"] > ranks["0:3"]) == ahead


def test_documents_rank_by_the_weights_of_their_passes(tmp_path):
    """0:1 is decided in the first and the last of three passes (weights 1, 3), 0:3 in the last.

    Standardized: 1.39 and 0 beside 0.39. Were the visits counted (1 and 2), 0:1 would be ahead.
    """
    blade = '{"blade": {"average": "linear", "passes": 2, "final": "rescore"}}'
    sample = Sample(
        kept=[False] * 6,
        rounds=[
            [None, 3.0, None, None, -1.0, -2.0],
            [None, None, None, None, 1.0, -1.0],
            [None, 0.0, None, 1.0, 3.0, -4.0],
        ],
        run={**RUN, "config": blade},
    )
    out = sample.build(tmp_path / "a")
    other = Sample(kept=[False, True, False, True, False, False], rounds=sample.rounds, run=RUN)
    found = compare([other.build(tmp_path / "b"), out])["pairs"][0]
    ranks = {one["document"]: one["second"]["percentile"] for one in found["kept_by_first_only"]}
    assert ranks["0:3"] > ranks["0:1"]


SCORES = st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), min_size=6, max_size=6)
SAMPLES = st.builds(
    Sample,
    kept=st.lists(st.booleans(), min_size=6, max_size=6),
    rounds=st.lists(SCORES, min_size=1, max_size=3),
)


@given(first=SAMPLES, second=SAMPLES)
@settings(max_examples=20, deadline=None)
def test_any_two_runs(
    pair, tmp_path_factory: pytest.TempPathFactory, first: Sample, second: Sample
):
    folder = tmp_path_factory.mktemp("any")
    outs = first.build_from(pair[0], folder / "a"), second.build_from(pair[0], folder / "b")
    there, itself, back = compare([*outs, outs[0]])["pairs"]
    check_pair(there, first, second)
    check_symmetry(there, back)
    check_self(itself, first)
    shutil.rmtree(folder)


def check_symmetry(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = ("documents_scored", "spearman", "shared_tokens", "overlap", "jaccard")
    assert [one[name] for name in same] == [other[name] for name in same]
    for name, mirrored in (("first", "second"), ("second", "first")):
        ids = [row["document_id"] for row in one[f"kept_by_{name}_only"]]
        assert ids == [row["document_id"] for row in other[f"kept_by_{mirrored}_only"]]


def check_self(found: dict[str, Any], sample: Sample) -> None:
    some = sum(sample.tokens[row] for row in kept_rows(sample)) > 0
    assert found["spearman"] == (None if expected_spearman(sample, sample) is None else 1.0)
    assert found["overlap"] == found["jaccard"] == (1.0 if some else None)
    assert found["kept_by_first_only"] == found["kept_by_second_only"] == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_spearman_from_sums(values: list[tuple[int, int]]):
    x, y = (2 * average_ranks([v[side] for v in values]).astype(int) for side in (0, 1))
    pairs = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
    sums = {"n": len(values), **{name: int(v.sum()) for name, v in pairs.items()}}
    degenerate = len(values) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    expected = None if degenerate else float(np.corrcoef(x, y)[0, 1])
    assert spearman(sums) == near(expected)


def test_the_column_is_chosen_as_the_summary_does(tmp_path):
    columns = {
        "same": pa.array(["x"] * 6),
        "unique": pa.array(range(6)),
        'odd "name"': pa.array(SOURCES),
    }
    out = Sample(kept=FIRST.kept, rounds=FIRST.rounds, metadata=columns).build(tmp_path / "a")
    chosen = compare([out, out])["shares"]
    assert chosen["column"] == curate.summary(out)["keep_rates"]["column"] == 'odd "name"'
    assert compare([out, out], by="unique")["shares"]["values"] == 6


def test_a_column_that_only_one_run_has(pair, tmp_path):
    metadata = {"stamp": pa.array([1] * 6, pa.timestamp("us", "UTC"))}
    out = Sample(kept=FIRST.kept, rounds=FIRST.rounds, metadata=metadata).build(tmp_path / "a")
    shares = compare([pair[0], out], by="stamp")["shares"]
    assert [row["kept_tokens"] for row in shares["rows"]] == [{"A": 70, "B": 70}]
    assert isinstance(shares["rows"][0]["value"], str)
