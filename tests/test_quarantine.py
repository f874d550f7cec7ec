"""Damaged shards and rows: left out, counted, each with a reason; too many of them stop a run."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_helpers import (
    Run,
    assert_same_outcome,
    curate,
    run_arguments,
    run_tiny,
    snapshot,
    words,
    write_plain_pool,
)

from curate import verify
from curate.errors import InvalidInput, TooMuchDamage
from curate.pipeline import tokens
from curate.pipeline.folder import RunFolder

ROWS = 15
LENIENT = {"method": "random", "max_bad_fraction": 0.7, "keep": 0.5}


def table(rows: int = ROWS) -> pa.Table:
    random = np.random.default_rng(3)
    return pa.table({"text": [words(random, 9) for _ in range(rows)], "id": range(rows)})


def sound(path: Path) -> None:
    pq.write_table(table(), path, row_group_size=5)


def truncated(path: Path) -> None:
    sound(path)
    path.write_bytes(path.read_bytes()[:-30])


def footer_only(path: Path) -> None:
    """The end of the file is whole, but what it points to is not there."""
    sound(path)
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    path.write_bytes(b"PAR1" + data[-8 - length :])


def wrong_magic(path: Path) -> None:
    sound(path)
    path.write_bytes(path.read_bytes()[:-4] + b"PAR2")


def no_bytes(path: Path) -> None:
    path.write_bytes(b"")


def flipped_byte(path: Path) -> None:
    """In the text of the last row group; only the page's checksum tells."""
    pq.write_table(
        table(), path, row_group_size=5, compression="none", use_dictionary=False,
        write_page_checksum=True, store_schema=False,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    place = data.rindex(table()["text"][14].as_py().encode()) + 3
    data[place] ^= 1
    path.write_bytes(data)


def zeros_in_the_middle(path: Path) -> None:
    sound(path)
    data = bytearray(path.read_bytes())
    data[40:200] = bytes(160)
    path.write_bytes(data)


def with_columns(path: Path) -> pa.Table:
    """Columns that no text and no metadata come from, beside those of `table`."""
    vectors = pa.array([[float(row)] * 4 for row in range(ROWS)], pa.list_(pa.float32()))
    pieces = pa.array([{"name": f"name {row}"} for row in range(ROWS)])
    pictures = pa.array([f"bytes {row}".encode() * 9 for row in range(ROWS)])
    columns = {"vectors": vectors, "pieces": pieces, "pictures": pictures}
    whole = table()
    for name, column in columns.items():
        whole = whole.append_column(name, column)
    pq.write_table(
        whole, path, row_group_size=5, compression="none", use_dictionary=False,
        write_page_checksum=True, store_schema=False,
    )  # fmt: skip
    return whole


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two sound shards and a target; tests add a third shard that is not."""
    return write_plain_pool(tmp_path / "place", rows=ROWS)


def assert_all_accounted_for(run: Run, rows_known: bool = True) -> None:
    """Rows in = kept + dropped + quarantined, each with a reason, and no kept row is a bad one."""
    documents = "SELECT count(*) FILTER (kept), count(*) FILTER (NOT kept) FROM document"
    problems = "SELECT count(*), bool_or(kept), sum(tokens) FROM document WHERE problem IS NOT NULL"
    (total,) = run.sql("SELECT sum(rows) FROM shard")[0]
    kept, dropped = run.sql(documents)[0]
    (in_shards,) = run.sql("SELECT coalesce(sum(rows), 0) FROM quarantined WHERE row IS NULL")[0]
    assert total == kept + dropped + in_shards
    assert kept == sum(pq.read_metadata(part).num_rows for part in run.parts())
    assert run.sql("SELECT count(*) FROM document WHERE reason IS NULL") == [(0,)]
    assert run.sql("SELECT count(*) FROM shard WHERE status <> 'ok' AND error IS NULL") == [(0,)]
    bad = run.sql(problems)
    single = run.sql("SELECT count(*) FROM quarantined WHERE row IS NOT NULL")
    assert bad[0][0] == single[0][0]
    assert not bad[0][1]
    assert not bad[0][2]
    assert verify(run.out, full=True).findings == ()
    if rows_known:
        assert run.sql("SELECT count(*) FROM shard WHERE rows IS NULL") == [(0,)]


DAMAGE: dict[Callable[[Path], None], tuple[str, int | None]] = {
    truncated: ("is not a readable Parquet file (", None),
    wrong_magic: ("is not a readable Parquet file (", None),
    no_bytes: ("is not a readable Parquet file (", None),
    footer_only: ("is not a readable Parquet file (", ROWS),
    flipped_byte: ("is not a readable Parquet file (", ROWS),
    zeros_in_the_middle: ("is not a readable Parquet file (", ROWS),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_a_damaged_shard_is_left_out_and_counted(
    place: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    broken = place / "pool" / "1-broken.parquet"  # between the sound ones
    damage(broken)
    run = run_tiny(place, tmp_path / "out", **LENIENT)
    said, rows = DAMAGE[damage]
    found = run.sql("FROM quarantined")
    assert [(row[0], row[1], row[2], row[3]) for row in found] == [(1, str(broken), None, rows)]
    assert found[0][4].startswith(f"Shard {broken} {said}")
    assert run.sql("SELECT shard_id, status, documents FROM shard ORDER BY 1") == [
        (0, "ok", ROWS), (1, "quarantined", 0), (2, "ok", ROWS),
    ]  # fmt: skip
    assert run.sql("SELECT count(*) FROM document WHERE shard_id = 1") == [(0,)]
    assert_all_accounted_for(run, rows_known=rows is not None)


def test_the_selection_is_as_if_the_shard_were_not_there(place: Path, tmp_path: Path) -> None:
    """Shard ids, and so ids and noise, stay when the damaged shard sorts last."""
    without = run_tiny(place, tmp_path / "without", method="random")
    truncated(place / "pool" / "9.parquet")
    run = run_tiny(place, tmp_path / "out", **{**LENIENT, "keep": 0.2})
    columns = "document_id, tokens, kept, weight"
    assert run.sql(f"SELECT {columns} FROM document") == without.sql(
        f"SELECT {columns} FROM document"
    )


def test_a_model_run_leaves_it_out_too(place: Path, tmp_path: Path) -> None:
    zeros_in_the_middle(place / "pool" / "1-broken.parquet")
    run = run_tiny(place, tmp_path / "out", max_bad_fraction=0.6, keep=0.5)
    assert len(run.sql("FROM quarantined")) == 1
    assert_all_accounted_for(run)
    assert run.sql("SELECT count(*) FROM decision WHERE shard_id = 1") == [(0,)]


@pytest.mark.parametrize("name", ["vectors", "pieces", "pictures", "id"])
def test_damage_in_a_column_that_only_passes_through(
    place: Path, tmp_path: Path, name: str
) -> None:
    """Found as the text is read, not when the dataset is written after all training."""
    for shard in ("0", "1", "2"):
        with_columns(place / "pool" / f"{shard}.parquet")
    broken = place / "pool" / "1.parquet"
    group = pq.read_metadata(broken).row_group(2)
    chunks = [group.column(index) for index in range(group.num_columns)]
    (chunk,) = [one for one in chunks if one.path_in_schema.split(".")[0] == name]
    data = bytearray(broken.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    broken.write_bytes(data)
    run = run_tiny(place, tmp_path / "out", **LENIENT, metadata_columns=[])
    ((shard_id, problem),) = run.sql("SELECT shard_id, problem FROM quarantined")
    assert shard_id == 1
    assert problem.startswith(f"Shard {broken} is not a readable Parquet file (")
    assert_all_accounted_for(run)


def test_all_shards_are_damaged(place: Path, tmp_path: Path) -> None:
    for shard in (place / "pool").iterdir():
        wrong_magic(shard)
    with pytest.raises(InvalidInput, match="is not a readable Parquet file"):
        run_tiny(place, tmp_path / "out", **LENIENT)
    assert not (tmp_path / "out").exists()


def test_all_shards_turn_out_damaged(place: Path, tmp_path: Path) -> None:
    for shard in (place / "pool").iterdir():
        footer_only(shard)
    with pytest.raises(InvalidInput) as caught:
        run_tiny(place, tmp_path / "out", **{**LENIENT, "max_bad_fraction": 1.0})
    assert caught.value.problem == "The pool has no text: every document is empty."


# Too much of it.


def refused_for_damage(place: Path, out: Path, **settings: object) -> str:
    result = curate(*run_arguments(place, out, method="random", **settings))
    assert result.exit_code == 3, (result.exit_code, result.exception, result.stderr)
    assert result.stdout == ""
    return str(result.stderr)


def test_more_than_is_allowed_by_the_footers(place: Path, tmp_path: Path) -> None:
    """Nothing was written: the footers told."""
    broken = place / "pool" / "2.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    before = snapshot(tmp_path)
    said = refused_for_damage(place, tmp_path / "out")
    assert said.startswith(
        "Error: 33 % of the pool cannot be read, more than max_bad_fraction (0.01) allows: "
        f"Shard {broken} is not a readable Parquet file ("
    )
    assert said.endswith(
        "\nTo fix: Repair or remove what is damaged, or set max_bad_fraction to 0.35 or more.\n"
    )
    assert snapshot(tmp_path) == before
    run = run_tiny(place, tmp_path / "out", method="random", max_bad_fraction=0.35)
    assert_all_accounted_for(run, rows_known=False)


def test_more_than_is_allowed_by_the_data(place: Path, tmp_path: Path) -> None:
    """The same run goes on under another limit: nothing depends on it."""
    flipped_byte(place / "pool" / "2.parquet")
    flipped_byte(place / "pool" / "3.parquet")
    said = refused_for_damage(place, tmp_path / "out", max_bad_fraction=0.4)
    *_, problem, _ = said.splitlines()
    assert re.match(
        r"Error: 6\d % of the pool cannot be read, more than max_bad_fraction \(0\.4\) allows: "
        r"Shard .*2\.parquet is not a readable Parquet file \(.*\)\. 1 more shard too\.$",
        problem,
    )
    assert not (tmp_path / "out" / "data").exists()
    result = curate(*run_arguments(place, tmp_path / "out", method="random", max_bad_fraction=0.8))
    assert result.exit_code == 0, result.stderr
    assert "Quarantined: Shard " in result.stderr
    whole = run_tiny(place, tmp_path / "whole", method="random", max_bad_fraction=0.8)
    assert whole.sql("FROM document") == Run(place, tmp_path / "out").sql("FROM document")


def test_none_is_allowed(place: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a b c", "id": n}) for n in range(999)]
    pool = place / "lines" / "a.jsonl"
    pool.parent.mkdir()
    pool.write_text("\n".join([*lines, "{"]))
    shutil.rmtree(place / "pool")
    pool.parent.rename(place / "pool")
    with pytest.raises(TooMuchDamage) as caught:
        run_tiny(place, tmp_path / "out", method="random", max_bad_fraction=0)
    shard = place / "pool" / "a.jsonl"
    assert caught.value.problem == (
        "0.1 % of the pool cannot be read, more than max_bad_fraction (0) allows: "
        f"Shard {shard} has rows that cannot be used (0.1 % of them)."
    )
    run = run_tiny(place, tmp_path / "out", method="random")
    assert_all_accounted_for(run)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("where", ["start", "end"])
def test_bad_rows_count_against_the_whole_shard(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    """Wherever they lie, and however little of the shard has been read by then."""
    monkeypatch.setattr("curate.read.cache.FRAGMENT_ROWS", 256)
    bad, good = [b"\xff"] * 15, [b"sound text here"] * 1985
    texts = [*bad, *good] if where == "start" else [*good, *bad]
    shutil.rmtree(place / "pool")
    (place / "pool").mkdir()
    shard = place / "pool" / f"a.{kind}"
    if kind == "jsonl":
        lines = [b"{" if text in bad else b'{"text": "%s"}' % text for text in texts]
        shard.write_bytes(b"\n".join(lines))
    else:
        values = pa.array(texts, pa.binary())
        pq.write_table(
            pa.table({"text": pa.Array.from_buffers(pa.string(), 2000, values.buffers())}), shard
        )
    run = run_tiny(place, tmp_path / "out", method="random", max_bad_fraction=0.0075)
    assert_all_accounted_for(run)
    with pytest.raises(TooMuchDamage) as caught:
        run_tiny(place, tmp_path / "less", method="random", max_bad_fraction=0.0074)
    assert caught.value.problem == (
        "0.75 % of the pool cannot be read, more than max_bad_fraction (0.0074) allows: "
        f"Shard {shard} has rows that cannot be used (0.75 % of them)."
    )


# Single rows.


def test_text_that_is_not_utf8(place: Path, tmp_path: Path) -> None:
    texts = [
        b"sound text here",
        b"\xff\xfe",
        b"\xed\xa0\x80 a lone surrogate",
        b"nul \x00 is sound",
    ]
    values = pa.Array.from_buffers(pa.string(), 4, pa.array(texts, pa.binary()).buffers())
    pq.write_table(pa.table({"text": values, "id": [1, 2, 3, 4]}), place / "pool" / "9.parquet")
    run = run_tiny(place, tmp_path / "out", method="random", max_bad_fraction=0.5, keep=1.0)
    assert run.sql("SELECT row, problem FROM quarantined") == [
        (1, "the text is not UTF-8"), (2, "the text is not UTF-8"),
    ]  # fmt: skip
    assert run.sql("SELECT reason, count(*) FROM document GROUP BY ALL ORDER BY ALL") == [
        ("quarantined", 2), ("selected", 2 * ROWS + 2),
    ]  # fmt: skip
    part = pq.read_table(run.out / "data" / "part-00002.parquet")
    assert part["text"].to_pylist() == ["sound text here", "nul \0 is sound"]
    assert_all_accounted_for(run)
    said = curate("log", str(run.out), "--why", "2:1").stdout
    assert said.endswith("Quarantined: the row cannot be used (the text is not UTF-8).\n\n")


def test_metadata_that_is_not_utf8(place: Path, tmp_path: Path) -> None:
    names = pa.Array.from_buffers(
        pa.string(), 2, pa.array([b"\xffx", b"fine"], pa.binary()).buffers()
    )
    (place / "pool" / "0.parquet").unlink()
    (place / "pool" / "1.parquet").unlink()
    pq.write_table(pa.table({"text": ["a b", "c d"], "n": names}), place / "pool" / "0.parquet")
    run = run_tiny(place, tmp_path / "out", method="random", keep=1.0)
    assert run.sql("SELECT n FROM document ORDER BY document_id") == [("\ufffdx",), ("fine",)]
    (part,) = run.parts()
    assert pq.read_table(part)["n"].combine_chunks().buffers()[2].to_pybytes()[:2] == b"\xffx"


def jsonl_pool(place: Path, data: bytes, name: str = "a.jsonl") -> Path:
    shutil.rmtree(place / "pool")
    (place / "pool").mkdir()
    path = place / "pool" / name
    path.write_bytes(data)
    return path


def test_broken_lines(place: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text number {n}", "n": n}).encode() for n in range(20)]
    lines[3] = b'{"text": "cut off'
    lines[11] = b'{"text": "\xff", "n": 1}'
    lines[12] = b"not json at all"
    jsonl_pool(place, b"\n".join(lines))
    run = run_tiny(place, tmp_path / "out", method="random", max_bad_fraction=0.2, keep=1.0)
    assert [row for (row,) in run.sql("SELECT row FROM quarantined")] == [3, 11, 12]
    kept = pq.read_table(run.parts()[0])["n"].to_pylist()
    assert kept == [n for n in range(20) if n not in (3, 11, 12)]
    assert_all_accounted_for(run)


def test_a_broken_gzip_tail(place: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = "\n".join(json.dumps({"text": words(random, 50)}) for _ in range(3000)).encode()
    broken = jsonl_pool(place, gzip.compress(lines)[:-2000], "b.jsonl.gz")
    (broken.parent / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    run = run_tiny(place, tmp_path / "out", **LENIENT)
    (found,) = run.sql("SELECT shard_id, row, rows, problem FROM quarantined")
    assert found[:3] == (1, None, None)
    assert found[3].startswith(f"Shard {broken} is not a readable JSONL file (")
    assert_all_accounted_for(run, rows_known=False)


def test_a_file_that_grows_while_it_is_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl_pool(place, b'{"text": "a b c"}\n' * 900)
    encode = tokens.TextTokenizer.encode

    def slow(self: tokens.TextTokenizer, texts: list[str]) -> list[np.ndarray]:
        if len(texts) == 256:
            with path.open("ab") as file:
                file.write(b'{"text": "one more"}\n')
        return encode(self, texts)

    monkeypatch.setattr(tokens.TextTokenizer, "encode", slow)
    with pytest.raises(InvalidInput) as caught:
        run_tiny(place, tmp_path / "out", method="random")
    assert caught.value.problem == f"Shard {path} changed while it was read."
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["fewer rows", "other columns", "no Parquet"])
def test_a_shard_that_is_replaced_before_its_turn(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is not damaged: the sound rows of a sound shard are not to be left out."""
    path = place / "pool" / "z.parquet"
    sound(path)
    check = tokens.check_damage

    def replacing(*arguments: object, **more: object) -> None:
        if kind == "fewer rows":
            pq.write_table(table(ROWS - 1), path, row_group_size=5)
        elif kind == "other columns":
            pq.write_table(table().rename_columns(["text", "other"]), path, row_group_size=5)
        else:
            path.write_bytes(b"being written")
        check(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "check_damage", replacing)
    with pytest.raises(InvalidInput) as caught:
        run_tiny(place, tmp_path / "out", **LENIENT)
    assert caught.value.problem == f"Shard {path} changed while it was read."
    assert caught.value.exit_code == 2


# Interrupted.


def test_a_run_killed_at_the_damage_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros_in_the_middle(place / "pool" / "1-broken.parquet")
    truncated(place / "pool" / "2-broken.parquet")
    whole = run_tiny(place, tmp_path / "whole", **LENIENT)
    out = tmp_path / "out"
    check = tokens.check_damage
    calls = 0

    def interrupted(*arguments: object, **more: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the damaged shard has just been told of
            raise KeyboardInterrupt
        check(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "check_damage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(place, out, **LENIENT)
    partial = RunFolder(out)
    assert json.loads(partial.manifest_path.read_text())["partial"]["result"]["damaged"]
    monkeypatch.undo()
    assert_same_outcome(run_tiny(place, out, **LENIENT), whole)


def test_the_summary_and_the_card_tell(place: Path, tmp_path: Path) -> None:
    truncated(place / "pool" / "1-broken.parquet")
    run = run_tiny(place, tmp_path / "out", **LENIENT)
    said = curate("log", str(run.out)).stdout
    assert "Quarantined: 1 shard of the pool (FROM quarantined says why)\n" in said
    assert "1 damaged shard of the pool was left out" in (run.out / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("t.jsonl", b'{"text": "a b"}\n{"text": \n', "JSON parse error: Invalid value"),
        ("t.jsonl", b'{"text": "a b"}\n{"text": "\xff"}\n', "Invalid UTF8 sequence)"),
        ("t.parquet", b"", "the text is not UTF-8"),
    ],
)
def test_the_target_must_be_whole(
    place: Path, tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    target = place / name
    target.write_bytes(data)
    if not data:
        texts = pa.array([b"a b", b"\xff"], pa.binary()).buffers()
        values = pa.Array.from_buffers(pa.string(), 2, texts)
        pq.write_table(pa.table({"text": values}), target)
    result = curate(*run_arguments(place, tmp_path / "out"), "--target", str(target))
    assert result.exit_code == 2
    assert f"Error: Row 1 of shard {target} cannot be used ({problem}" in result.stderr
    assert "To fix: Repair or remove the row.\n" in result.stderr
