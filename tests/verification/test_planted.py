"""Planted changes, most of them covered up in the manifest: each is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from run_helpers import Run
from verification_helpers import (
    change_log,
    change_manifest,
    change_part,
    cover_up,
    found,
    sentences,
    with_value,
)


@pytest.fixture
def run(by_document: Run, tmp_path: Path) -> Run:
    """A run by document, to change."""
    return by_document.copy(tmp_path / "out")


@pytest.fixture
def masked(by_token: Run, tmp_path: Path) -> Run:
    """A run by token, to change."""
    return by_token.copy(tmp_path / "out")


def kept(run: Run, shard: int) -> list[int]:
    """The kept rows of a shard."""
    query = f"SELECT row FROM document WHERE kept AND shard_id = {shard} ORDER BY row"
    return [row for (row,) in run.sql(query)]


def part_of(run: Run, least: int = 2) -> int:
    """The first part with at least so many rows."""
    return next(shard for shard in range(3) if len(kept(run, shard)) >= least)


# Files.


def test_a_missing_file(run: Run) -> None:
    (run.out / "report.html").unlink()
    run.parts()[0].unlink()
    assert sentences(run) == ["data/part-00000.parquet is missing.", "report.html is missing."]


def test_a_missing_manifest(run: Run) -> None:
    (run.out / "manifest.json").unlink()
    assert sentences(run) == ["manifest.json is missing."]


def test_a_missing_log(run: Run) -> None:
    run.log.unlink()
    assert sentences(run) == ["selection_log.duckdb is missing."]


def test_files_that_the_manifest_no_longer_names(run: Run) -> None:
    def forget(tree: dict[str, Any]) -> None:
        for name in ("README.md", "data/part-00000.parquet", "tokenizer/tokenizer.json"):
            del tree["files"][name]

    change_manifest(run, forget)
    assert sentences(run) == [
        "README.md is not recorded in manifest.json.",
        "tokenizer/tokenizer.json is not recorded in manifest.json.",
        "data/part-00000.parquet was added: it is not recorded in manifest.json.",
        "tokenizer/tokenizer.json was added: it is not recorded in manifest.json.",
        "data/part-00000.parquet is not there, but the log keeps rows of its shard.",
    ]


def test_names_that_lead_out_of_the_folder_are_not_followed(run: Run) -> None:
    for name in ("../secret", "/etc/hostname"):
        change_manifest(run, lambda tree, name=name: tree["files"].update({name: "0" * 64}))
        assert sentences(run) == ["manifest.json does not say what a finished run's does."]
        change_manifest(run, lambda tree, name=name: tree["files"].pop(name))
    assert sentences(run) == []


@pytest.mark.parametrize(
    "name", ["data/part-00009.parquet", "tokenizer/chat.jinja", "selection_log.duckdb.wal"]
)
def test_a_stray_file(run: Run, name: str) -> None:
    (run.out / name).write_bytes(run.parts()[0].read_bytes())
    assert f"{name} was added: it is not recorded in manifest.json." in sentences(run)


def test_a_stray_part_that_is_recorded(run: Run) -> None:
    (run.out / "data" / "part-00009.parquet").write_bytes(run.parts()[0].read_bytes())
    cover_up(run)
    assert sentences(run) == [
        "data/part-00009.parquet is no part of a shard that the log keeps rows of."
    ]


def test_a_file_of_ones_own_is_nobodys_business(run: Run) -> None:
    (run.out / "NOTES.txt").write_text("mine")
    assert sentences(run) == []


def test_a_swapped_pair(run: Run) -> None:
    first, second = run.parts()[:2]
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    assert sentences(run) == [
        f"data/{path.name} was changed: its SHA-256 is not the recorded one."
        for path in (first, second)
    ]
    cover_up(run)
    found = sentences(run)
    for path in (first, second):
        assert any(text.startswith(f"data/{path.name}") for text in found)


@pytest.mark.parametrize("name", ["data/part-00000.parquet", "selection_log.duckdb"])
def test_a_damaged_file_whose_hash_was_covered_up(run: Run, name: str) -> None:
    (run.out / name).write_bytes(b"PAR1 no such thing PAR1")
    cover_up(run)
    found = sentences(run)
    if name.endswith(".parquet"):
        assert found == [f"{name} is not a readable Parquet file."]
    else:
        assert len(found) == 1
        assert found[0].startswith("The selection log in ")


# The manifest.


def test_a_changed_manifest(run: Run) -> None:
    path = run.out / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1', 1))
    assert sentences(run)[0] == "manifest.json was changed: it does not hold its own SHA-256."
    path.write_text(text.replace("\n", " \n", 1))
    assert sentences(run) == ["manifest.json was changed: curate lays out its text otherwise."]
    path.write_text(text.replace('"sha256"', '"sha257"'))
    assert sentences(run)[:1] == ['manifest.json has an entry "sha257" that curate does not write.']


@pytest.mark.parametrize(
    ("written", "instead"),
    [('"kept_tokens": ', '"kept_tokens": 1e99'), ('"score_mean": ', '"score_mean": 1e999, "x": ')],
)
def test_infinite_numbers_in_a_manifest(run: Run, written: str, instead: str) -> None:
    path = run.out / "manifest.json"
    text = path.read_text()
    assert written in text
    path.write_text(text.replace(written, instead, 1))
    assert sentences(run) == [
        "manifest.json was changed: it does not hold its own SHA-256.",
        "manifest.json does not say what a finished run's does.",
    ]


def test_rows_of_a_damaged_part_are_not_said_to_hold(run: Run) -> None:
    part = run.parts()[part_of(run)]
    part.write_bytes(part.read_bytes()[:-1])
    results = {check.name: check for check in found(run).checks}
    everything = run.sql("SELECT count(*) FROM kept")[0][0]
    for name in ("parts", "outcome", "source"):
        assert results[name].result == "not checked"
        assert results[name].skipped == f"the rows of data/{part.name} were not looked at"
    assert f" of {everything} rows" in results["outcome"].checked
    assert not results["outcome"].checked.startswith(f"{everything} of")


def test_settings_that_were_changed(run: Run) -> None:
    change_manifest(run, lambda tree: tree["stages"]["config"]["blade"].update(passes=7))
    assert sentences(run) == [
        "The settings in config.yaml and in manifest.json differ in blade.passes.",
        "The settings in the log and in manifest.json differ in blade.passes.",
    ]


def test_a_config_that_was_changed(run: Run) -> None:
    path = run.out / "config.yaml"
    path.write_text(path.read_text().replace("keep: 0.2", "keep: 0.25"))
    cover_up(run)
    assert sentences(run) == ["The settings in config.yaml and in manifest.json differ in keep."]


def test_totals_that_were_changed(run: Run) -> None:
    change_manifest(run, lambda tree: tree["stages"]["complete"].update(kept_tokens=5))
    change_manifest(run, lambda tree: tree["stages"]["tokens"]["fragments"][1].update(rows=21))
    (tokens,) = run.sql("SELECT kept_tokens FROM run")[0]
    shard = run.inputs / "pool" / "shard-1.parquet"
    assert sentences(run) == [
        f"The pool's shard 1 ({shard}) has 20 rows, but the run read 21.",
        f"manifest.json says kept_tokens is 5, but the log's rows come to {tokens}.",
        "manifest.json says rows of shard 1 is 21, but the log's rows come to 20.",
    ]


# Rows of the data.


def test_a_dropped_row(run: Run) -> None:
    shard = part_of(run)
    rows = len(kept(run, shard))
    change_part(run, shard, lambda table: table.slice(1))
    assert sentences(run) == [
        f"data/part-0000{shard}.parquet has {rows - 1} row{'s' * (rows > 2)}, but the log keeps "
        f"{rows} of its shard."
    ]


def test_a_duplicated_row(run: Run) -> None:
    shard = part_of(run)
    rows = len(kept(run, shard))
    change_part(run, shard, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert sentences(run) == [
        f"data/part-0000{shard}.parquet has {rows + 1} rows, but the log keeps {rows} of its shard."
    ]


def test_a_row_in_place_of_another(run: Run) -> None:
    """As many rows as there should be."""
    shard = part_of(run)
    change_part(run, shard, lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, 1),
                                                            table.slice(2)]))  # fmt: skip
    row = kept(run, shard)[1]
    assert (
        f'data/part-0000{shard}.parquet: column "id" differs from the pool in 1 row, first in row '
        f"1 (document {shard}:{row})."
    ) in sentences(run)


@pytest.mark.parametrize("column", ["curate_weight", "curate_score", "curate_excess_loss"])
@pytest.mark.parametrize("value", [1234.5, float("nan"), None])
def test_a_changed_outcome(run: Run, column: str, value: float | None) -> None:
    shard = part_of(run, 1)
    change_part(run, shard, lambda table: with_value(table, column, 0, value))
    assert sentences(run) == [
        f'data/part-0000{shard}.parquet: column "{column}" differs from the log in 1 row, first '
        f"in row 0 (document {shard}:{kept(run, shard)[0]})."
    ]


def test_a_changed_round(run: Run) -> None:
    change_part(run, part_of(run, 1), lambda table: with_value(table, "curate_round", 0, 99))
    assert 'column "curate_round" differs from the log in 1 row' in sentences(run)[0]


CHANGES: dict[str, Any] = {
    "id": 5,
    "text": "somebody else's words",
    "source": "elsewhere",
    "meta": {"tags": ["x"], "deep": None},
    "scores": [0.0, float("nan"), 1.0],
    "price": None,
    "seen": 0,
    "day": 0,
    "blob": b"\x01",
    "flag": None,
    "kept": "",
}


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_value_of_every_type(run: Run, column: str) -> None:
    """A kept row of which one value is another; the metadata in the log is not asked."""
    shard = part_of(run)
    rows = kept(run, shard)
    last = next(  # a row that has another value now, null among them
        i for i in reversed(range(len(rows))) if (shard * 1000 + rows[i]) % 6 != 0
    )
    change_part(run, shard, lambda table: with_value(table, column, last, CHANGES[column]))
    assert sentences(run) == [
        f'data/part-0000{shard}.parquet: column "{column}" differs from the pool in 1 row, first '
        f"in row {last} (document {shard}:{rows[last]})."
    ]
    assert sentences(run, source=False) == []


def test_columns_that_are_not_the_pools(run: Run) -> None:
    change_part(run, 0, lambda table: table.rename_columns({"day": "date"}))
    assert sentences(run) == [
        "data/part-00000.parquet does not have the columns of the pool in their order and types."
    ]
    change_part(run, 0, lambda table: table.drop_columns("curate_round"))
    assert sentences(run) == [
        "data/part-00000.parquet does not end in the columns that curate adds."
    ]


def test_a_column_too_many(masked: Run) -> None:
    change_part(masked, 0, lambda table: table.add_column(3, "spare", table.column("day")))
    assert sentences(masked) == [
        "data/part-00000.parquet does not have the columns of the pool in their order and types."
    ]
    change_part(masked, 0, lambda table: table.rename_columns({"spare": "day"}))
    assert sentences(masked) == [
        'data/part-00000.parquet has no column "text" of text, or two columns of one name.'
    ]


def test_a_part_without_its_text(masked: Run) -> None:
    change_part(masked, 0, lambda table: table.rename_columns({"text": "body"}))
    assert sentences(masked, source=False) == [
        'data/part-00000.parquet has no column "text" of text, or two columns of one name.'
    ]


# Tokens.


def change_first(value: Any, column: str) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return with_value(table, column, 0, value(table.column(column)[0].as_py()))

    return change


def test_changed_input_ids(masked: Run) -> None:
    change_part(masked, 0, change_first(lambda ids: [ids[0] + 1, *ids[1:]], "input_ids"))
    row = kept(masked, 0)[0]
    assert sentences(masked) == [
        'data/part-00000.parquet: column "input_ids" is not the tokens of the text in 1 row, '
        f"first in row 0 (document 0:{row})."
    ]


def test_a_changed_mask(masked: Run) -> None:
    change_part(masked, 0, change_first(lambda mask: [not mask[0], *mask[1:]], "loss_mask"))
    where = f"in 1 row, first in row 0 (document 0:{kept(masked, 0)[0]})."
    count = (
        'data/part-00000.parquet: column "loss_mask" marks other than as many tokens as the log '
        f"says {where}"
    )
    recorded = (
        f'data/part-00000.parquet: column "loss_mask" differs from state/masks.parquet {where}'
    )
    assert sentences(masked) == [count, recorded]
    (masked.out / "state" / "masks.parquet").unlink()
    assert sentences(masked) == [count]


def test_a_mask_with_as_many_marks_elsewhere(masked: Run) -> None:
    """Only the run's state knows which tokens they were."""
    change_part(masked, 0, change_first(lambda mask: mask[::-1], "loss_mask"))
    assert len(sentences(masked)) == 1
    (masked.out / "state" / "masks.parquet").unlink()
    assert sentences(masked) == []


def test_a_tokenizer_that_was_changed(masked: Run) -> None:
    path = masked.out / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:-20]
    path.write_text(json.dumps(tree))
    assert sentences(masked) == [
        "tokenizer/tokenizer.json was changed: its SHA-256 is not the recorded one."
    ]
    cover_up(masked)
    assert 'column "input_ids" is not the tokens of the text' in sentences(masked)[0]
    path.write_text("{}")
    cover_up(masked)
    assert sentences(masked) == ["The tokenizer in tokenizer/ cannot be loaded."]


# The log.

ONE = "document_id = (SELECT min(document_id) FROM document WHERE {})"
FIRST_KEPT, FIRST_DROPPED = ONE.format("kept"), ONE.format("reason = 'never_selected'")

LOG_FAULTS: dict[str, tuple[str, str]] = {
    f"UPDATE document SET kept = false WHERE {FIRST_KEPT}": (
        "The log's table document has 1 row whose kept and reason disagree, first document {kept}."
    ),
    f"UPDATE document SET tokens_kept = tokens_kept - 1 WHERE {FIRST_KEPT}": (
        "The log's table document has 1 row whose tokens_kept and kept disagree, first document "
        "{kept}."
    ),
    f"UPDATE document SET weight = 0 WHERE {FIRST_KEPT}": (
        "The log's table document has 1 row whose weight and kept disagree, first document {kept}."
    ),
    f"UPDATE document SET reason = 'over_budget' WHERE {FIRST_DROPPED}": (
        "The log's table document has 1 row whose reason is not what its decisions say, first "
        "document {dropped}."
    ),
    f"UPDATE document SET row = row + 1 WHERE {FIRST_DROPPED}": (
        "The log's table document has 1 row whose document_id is not its shard and row, first "
        "document {dropped}."
    ),
    f"DELETE FROM document WHERE {FIRST_DROPPED}": (
        "The log says rows of shard {shard} is 20, but the log's rows come to 19."
    ),
    "UPDATE decision SET document_id = document_id + 500, row = row + 500 WHERE rowid = 0": (
        "The log's table decision has 1 row of documents that do not exist, first document "
        "{decided_elsewhere}."
    ),
    "UPDATE decision SET tokens = tokens + 1 WHERE rowid = 0": (
        "The log's table decision has 1 row of another size than the document's, first document "
        "{decided}."
    ),
    "UPDATE decision SET round = 77 WHERE rowid = 0": (
        "The log's table decision has 1 row of rounds that do not exist, first document {decided}."
    ),
    "UPDATE decision SET kept = NOT kept WHERE rowid = 0": (
        "The log's table decision has 1 row whose kept and reason disagree, first document "
        "{decided}."
    ),
    "UPDATE decision SET tokens_read = tokens + 1 WHERE rowid = 0": (
        "The log's table decision has 1 row that read more tokens than there are, first document "
        "{decided}."
    ),
    "INSERT INTO decision FROM decision WHERE rowid = 0": (
        "The log's table decision has 1 row more than once."
    ),
    f"INSERT INTO document FROM document WHERE {FIRST_DROPPED}": (
        "The log's table document has 1 row more than once."
    ),
    "UPDATE document SET weight = weight * 1.5 WHERE kept": (
        "The weights of the kept documents have the mean 1.5, not 1."
    ),
    "UPDATE run SET kept_tokens = kept_tokens + 1": (
        "The log's table run says kept_tokens is {more}, but the log's rows come to {tokens}."
    ),
    "UPDATE shard SET tokens = 7 WHERE shard_id = 2": (
        "The log says tokens of shard 2 is 7, but the log's rows come to {shard_tokens}."
    ),
    "UPDATE shard SET fingerprint = 'x' WHERE shard_id = 2": (
        "The log and manifest.json differ in the fingerprint of shard 2."
    ),
    "UPDATE round SET documents_kept = 0 WHERE round = 0": (
        "The log says documents_kept of round 0 is 0, but the log's rows come to {in_round}."
    ),
    "DELETE FROM run": "The log's table run has 0 rows, not 1.",
    "UPDATE run SET seed = 3": "The log's table run and manifest.json differ in seed.",
    "DELETE FROM round WHERE round = 0": (
        "The log's table round does not have the rounds of manifest.json."
    ),
    "DROP TABLE decision CASCADE": "The selection log in {out} has no table decision.",
    "ALTER TABLE document RENAME COLUMN weight TO wait": "The selection log cannot be read: ",
}


@pytest.mark.parametrize("statement", LOG_FAULTS)
def test_a_log_that_disagrees(run: Run, statement: str) -> None:
    def place(query: str) -> str:
        ((document_id,),) = run.sql(query)
        return f"{document_id >> 40}:{document_id & ((1 << 40) - 1)}"

    dropped = place(f"SELECT document_id FROM document WHERE {FIRST_DROPPED}")
    tokens = run.sql("SELECT kept_tokens FROM run")[0][0]
    words = {
        "kept": place(f"SELECT document_id FROM document WHERE {FIRST_KEPT}"),
        "dropped": dropped,
        "shard": dropped.partition(":")[0],
        "decided": place("SELECT document_id FROM decision WHERE rowid = 0"),
        "decided_elsewhere": place("SELECT document_id + 500 FROM decision WHERE rowid = 0"),
        "tokens": tokens,
        "more": tokens + 1,
        "shard_tokens": run.sql("SELECT sum(tokens) FROM document WHERE shard_id = 2")[0][0],
        "in_round": run.sql("SELECT documents_kept FROM round WHERE round = 0")[0][0],
        "out": run.out,
    }
    change_log(run, statement)
    expected = LOG_FAULTS[statement].format(**words)
    found = sentences(run)
    assert [text for text in found if text.startswith(expected)], found


NONSENSE = {
    "run": ["config", "seed"],
    "shard": ["shard_id", "rows"],
    "round": ["round"],
    "decision": ["document_id", "round"],
    "document": ["document_id", "shard_id", "row", "tokens", "weight"],
}


@pytest.mark.parametrize("value", ["NULL", "-7"])
def test_nonsense_in_a_log_brings_nothing_down(masked: Run, value: str) -> None:
    """What the values stand for is not believed."""
    whole = masked.log.read_bytes()
    for table, columns in NONSENSE.items():
        for column in columns:
            change_log(masked, f"UPDATE {table} SET {column} = {value}")
            assert sentences(masked), (table, column)
            masked.log.write_bytes(whole)


def test_a_weight_changed_in_log_and_data_alike(run: Run) -> None:
    """Their mean gives it away."""
    change_log(run, f"UPDATE document SET weight = weight * 2 WHERE {FIRST_KEPT}")
    shard = part_of(run, 1)
    change_part(run, shard, lambda table: with_value(
        table, "curate_weight", 0, 2 * table.column("curate_weight")[0].as_py()))  # fmt: skip
    found = sentences(run)
    assert len(found) == 1
    assert found[0].startswith("The weights of the kept documents have the mean ")


def test_token_logs_that_disagree(masked: Run) -> None:
    change_log(masked, f"UPDATE document SET weight = 0.123 WHERE {FIRST_KEPT}")
    place = f"0:{kept(masked, 0)[0]}"
    assert sentences(masked) == [
        "The log's table document has 1 row whose weight is not the share of its tokens that are "
        f"kept, first document {place}.",
        'data/part-00000.parquet: column "curate_weight" differs from the log in 1 row, first in '
        f"row 0 (document {place}).",
    ]
