"""End to end over unusual pools: one document, long ones, odd columns, other formats."""

from __future__ import annotations

import datetime
import gzip
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_helpers import (
    OURS,
    curate,
    rich_table,
    run_arguments,
    run_tiny,
    shard_of,
    snapshot,
    words,
    write_plain_pool,
)

from curate import export, verify
from curate.config import load_config
from curate.config.schema import METHOD_NAMES
from curate.errors import InvalidInput
from curate.log.schema import DOCUMENT
from curate.pipeline import tokens
from curate.pipeline.prepare import prepare
from curate.pipeline.progress import Progress
from curate.read.tokenizer import train_tokenizer


def test_everything_may_be_kept(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path, rows=6)
    run = run_tiny(inputs, tmp_path / "out", keep=1.0, blade__warmup_tokens=0)
    assert run.sql("SELECT count(*) FROM document WHERE kept AND weight = 1") == [(12,)]
    assert sum(pq.read_metadata(part).num_rows for part in run.parts()) == 12


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_pool_of_one_document(tmp_path: Path, method: str) -> None:
    inputs = write_plain_pool(tmp_path, shards=1, rows=1)
    run = run_tiny(inputs, tmp_path / "out", method=method)
    assert run.sql("SELECT kept, weight FROM document") == [(True, 1.0)]


def test_documents_longer_than_a_block(tmp_path: Path) -> None:
    """However unevenly documents fill blocks, each is visited once a pass."""
    (tmp_path / "pool").mkdir()
    random = np.random.default_rng(3)
    texts = [words(random, 60 if row % 2 else 3) for row in range(8)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "pool" / "0.parquet")
    pq.write_table(pa.table({"text": texts[:3]}), tmp_path / "target.parquet")
    run = run_tiny(
        tmp_path,
        tmp_path / "out",
        train__batch_tokens=64,
        blade__passes=2,
        blade__sync_every=3,
        blade__final="none",
    )
    assert (
        run.sql("SELECT count(*), count(DISTINCT round) FROM decision GROUP BY document_id")
        == [(2, 2)] * 8
    )
    [(kept, pool)] = run.sql("SELECT kept_tokens, pool_tokens FROM run")
    [(largest,)] = run.sql("SELECT max(tokens) FROM document")
    assert abs(kept - 0.2 * pool) < largest


def write_texts(folder: Path, texts: list[str | None]) -> Path:
    """A pool of one shard whose rows share an id, and a target; returns the folder."""
    (folder / "pool").mkdir()
    table = pa.table({"text": texts, "id": [7] * len(texts)})
    pq.write_table(table, folder / "pool" / "0.parquet")
    target = [words(np.random.default_rng(4), 9)] * 5
    pq.write_table(pa.table({"text": target}), folder / "target.parquet")
    return folder


@pytest.mark.parametrize("method", ["dsir", "classifier", "random"])
def test_documents_that_are_alike(tmp_path: Path, method: str) -> None:
    """Ties are broken by noise and the budget is met; equal ids are no trouble."""
    text = words(np.random.default_rng(3), 8)
    inputs = write_texts(tmp_path, [text] * 3000)
    run = run_tiny(inputs, tmp_path / "out", method=method, keep=0.05)
    [(kept, pool)] = run.sql("SELECT kept_tokens, pool_tokens FROM run")
    assert abs(kept - 0.05 * pool) <= pool / 3000 / 2
    [(first, last)] = run.sql("SELECT min(row), max(row) FROM document WHERE kept")
    assert last - first > 1500
    assert verify(run.out, full=True).findings == ()


@pytest.mark.parametrize("method", ["dsir", "classifier", "random"])
def test_a_huge_document_among_odd_ones(tmp_path: Path, method: str) -> None:
    """It is tokenized in pieces, and comes back whole; every row has its reason."""
    random = np.random.default_rng(3)
    huge = " ".join([words(random, 1000)] * 200)
    assert len(huge) > 1 << 20
    inputs = write_texts(tmp_path, [huge, words(random, 8), " \n", "", None, "\x00"])
    run = run_tiny(inputs, tmp_path / "out", method=method, keep=1.0)
    assert run.sql("SELECT count(*) FILTER (kept), count(reason) FROM document") == [(4, 6)]
    assert run.sql("SELECT row FROM document WHERE reason = 'empty' ORDER BY row") == [(3,), (4,)]
    assert pq.read_table(run.parts()[0])["text"][0].as_py() == huge
    assert verify(run.out, full=True).findings == ()


def test_a_shard_without_columns(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path, rows=6)
    pq.write_table(pa.table({}), inputs / "pool" / "00.parquet")
    done = curate(*run_arguments(inputs, tmp_path / "out"))
    assert done.exit_code == 2
    assert 'has column "text" as absent' in done.stderr
    assert not (tmp_path / "out").exists()


def test_shards_without_rows_or_kept_rows_have_no_part(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path, shards=2, rows=6)
    empty = pq.read_table(inputs / "pool" / "0.parquet").slice(0, 0)
    pq.write_table(empty, inputs / "pool" / "00.parquet")
    run = run_tiny(inputs, tmp_path / "out", method="random")
    kept = run.sql("SELECT DISTINCT shard_id FROM document WHERE kept ORDER BY shard_id")
    assert [shard_of(part) for part in run.parts()] == [shard for (shard,) in kept]
    assert run.sql("SELECT count(*) FROM shard") == [(3,)]


def test_any_name_of_a_pool_column(tmp_path: Path) -> None:
    """Columns of the pool are the user's: none of their names may meet one of ours."""
    names = [
        *("kept", "score", "tokens", "Tokens", "document_id", "row", "weight", "round", "units"),
        *("place", "reason", "excess_loss", "shard_id", "pool_kept", "bytes", "filename", "after"),
        *("a b", 'q"uote', "é", "SELECT", "", "lambda", "file_row_number", "factor", "documents"),
        *("problem", "Problem", "text_bytes"),
    ]
    inputs = write_plain_pool(tmp_path, shards=1, rows=12)
    path = inputs / "pool" / "0.parquet"
    table = pq.read_table(path).select(["text"])
    values = {name: [f"{index}/{row}" for row in range(12)] for index, name in enumerate(names)}
    for name, column in values.items():
        table = table.append_column(name, pa.array(column))
    pq.write_table(table, path)
    run = run_tiny(inputs, tmp_path / "out", method="random")
    for name, column in values.items():
        [(stored,)] = run.sql(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = 'document' "
            "AND comment = $comment",
            comment=f"Metadata of the pool: its column {name}.",
        )
        quoted = stored.replace('"', '""')
        found = run.sql(f'SELECT "{quoted}" FROM document ORDER BY document.document_id')
        assert [value for (value,) in found] == column, name
    [part] = run.parts()
    assert pq.read_table(part).drop_columns(OURS).column_names == ["text", *names]


@pytest.mark.parametrize("names", [["id", "id"], ["b", "id"], []])
def test_metadata_columns_in_any_order(tmp_path: Path, names: list[str]) -> None:
    inputs = write_plain_pool(tmp_path, shards=1, rows=6)
    path = inputs / "pool" / "0.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("b", pa.array([f"b{i}" for i in range(6)])), path)
    run = run_tiny(inputs, tmp_path / "out", method="random", metadata_columns=names)
    rows = run.sql("SELECT * FROM document ORDER BY document_id")
    values = {"id": list(range(6)), "b": [f"b{i}" for i in range(6)]}
    built_in = len(DOCUMENT.columns)
    for index, name in enumerate(names):
        assert [row[built_in + index] for row in rows] == values[name]


def test_metadata_of_every_scalar_type_groups(tmp_path: Path) -> None:
    """The summary, the card and the report show keep rates by any column, of any type."""
    inputs = write_plain_pool(tmp_path, shards=1, rows=12)
    path = inputs / "pool" / "0.parquet"
    text = pq.read_table(path).select(["text"])
    rich = rich_table(0, 12)
    half = pa.array([0] * 6 + [1] * 6)
    for name in ("seen", "price", "flag"):
        column = rich.column(name).take(half)
        pq.write_table(text.append_column(name, column), path)
        run = run_tiny(inputs, tmp_path / name, method="random")
        assert name in (run.out / "README.md").read_text()
        result = curate("log", run.out)
        assert result.exit_code == 0, (name, result.exception)
        assert name in result.stdout
        shown = curate("log", run.out, "--sql", f"FROM keep_rate_by_{name}", "--format", "json")
        assert len(json.loads(shown.stdout)) == 2, name


# Other inputs.


def test_types_that_arrow_only_slices(tmp_path: Path) -> None:
    """Views, as newer writers store strings: in the text, alone and inside others."""
    inputs = write_plain_pool(tmp_path / "inputs", shards=1)
    path = inputs / "pool" / "0.parquet"
    plain = pq.read_table(path)
    rows = range(plain.num_rows)
    view = pa.array([None if i % 5 == 0 else f"name {i}" for i in rows], pa.string_view())
    columns = {
        "text": plain["text"].cast(pa.string_view()),
        "name": view,
        "blob": pa.array([bytes([i]) for i in rows], pa.binary_view()),
        "deep": pa.StructArray.from_arrays([view], names=["name"]),
        "many": pa.array([[f"{i}"] * (i % 3) for i in rows], pa.list_(pa.string_view())),
    }
    table = pa.table(columns)
    pq.write_table(table, path)
    run = run_tiny(inputs, tmp_path / "out", method="random", keep=0.5)
    (part,) = run.parts()
    kept = pq.read_table(part)
    assert kept.select(table.column_names).schema == table.schema
    wanted = [row for (row,) in run.sql("SELECT row FROM kept ORDER BY row")]
    assert 0 < len(wanted) < len(rows)
    every = table.to_pylist()
    assert kept.select(table.column_names).to_pylist() == [every[row] for row in wanted]
    assert verify(run.out, full=True).findings == ()
    done = export(run.out, to="jsonl", dest=tmp_path / "lines", materialize=True)
    assert done.documents == len(wanted)


def test_values_within_others_that_arrow_or_a_log_has_doubts_about(tmp_path: Path) -> None:
    """The dataset has them as they are; the log has null for what it cannot hold."""
    inputs = write_plain_pool(tmp_path / "inputs", shards=1)
    path = inputs / "pool" / "0.parquet"
    plain = pq.read_table(path)
    count = plain.num_rows
    odd = [i % 3 == 0 for i in range(count)]
    offsets = pa.array(range(count + 1), pa.int32())
    calls = pa.array(['{"a":' if one else "[]" for one in odd])
    names = pa.array([b"\xff" if one else b"x" for one in odd]).view(pa.string())
    times = pa.array([2**40 if one else 0 for one in odd]).view(pa.time64("us"))
    far = pa.array([2**62 if one else 0 for one in odd]).view(pa.timestamp("ms"))
    columns = {
        "calls": pa.ListArray.from_arrays(
            offsets, pa.ExtensionArray.from_storage(pa.json_(), calls)
        ),
        "coded": pa.StructArray.from_arrays([calls.dictionary_encode()], ["x"]),
        "name": pa.StructArray.from_arrays([names], ["x"]),
        "time": pa.ListArray.from_arrays(offsets, times),
        "far": pa.StructArray.from_arrays([far], ["x"]),
    }
    pq.write_table(pa.table({"text": plain["text"], **columns}), path, row_group_size=4)
    settings = {"metadata_columns": list(columns), "write__row_group_rows": 3}
    run = run_tiny(inputs, tmp_path / "out", method="random", keep=0.5, **settings)
    assert verify(run.out, full=True).findings == ()
    logged = run.sql("SELECT calls, coded, name, time, far FROM document ORDER BY row")
    midnight, day = datetime.time(), datetime.datetime(1970, 1, 1)
    sound = (["[]"], {"x": "[]"}, {"x": "x"}, [midnight], {"x": day})
    doubted = (['{"a":'], {"x": '{"a":'}, None, None, None)
    assert logged == [doubted if one else sound for one in odd]
    export(run.out, to="hf", dest=tmp_path / "hf")
    kept = [row for (row,) in run.sql("SELECT row FROM kept ORDER BY row")]
    exported = datasets.load_from_disk(str(tmp_path / "hf"))
    for name in ("calls", "coded"):
        assert list(exported[name]) == [logged[row][name == "coded"] for row in kept]


def test_a_compressed_jsonl_pool(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    random = np.random.default_rng(0)
    rows = [
        {"text": words(random, 8) if i % 7 else None, "n": i, "deep": {"tags": ["x"] * (i % 3)}}
        for i in range(30)
    ]
    for shard in range(2):
        with gzip.open(tmp_path / "pool" / f"{shard}.jsonl.gz", "wt", encoding="utf-8") as lines:
            for row in rows[shard * 15 : shard * 15 + 15]:
                lines.write(json.dumps(row) + "\n")
    with (tmp_path / "target.jsonl").open("w") as lines:
        lines.write(json.dumps({"text": words(random, 9)}) + "\n")
    (tmp_path / "target.jsonl").rename(tmp_path / "t.jsonl")
    run = run_tiny(tmp_path, tmp_path / "out", method="random", target=str(tmp_path / "t.jsonl"))
    kept = [document for (document,) in run.sql("SELECT n FROM document WHERE kept ORDER BY n")]
    written = [
        row for part in run.parts() for row in pq.read_table(part).drop_columns(OURS).to_pylist()
    ]
    assert kept
    assert written == [rows[n] for n in kept]


def test_a_saved_dataset_as_pool(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [{"text": words(random, 8), "n": i, "tags": ["x"] * (i % 3)} for i in range(30)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "pool"))
    datasets.Dataset.from_list(rows[:5]).save_to_disk(str(tmp_path / "target"))
    before = snapshot(tmp_path)
    target = str(tmp_path / "target")
    run = run_tiny(tmp_path, tmp_path / "out", method="random", target=target)
    kept = [document for (document,) in run.sql("SELECT n FROM document WHERE kept ORDER BY n")]
    [part] = run.parts()
    assert kept
    assert pq.read_table(part).drop_columns(OURS).to_pylist() == [rows[n] for n in kept]
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if not name.startswith("out/")} == set(before)


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_lambda_schedules_appear_in_the_rounds(schedule: str, tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path, shards=1)
    run = run_tiny(
        inputs,
        tmp_path / "out",
        blade__lambda_schedule=schedule,
        blade__lambda_end=0.8,
        train__batch_tokens=64,
        blade__warmup_tokens=0,
        blade__sync_every=1,
        blade__reference_steps=1,
        blade__final="none",
        **{"blade.lambda": 0.1},
    )
    found = [value for (value,) in run.sql('SELECT "lambda" FROM round ORDER BY round')]
    assert len(found) >= 3
    space = np.linspace if schedule == "linear" else np.geomspace
    assert found == pytest.approx(space(0.1, 0.8, len(found)).tolist(), rel=1e-6)
    models = run.sql("SELECT DISTINCT model FROM training ORDER BY model")
    assert models == [("lookahead",), ("proxy",), ("reference",)]


def test_rounds_draw_their_share_and_the_final_pass_everything(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path, shards=3, rows=200)
    run = run_tiny(inputs, tmp_path / "out", blade__round_share=0.4, blade__sync_every=3)
    [(pool,)] = run.sql("SELECT pool_tokens FROM run")
    [(last,)] = run.sql("SELECT max(round) FROM round")
    drawn = run.sql(f"SELECT sum(tokens), count(*) FROM decision WHERE round < {last}")
    assert last >= 3
    assert drawn[0][0] == pytest.approx(0.4 * pool, rel=0.2)  # whole rounds
    assert run.sql(f"SELECT count(*) FROM decision WHERE round = {last}") == [(600,)]
    twice = "SELECT 1 FROM decision WHERE round < {} GROUP BY document_id HAVING count(*) > 1"
    assert run.sql(twice.format(last)) == []
    assert run.sql("SELECT count(*) FROM document WHERE reason = 'never_selected'")[0][0] > 100


def test_a_target_is_cut_once_and_not_in_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_plain_pool(tmp_path)
    (tmp_path / "targets").mkdir()
    for shard in range(3):
        texts = pa.table({"text": ["river stone cloud"] * (5 + shard)})
        pq.write_table(texts, tmp_path / "targets" / f"{shard}.parquet")
    places = {"pool": inputs / "pool", "target": tmp_path / "targets", "out": tmp_path / "out"}
    prepared, _ = prepare(load_config(None, {key: str(place) for key, place in places.items()}))
    tokenizer = train_tokenizer(iter(["river stone cloud"]), 300)
    said = io.StringIO()
    progress = Progress(said)
    assert len(tokens.read_target(prepared, tokenizer, progress)) == 5 + 6 + 7
    assert said.getvalue() == ""
    monkeypatch.setattr(tokens, "_TARGET_TOKENS", 1)
    found = tokens.read_target(prepared, tokenizer, progress)
    assert len(found) == 5
    assert said.getvalue() == (
        f"The target is large: its first 5 documents, {found.num_tokens} tokens, are used, and the "
        "others are not read.\n"
    )


def test_a_target_without_tokens_is_refused(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path)
    places = {"pool": inputs / "pool", "target": inputs / "pool", "out": tmp_path / "out"}
    prepared, _ = prepare(load_config(None, {key: str(place) for key, place in places.items()}))

    class Silent:
        def encode(self, texts: list[str]) -> list[np.ndarray]:
            return [np.zeros(0, dtype=np.uint16) for _ in texts]

    with pytest.raises(InvalidInput) as caught:
        tokens.read_target(prepared, Silent(), Progress(io.StringIO()))
    assert caught.value.problem == "The target has no text: its documents gave no tokens."
    assert caught.value.remedy == "Give --target documents with text in column text."
