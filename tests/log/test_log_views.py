"""The views' arithmetic, against numbers worked out by hand from `log_sample.py`."""

from __future__ import annotations

import itertools
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from log_sample import IDS, OUTCOMES, Log, write

from curate import records
from curate.log.schema import DOCUMENT_REASONS


def query(out: Path, sql: str) -> list[tuple]:
    with duckdb.connect(str(out / "selection_log.duckdb"), read_only=True) as log:
        return log.execute(sql).fetchall()


def test_kept_and_dropped_part_the_documents(built):
    kept = query(built, "SELECT document_id, weight FROM kept")
    dropped = query(built, "SELECT document_id, reason, source FROM dropped")
    assert kept == [(IDS[0], 1.25), (IDS[1], 0.75), (IDS[4], 1.0)]
    assert dropped == [
        (IDS[2], "empty", "web"),
        (IDS[3], "over_budget", "web"),
        (IDS[5], "never_selected", None),
    ]


def test_keep_rates(built):
    rows = query(built, "FROM keep_rate_by_source")
    assert [row[0] for row in rows] == [None, "math", "web"]
    assert [row[1:] for row in rows] == [
        pytest.approx((1, 0, 0, 100, 0, 0, 0.5, 0, 0)),
        pytest.approx((2, 2, 1, 60, 60, 1, 0.3, 6 / 7, 20 / 7)),
        pytest.approx((3, 1, 1 / 3, 40, 10, 0.25, 0.2, 1 / 7, 5 / 7)),
    ]


def test_the_histogram_has_forty_bins_a_round_that_hold_every_score(built):
    rows = query(built, "FROM score_histogram")
    assert [row[0] for row in rows] == [0] * 40 + [1] * 40
    first = [row for row in rows if row[0] == 0]
    assert first[0][1] == -2.0
    assert first[-1][2] == 0.5
    assert all(low[2] == high[1] for low, high in itertools.pairwise(first))
    filled = [row[1:] for row in first if row[3]]
    assert filled == [
        (-2.0, -1.9375, 1, 0),
        (0.0625, 0.125, 1, 0),
        (0.125, 0.1875, 1, 1),
        (0.25, 0.3125, 1, 1),
        (0.4375, 0.5, 1, 1),
    ]


Votes = list[tuple[float | None, float | None, float | None]]


def decide(
    log: Log,
    scores: list[float | None],
    threshold: float = 0.0,
    votes: Votes | None = None,
    lost: tuple[int, ...] = (),
) -> Path:
    """A log whose only round gave these scores, in which these votes are, to the first documents.

    A document's votes are of n-grams, for redundancy, and noise; `lost` are places of documents
    that were not kept in spite of their scores.
    """
    folder = log.folder / "state"
    folder.mkdir()
    count = len(scores)
    kept = [
        score is not None and score >= threshold and place not in lost
        for place, score in enumerate(scores)
    ]
    nothing = [None] * count
    parts = zip(*votes or [(None, None, None)] * count, strict=True)
    losses = [nothing] * 3
    columns = (IDS[:count], [0] * count, *[[1] * count] * 3, *losses, *parts)
    path = folder / "only.parquet"
    write(path, records.DECISION, (*columns, scores, [threshold] * count, kept, [1] * count))
    log.changes["decisions"] = [path]
    return log.build()


def test_the_histogram_of_one_value_and_of_values_that_are_not_numbers(log):
    out = decide(log, [0.5, 0.5, None, float("nan"), float("inf")])
    assert query(out, "FROM score_histogram") == [(0, 0.5, 0.5, 2, 2)]


def explanations(out: Path, document: int) -> list[str]:
    return [row[0] for row in query(out, f"SELECT explanation FROM why({document})")]


def test_why_tells_rounds_and_outcome_in_words(built):
    assert explanations(built, IDS[0]) == [
        "Round 0: excess loss 0.5 nats/token (proxy 4.5, reference 4); "
        "score 0.5 is above the cut-off 0.125: kept in this round.",
        "Round 1: score 0.75 is above the cut-off 0.5: kept in this round.",
        "Kept with weight 1.25 (the mean over kept tokens is 1): kept in 2 of 2 rounds, "
        "and inside the token budget.",
    ]
    assert explanations(built, IDS[3])[1:] == [
        "Round 1: score 0.5 is below the cut-off 0.75: not kept in this round.",
        "Dropped: kept in 1 of 2 rounds, but the token budget was spent on documents with higher "
        "weight or score.",
    ]
    assert explanations(built, IDS[4])[1] == (
        "Round 1: proxy loss 3.5 nats/token; score 0.25; its block kept nothing: not kept in "
        "this round."
    )


def test_why_tells_what_voted(log):
    votes = [(-0.25, 0.0, 1.5), (-0.25, None, None), (None, -0.5, None), (None, None, None)]
    out = decide(log, [1.0] * 4, votes=votes)
    found = [explanations(out, one)[0].split(" is above")[0] for one in IDS[:4]]
    assert found == [
        "Round 0: score 1 (-0.25 of it from an n-gram classifier, 0 of it for redundancy, 1.5 of "
        "it noise)",
        "Round 0: score 1 (-0.25 of it from an n-gram classifier)",
        "Round 0: score 1 (-0.5 of it for redundancy)",
        "Round 0: score 1",
    ]


def test_every_reason_has_its_sentence(built):
    said = {outcome[3]: explanations(built, id_)[-1] for id_, outcome in zip(IDS, OUTCOMES)}  # noqa: B905
    elsewhere = {"overruled", "quarantined"}  # test_run.py and test_quarantine.py have real ones
    assert set(said) == DOCUMENT_REASONS.keys() - elsewhere
    for reason, sentence in said.items():
        assert sentence.startswith(DOCUMENT_REASONS[reason].split(":")[0].capitalize())


def test_why_gives_rows_with_the_outcome_on_each(built):
    rows = query(
        built,
        f"SELECT round, kept, reason, document_kept, document_reason FROM why({IDS[3]})",
    )
    outcome = (False, "over_budget")
    assert rows == [
        (0, True, "above_threshold", *outcome),
        (1, False, "below_threshold", *outcome),
        (None, False, "over_budget", *outcome),
    ]
    assert query(built, "FROM why(-1)") == []


def test_numbers_that_look_alike_get_more_digits(log):
    out = decide(log, [0.12345678, 0.1], threshold=0.12345)
    assert "score 0.123456784 is above the cut-off 0.123450004" in explanations(out, IDS[0])[0]


def test_a_metadata_column_called_id_does_not_confuse_why(log):
    log.metadata = [("id", pa.array(list(IDS[::-1])))]
    out = log.build()
    assert explanations(out, IDS[2]) == ["Dropped: the document has no tokens."]


def test_no_metadata_column_confuses_why(log, built):
    """Whatever `why` calls its own columns, and in whatever case."""
    names = ["Rounds", "rounds_kept", "round", "score", "explanation", "document_kept", "c", "d"]
    log.metadata = [(name, pa.array(["many"] * len(IDS))) for name in names]
    out = log.build()
    assert [explanations(out, one) for one in IDS] == [explanations(built, one) for one in IDS]


def test_equal_scores_at_the_cut_off(log):
    out = decide(log, [0.5, 0.5, 0.25], threshold=0.5, lost=(1,))
    assert explanations(out, IDS[0])[0] == (
        "Round 0: score 0.5 is at the cut-off 0.5: kept in this round."
    )
    assert explanations(out, IDS[1])[0] == (
        "Round 0: score 0.5 is at the cut-off 0.5, where equal scores drew for the last places: "
        "not kept in this round."
    )


def test_sums_of_tokens_are_64_bit(built):
    kinds = dict(
        query(built, "SELECT column_name, column_type FROM (DESCRIBE keep_rate_by_source)")
    )
    assert (kinds["tokens"], kinds["tokens_kept"]) == ("BIGINT", "BIGINT")
