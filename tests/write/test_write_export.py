"""Exports hold the rows of the run, in a form that trainers load."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_write_parts import numbered, pool_table, selection_of

from curate.errors import InvalidInput, OutputConflict
from curate.write.export import FORMATS, export_dataset
from curate.write.parts import write_part
from curate.write.repeat import part_ids, repeat_counts

_COLUMNS = ["text", "decimal", "when", "category", "binary", "large", "flag", "day"]

COMPLETE = '{"stages": {"complete": {}}}'


def finished_run(out: Path, *, columns: list[str] | None = None, rows: int = 300) -> Path:
    """An output folder with parts 0 and 2, with weights from 0.25 to 3."""
    for number in (0, 2):
        table = pool_table(rows, start=number * rows)
        table = table.select(columns) if columns else table
        selection = selection_of(list(range(0, rows, 2)))
        weights = pa.array(np.linspace(0.25, 3, selection.num_rows), pa.float32())
        selection = selection.set_column(1, "weight", weights)
        path = out / "data" / f"part-{number:05d}.parquet"
        write_part(
            path, table.schema, numbered(table, 50), selection.to_batches(), row_group_rows=40
        )
    (out / "manifest.json").write_text(COMPLETE)
    (out / "config.yaml").write_text("seed: 5\n")
    return out


def run_table(out: Path) -> pa.Table:
    return pa.concat_tables(
        pq.ParquetFile(path).read() for path in sorted((out / "data").iterdir())
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "out", columns=_COLUMNS)


def test_loaded_run_and_loaded_export_agree(out: Path, tmp_path: Path):
    (out / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n---\n"
    )
    cache = str(tmp_path / "cache")
    direct = datasets.load_dataset(str(out), split="train", cache_dir=cache)
    export_dataset(out, to="hf", dest=tmp_path / "hf")
    saved = datasets.load_from_disk(str(tmp_path / "hf"))
    assert saved.features == direct.features
    assert saved.to_list() == direct.to_list() == run_table(out).to_pylist()


def test_hf_maps_become_lists_of_pairs(tmp_path: Path):
    out = finished_run(tmp_path / "out", rows=8)
    export_dataset(out, to="hf", dest=tmp_path / "hf")
    saved = datasets.load_from_disk(str(tmp_path / "hf"))
    assert saved[0]["map"] == [{"key": "k", "value": 1.5}]
    assert saved["nested"] == run_table(out).column("nested").to_pylist()


def test_hf_writes_nowhere_else(out: Path, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from pathlib import Path; from curate.write.export import export_dataset; "
        "export_dataset(Path(sys.argv[1]), to='hf', dest=Path(sys.argv[2]), materialize=True)"
    )
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, str(out), str(tmp_path / "hf")]
    subprocess.run(command, env=environment, check=True)
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "home", "out"]


def test_parquet_export_is_the_parts(out: Path, tmp_path: Path):
    summary = export_dataset(out, to="parquet", dest=tmp_path / "new" / "dest")
    assert (summary.documents, summary.rows, summary.files) == (300, 300, 2)
    for path in (out / "data").iterdir():
        assert (summary.dest / path.name).read_bytes() == path.read_bytes()


def test_json_lines_have_every_value(tmp_path: Path):
    out = finished_run(tmp_path / "out", rows=12)
    export_dataset(out, to="jsonl", dest=tmp_path / "lines")
    names = sorted(path.name for path in (tmp_path / "lines").iterdir())
    assert names == ["part-00000.jsonl", "part-00002.jsonl"]
    lines = (tmp_path / "lines" / names[0]).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6
    first = rows[0]
    assert first["text"] == "document 0"
    assert first["decimal"] == "1.2500"
    assert first["when"] == "2024-03-31T03:30:00+02:00"
    assert first["binary"] == "AP8="
    assert first["map"] == [["k", 1.5]]
    assert first["day"] == "1969-07-20"
    assert first["nested"] == [{"a": [1, None], "b": "x"}]
    assert first["curate_weight"] == 0.25


def write_run_of_one(out: Path, table: pa.Table) -> None:
    """A finished run that kept the one row of a table."""
    part = out / "data/part-00000.parquet"
    write_part(part, table.schema, numbered(table, 1), selection_of([0]).to_batches())
    (out / "manifest.json").write_text(COMPLETE)


def test_json_has_no_nan(tmp_path: Path):
    table = pa.table(
        {"x": [[float("nan"), float("inf"), 1.0]], "t": pa.array([1500], "duration[ms]")}
    )
    write_run_of_one(tmp_path / "out", table)
    export_dataset(tmp_path / "out", to="jsonl", dest=tmp_path / "lines")
    row = json.loads((tmp_path / "lines/part-00000.jsonl").read_text())
    assert (row["x"], row["t"]) == ([None, None, 1.0], 1.5)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "value", [pa.array([10**7], "date32"), pa.array([2**61], pa.timestamp("us"))], ids=["day", "us"]
)
def test_dates_that_json_lines_cannot_hold(tmp_path: Path, value: pa.Array, nested: bool):
    column = pa.array([[value[0]]], pa.list_(value.type)) if nested else value
    table = pa.table({"when": column})
    write_run_of_one(tmp_path / "out", table)
    with pytest.raises(InvalidInput, match="dates beyond the years 1 to 9999") as caught:
        export_dataset(tmp_path / "out", to="jsonl", dest=tmp_path / "lines")
    assert caught.value.remedy == "Export them with --to parquet or --to hf."
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for to in ("parquet", "hf"):
        assert export_dataset(tmp_path / "out", to=to, dest=tmp_path / to).rows == 1


def latin_1() -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 4], pa.int32()).buffers()[1], pa.py_buffer(b"caf\xe9")]
    )


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (latin_1(), "text that is not UTF-8"),
        (
            pa.array([0], pa.timestamp("us", "Mars/Base")),
            "values that Python has no form for, such as times of an unknown zone",
        ),
    ],
    ids=["latin-1", "zone"],
)
def test_values_that_json_lines_cannot_hold(tmp_path: Path, column: pa.Array, problem: str):
    write_run_of_one(tmp_path / "out", pa.table({"x": column}))
    with pytest.raises(InvalidInput) as caught:
        export_dataset(tmp_path / "out", to="jsonl", dest=tmp_path / "lines")
    assert caught.value.problem == f"The kept rows hold {problem}, which --to jsonl cannot write."
    assert caught.value.remedy == "Export them with --to parquet or --to hf."
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for to in ("parquet", "hf"):
        assert export_dataset(tmp_path / "out", to=to, dest=tmp_path / to).rows == 1


def test_hf_maps_in_lists_of_a_fixed_size(tmp_path: Path):
    kind = pa.list_(pa.map_(pa.string(), pa.int32()), 2)
    table = pa.table({"x": pa.array([[[("a", 1)], []]], kind)})
    write_run_of_one(tmp_path / "out", table)
    export_dataset(tmp_path / "out", to="hf", dest=tmp_path / "hf")
    row = datasets.load_from_disk(str(tmp_path / "hf"))[0]
    assert row["x"] == [[{"key": "a", "value": 1}], []]


def test_types_that_datasets_lack(tmp_path: Path):
    table = pa.table({"x": pa.array([["a"]], pa.list_view(pa.string()))})
    write_run_of_one(tmp_path / "out", table)
    with pytest.raises(InvalidInput) as caught:
        export_dataset(tmp_path / "out", to="hf", dest=tmp_path / "hf")
    assert caught.value.problem.startswith("A column has a type that Hugging Face datasets lack (")
    assert caught.value.remedy == "Export with --to parquet or --to jsonl."
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for to in ("parquet", "jsonl"):
        assert export_dataset(tmp_path / "out", to=to, dest=tmp_path / to).rows == 1


@pytest.mark.parametrize("to", FORMATS)
def test_a_pool_that_was_materialized_before(tmp_path: Path, to: str):
    table = pa.table({"text": ["a"], "curate_copy": [7]})
    write_run_of_one(tmp_path / "out", table)
    with pytest.raises(InvalidInput) as caught:
        export_dataset(tmp_path / "out", to=to, dest=tmp_path / "dest", materialize=True)
    assert caught.value.problem == "The pool already has a column named curate_copy."
    assert not (tmp_path / "dest").exists()
    export_dataset(tmp_path / "out", to=to, dest=tmp_path / "dest")
    assert exported_rows(tmp_path / "dest", to)[0]["curate_copy"] == 7


@pytest.mark.parametrize("to", FORMATS)
def test_materialized_rows_repeat_by_weight(out: Path, tmp_path: Path, to: str):
    summary = export_dataset(out, to=to, dest=tmp_path / "dest", materialize=True)
    rows = exported_rows(tmp_path / "dest", to)
    assert summary.rows == len(rows)
    assert "curate_weight" not in rows[0]
    copies = Counter(row["text"] for row in rows)
    expected: Counter[str] = Counter()
    for number in (0, 2):
        part = pq.ParquetFile(out / "data" / f"part-{number:05d}.parquet").read()
        weights = part.column("curate_weight").to_numpy()
        counts = repeat_counts(weights, part_ids(number, len(weights)), 5)
        expected.update(dict(zip(part.column("text").to_pylist(), counts.tolist(), strict=True)))
    assert copies == +expected
    pairs = [(row["text"], row["curate_copy"]) for row in rows]
    assert len(set(pairs)) == len(pairs)
    assert all(copy < copies[text] for text, copy in pairs)
    assert all(one["text"] != two["text"] for one, two in itertools.pairwise(rows))


def exported_rows(dest: Path, to: str) -> list[dict]:
    if to == "hf":
        return datasets.load_from_disk(str(dest)).to_list()
    if to == "parquet":
        return [
            row
            for path in sorted(dest.iterdir())
            for row in pq.ParquetFile(path).read().to_pylist()
        ]
    return [json.loads(line) for path in sorted(dest.iterdir()) for line in path.open()]


def test_a_seed_of_nothing_is_refused(out: Path, tmp_path: Path):
    with pytest.raises(InvalidInput) as caught:
        export_dataset(out, to="parquet", dest=tmp_path / "dest", seed=5)
    assert caught.value.problem == (
        "--seed 5 is of the repetition, but documents are not repeated."
    )
    assert not (tmp_path / "dest").exists()


def test_seed_decides_the_copies(out: Path, tmp_path: Path):
    def files(name: str, seed: int | None) -> list[bytes]:
        export_dataset(out, to="jsonl", dest=tmp_path / name, materialize=True, seed=seed)
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    assert files("default", None) == files("run", 5)
    assert files("other", 6) != files("run again", 5)


def test_destination_may_be_an_empty_folder_only(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "empty").mkdir()
    export_dataset(out, to="jsonl", dest=tmp_path / "empty")
    with pytest.raises(OutputConflict) as error:
        export_dataset(out, to="jsonl", dest=tmp_path / "empty")
    assert error.value.problem == f"The destination {tmp_path / 'empty'} is not empty."
    assert error.value.remedy == "Give a new folder with --dest."
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for here in (Path(), tmp_path / "here"):
        with pytest.raises(OutputConflict) as error:
            export_dataset(out, to="jsonl", dest=here)
        said = f"The destination {here} is the folder that the command runs in."
        assert error.value.problem == said
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputConflict):
        export_dataset(out, to="jsonl", dest=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_unknown_format_and_unfinished_run_are_refused(out: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match="Give one of hf, parquet, jsonl with --to"):
        export_dataset(out, to="csv", dest=tmp_path / "dest")
    (out / "manifest.json").unlink()
    with pytest.raises(InvalidInput) as error:
        export_dataset(out, to="hf", dest=tmp_path / "dest")
    assert error.value.problem == f"There is no finished run in {out}."
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("materialize", [False, True])
def test_failed_export_leaves_nothing(out: Path, tmp_path: Path, to: str, materialize: bool):
    last = out / "data" / "part-00002.parquet"
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(InvalidInput) as error:
        export_dataset(out, to=to, dest=tmp_path / "dest", materialize=materialize)
    assert error.value.problem.startswith(f"The part {last} cannot be read (")
    assert error.value.remedy == (
        "See what else is damaged with curate verify; curate run with a new --out makes the output "
        "again."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
