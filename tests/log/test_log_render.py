"""What users see: exact text of tables, CSV, JSON, `why` and the summary."""

from __future__ import annotations

import csv
import datetime
import io
import json
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_sample import RUN, Log

from curate.errors import InvalidInput
from curate.log import render
from curate.log.cells import MAXIMUM_WIDTH, cell, pad, shorten, visible, width
from curate.log.explain import separation_in_words
from curate.log.query import run_sql, summary, why


def text(write, table: pa.Table) -> str:
    stream = io.StringIO()
    write(table.to_reader(max_chunksize=2), stream)
    return stream.getvalue()


TABLE = pa.table(
    {
        "name": ["web", "日本語", None],
        "n": pa.array([1, 20, None], pa.int64()),
        "loss": pa.array([0.31, float("nan"), -1234567.0], pa.float32()),
        "kept": [True, False, None],
    }
)


def test_table():
    assert text(render.write_table, TABLE) == (
        "name       n        loss  kept\n"
        "------  ----  ----------  -----\n"
        "web        1        0.31  true\n"
        "日本語    20         nan  false\n"
        "NULL    NULL  -1234567.0  NULL\n"
        "(3 rows)\n"
    )


def test_a_table_of_one_row_and_of_none():
    assert text(render.write_table, pa.table({"a": [1]})) == "a\n-\n1\n(1 row)\n"
    empty = pa.table({"count": pa.array([], pa.int64())})
    assert text(render.write_table, empty) == "count\n-----\n(0 rows)\n"


def test_a_table_longer_than_what_sets_its_widths():
    lines = text(render.write_table, pa.table({"n": range(1001)})).splitlines()
    assert lines[-2:] == ["1000", "(1,001 rows)"]


def test_text_cannot_move_the_cursor():
    assert visible("a\x1b[2Jb\nc\u202ed\x00") == "a\\x1b[2Jb\\nc\\u202ed\\x00"
    assert text(render.write_table, pa.table({"a\x1b": ["x\ny"]})).startswith(
        "a\\x1b\n-----\nx\\ny\n"
    )


def test_long_text_is_cut():
    assert cell("x" * 200) == "x" * 79 + "…"
    assert shorten("日" * 50) == "日" * 39 + "…"
    assert shorten("e\u0301" * 80) == "e\u0301" * 80


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_makes_a_cell_of_one_narrow_line(value):
    made = cell(value)
    assert width(made) <= MAXIMUM_WIDTH
    assert len(made.splitlines()) <= 1
    assert width(pad(made, 90)) == 90
    made.encode("utf-8")


VALUES = pa.table(
    {
        "decimal": pa.array([Decimal("1.50")]),
        "stamp": pa.array([datetime.datetime(2025, 1, 2, 3, 4, 5)]),
        "stamp_ns": pa.array([1], pa.timestamp("ns")),
        "date": [datetime.date(2025, 1, 2)],
        "bytes": [b"\x00\xff"],
        "nan": [float("nan")],
        "inf": [float("-inf")],
        "single": pa.array([0.1], pa.float32()),
        "list": [[1, None]],
        "big": pa.array([2**63 - 1]),
        "true": [True],
        "null": pa.nulls(1),
        "text": ['a "b",\nc'],
    }
)


def test_json_has_only_json_values():
    (row,) = json.loads(text(render.write_json, VALUES), parse_constant=pytest.fail)
    assert row == {
        "decimal": "1.50",
        "stamp": "2025-01-02T03:04:05",
        "stamp_ns": "1970-01-01T00:00:00",
        "date": "2025-01-02",
        "bytes": "00ff",
        "nan": None,
        "inf": None,
        "single": 0.1,
        "list": [1, None],
        "big": 2**63 - 1,
        "true": True,
        "null": None,
        "text": 'a "b",\nc',
    }


def test_json_is_an_array_of_objects():
    assert text(render.write_json, pa.table({"a": [1, 2]})) == '[\n{"a": 1},\n{"a": 2}\n]\n'
    assert text(render.write_json, pa.table({"a": pa.array([], pa.int8())})) == "[]\n"
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert text(render.write_json, twice) == '[\n{"a": 1, "a_2": 2}\n]\n'


def test_csv():
    (row,) = csv.DictReader(io.StringIO(text(render.write_csv, VALUES)))
    assert row == {
        "decimal": "1.50",
        "stamp": "2025-01-02T03:04:05",
        "stamp_ns": "1970-01-01T00:00:00",
        "date": "2025-01-02",
        "bytes": "00ff",
        "nan": "nan",
        "inf": "-inf",
        "single": "0.1",
        "list": "[1, null]",
        "big": "9223372036854775807",
        "true": "true",
        "null": "",
        "text": 'a "b",\nc',
    }


def test_csv_quotes_every_kind_of_line_break():
    values = ["bo\rok", "a\r\nb", "c\nd", "plain"]
    written = text(render.write_csv, pa.table({"head\rer": values, "n": [1, 2, 3, 4]}))
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert rows == [["head\rer", "n"], *([value, str(n + 1)] for n, value in enumerate(values))]
    assert written.endswith("\nplain,4\n")


def test_sums_of_integers_are_integers_in_json(built):
    stream = io.StringIO()
    sql = "SELECT sum(tokens) AS tokens, 1.50::DECIMAL(4, 2) AS price, 10::DECIMAL(4, 0) AS ten"
    render.write_json(run_sql(built, f"{sql} FROM document"), stream)
    assert json.loads(stream.getvalue()) == [{"tokens": 200, "price": "1.50", "ten": 10}]


def test_parquet_holds_what_the_query_gave():
    stream = io.BytesIO()
    values = VALUES.drop_columns(["nan"])
    render.write_parquet(values.to_reader(), stream)
    assert pq.read_table(io.BytesIO(stream.getvalue())).equals(values)


def test_parquet_that_cannot_hold_a_type_says_so(built):
    with pytest.raises(InvalidInput, match="Parquet cannot hold"):
        render.write_parquet(run_sql(built, "SELECT INTERVAL 1 DAY AS i"), io.BytesIO())


@pytest.mark.parametrize(
    "write", [render.write_table, render.write_csv, render.write_json], ids=lambda w: w.__name__
)
def test_every_type_of_duckdb_can_be_written(built, write):
    sql = """SELECT 1::HUGEINT, uuid(), INTERVAL 1 DAY, '1'::BIT, now(), TIME '10:00',
        [1.5], {'a': 1}, MAP {'a': 1}, 'x'::BLOB, NULL, 'a'::ENUM ('a'), config FROM run"""
    stream = io.StringIO()
    write(run_sql(built, sql), stream)
    assert stream.getvalue()


def test_why_in_words(built):
    assert render.render_why(why(built, "0:3")) == (
        "Document 3 (shard 0, row 3): 30 tokens, 120 bytes.\n"
        "Round 0: excess loss 0.125 nats/token (proxy 4.125, reference 4); "
        "score 0.125 is at the cut-off 0.125: kept in this round.\n"
        "Round 1: score 0.5 is below the cut-off 0.75: not kept in this round.\n"
        "Dropped: kept in 1 of 2 rounds, but the token budget was spent on documents with higher "
        "weight or score.\n"
    )


SUMMARY = """\
Run run-1: blade, documents
Pool    5 documents, 200 tokens
Target  3 documents, 50 tokens
Kept    3 documents, 70 tokens (35.0 % of the pool's tokens)

Reason          Outcome  Documents  Tokens
filled          kept             1      40
selected        kept             2      30
never_selected  dropped          1     100
over_budget     dropped          1      30
empty           dropped          1       0

source  Documents  Tokens  Tokens kept  Enrichment
NULL            1     100        0.0 %       0.00x
math            2      60      100.0 %       2.86x
web             3      40       25.0 %       0.71x

Round  Scored  Kept  Cut-off  Proxy loss  Reference loss        Time
    0       5     3    0.125           4             3.5       1.5 s
    1       3     1      0.5         3.5            3.25  1 min 15 s
Losses are on the target, nats per token.
Held-out documents of the target score 4.50 spreads above the pool's mean.

Stage        Time
read        1.2 s
score  1 min 16 s
Model work took 97.4 % of the time; beside it tokenize 1.9 %, other 0.6 %.
"""


def test_the_summary(built):
    assert render.render_summary(summary(built)) == SUMMARY


def test_the_summary_of_next_to_nothing(log: Log):
    log.metadata = []
    log.changes["run"] = {"run_id": "bare"}
    assert render.render_summary(summary(log.build())).startswith("Run bare\n\nReason")


def test_the_summary_of_a_thousand_rounds(built):
    """Of a large pool: the rounds at both ends, and one stage for all of them."""
    found = summary(built)
    one = found["rounds"][0]
    found["rounds"] = [{**one, "round": number} for number in range(1000)]
    stages = {"tokens": 5.0, **{f"round-{number:04d}": 2.0 for number in range(1000)}, "scoring": 9}
    text = render.render_summary({**found, "stage_seconds": stages})
    lines = text[text.index("Round  ") :].splitlines()
    shown = [*range(5), *range(985, 1000)]
    assert [int(line.split()[0]) for line in lines[1:21]] == shown
    assert lines[21] == "980 rounds between them are not shown (FROM round)."
    times = text[text.index("Stage ") :].splitlines()[1:4]
    assert [line.split("  ")[0] for line in times] == [
        "tokens", "round-0000 to round-0999", "scoring",
    ]  # fmt: skip
    assert times[1].endswith("33 min 20 s")


def test_the_summary_tells_of_rollbacks(log: Log):
    gone_back = [{"stage": stage, "problem": "It broke."} for stage in ("warm-up", "round-\x1b")]
    log.changes["run"] = RUN | {"rollbacks": gone_back}
    found = summary(log.build())
    assert found["rollbacks"] == gone_back
    assert render.render_summary(found) == SUMMARY + (
        "\nLearning rates were halved 2 times after a loss or score that was not finite, in "
        "warm-up, round-\\x1b.\n"
    )


def test_a_log_that_knows_of_no_rollbacks_has_none(log: Log):
    out = log.build()
    with duckdb.connect(str(log.path)) as connection:
        connection.execute("ALTER TABLE run DROP COLUMN rollbacks")
    assert render.render_summary(summary(out)) == SUMMARY


@pytest.mark.parametrize(
    ("spreads", "said"),
    [
        ([None, 4.5], "Held-out documents of the target score 4.50 spreads above the pool's mean."),
        ([-0.25], "Held-out documents of the target score 0.25 spreads below the pool's mean."),
        ([None], ""),
        ([], ""),
    ],
)
def test_how_far_the_target_stands_out_in_words(spreads, said):
    assert separation_in_words([{"target_separation": one} for one in spreads]) == said
    assert separation_in_words([{}]) == ""
