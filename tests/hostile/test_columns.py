"""Names and values of metadata columns are names and values, in SQL and on disk."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from hostile_helpers import NAMES, VALUES, Attacked, hostile_table
from run_helpers import curate, listing

from curate import compare, run_sql, summary, why
from curate.log.schema import DOCUMENT, quote, stored_names

STORED = stored_names(NAMES)


def test_the_log_has_every_column_and_value(attacked: Attacked) -> None:
    names = [name for (name, *_) in attacked.sql("DESCRIBE document")]
    assert names[len(DOCUMENT.columns) :] == STORED
    table = hostile_table()
    for stored, name in zip(STORED, NAMES, strict=True):
        rows = attacked.sql(f"SELECT {quote(stored)} FROM document ORDER BY document_id")
        assert [value for (value,) in rows] == table.column(name).to_pylist()


@pytest.mark.parametrize("name", STORED, ids=range(len(STORED)))
def test_every_column_is_compared_and_counted(attacked: Attacked, name: str) -> None:
    found = compare([attacked.out, attacked.out], by=name)
    assert {row["value"] for row in found["shares"]["rows"]} == set(VALUES)
    rates = run_sql(attacked.out, f"FROM {quote(f'keep_rate_by_{name}')}").read_all()
    assert set(rates["value"].to_pylist()) == set(VALUES)
    assert sum(rates["documents"].to_pylist()) == hostile_table().num_rows


def test_the_log_can_be_asked(attacked: Attacked) -> None:
    assert summary(attacked.out)["keep_rates"]["column"] == STORED[0]
    assert why(attacked.out, "0:1")[-1]["document_id"] == 1
    for table in ("document", "kept", "dropped", "score_histogram"):
        assert run_sql(attacked.out, f"FROM {table}").read_all().num_rows > 0


def test_a_column_that_is_not_there_is_not_run(attacked: Attacked) -> None:
    by = 'absent"; DROP TABLE document; --'
    result = curate("compare", attacked.out, attacked.out, "--by", by)
    assert result.exit_code == 2
    assert f"Error: The logs have no metadata column {by}." in result.stderr


def test_parts_hold_the_columns_as_they_were(attacked: Attacked) -> None:
    [part] = attacked.parts()
    assert pq.read_schema(part).names[: len(NAMES) + 1] == ["text", *NAMES]


def test_no_value_becomes_a_file_name(attacked: Attacked) -> None:
    """Whatever ids and names say, a run's files are called after shards and stages."""
    top = {name.partition("/")[0] for name in listing(attacked.out)}
    assert top - {"evaluation", "evaluation.json"} == {
        "README.md", "config.yaml", "data", "manifest.json", "report.html",
        "selection_log.duckdb", "state", "tokenizer",
    }  # fmt: skip
    assert [path.name for path in attacked.parts()] == ["part-00000.parquet"]
    assert listing(attacked.out.parent)[0] == "inputs"
    assert {path.name for path in attacked.out.parent.iterdir()} == {"inputs", "out"}
