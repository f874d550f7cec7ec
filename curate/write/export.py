"""Exports: a finished run in the form a trainer wants it.

Why: `data/` is Parquet with weights beside the rows. Some trainers read JSON Lines or a saved
Hugging Face dataset, and many cannot weight a loss; for those, weights become repetition.

How: every part is streamed batch by batch into one file of the export, under a temporary sibling of
the destination that is renamed when all files are whole. Nothing is written anywhere else, so a
failed export leaves no trace.

The Hugging Face folder is written straight in the layout of `Dataset.save_to_disk`: Arrow streams,
`state.json`, `dataset_info.json`. Going through the library's builder would write every row twice
and fill its cache in the home folder.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.config.load import read_yaml
from curate.errors import DiskFull, InvalidInput, OutputConflict
from curate.files import (
    StrPath,
    atomic_path,
    check_contained,
    local_folder,
    sha256_file,
    write_text,
)
from curate.read.locate import short_reason
from curate.refusal import writing
from curate.write.parts import part_files, part_number, row_groups
from curate.write.repeat import BATCH_ROWS, COPY_FIELD, repeated_batches, repeated_schema

FORMATS = ("hf", "parquet", "jsonl")
"""What `export_dataset` can write."""

_ROW_GROUP_ROWS = 4096


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote: documents in the run, rows and data files in the export."""

    dest: Path
    documents: int
    rows: int
    files: int


@dataclass(frozen=True)
class _Part:
    """One part of the run, and how to stream its rows for the export."""

    path: Path
    seed: int | None  # None: every row once, weights kept

    @property
    def schema(self) -> pa.Schema:
        schema = self.metadata().schema.to_arrow_schema()
        return schema if self.seed is None else repeated_schema(schema)

    def metadata(self) -> pq.FileMetaData:
        with self._reading():
            return pq.read_metadata(self.path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self._reading():  # what is done with the batches is not done in here
            if self.seed is not None:
                yield from repeated_batches(self.path, part_number(self.path), self.seed)
                return
            with pq.ParquetFile(self.path) as file:
                for group in range(file.num_row_groups):  # nested dictionaries are read by group
                    yield from file.iter_batches(BATCH_ROWS, row_groups=[group])

    def tables(self) -> Iterator[pa.Table]:
        """The same rows in pieces of even size, however few rows a pass takes from a batch."""
        return row_groups(self.batches(), self.schema, _ROW_GROUP_ROWS)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(
                f"The part {self.path} cannot be read ({short_reason(error)}).",
                "See what else is damaged with curate verify; curate run with a new --out makes "
                "the output again.",
            ) from error


def export_dataset(
    out: StrPath, *, to: str, dest: StrPath, materialize: bool = False, seed: int | None = None
) -> ExportSummary:
    """Write the curated dataset of the finished run in `out` to the new folder `dest`.

    Args:
        out: the output folder of a run.
        to: hf (for `datasets.load_from_disk`), parquet or jsonl (one file per part). JSON Lines has
            fewer types: decimals, timestamps, dates and times become strings, durations seconds,
            bytes base64, maps lists of [key, value], NaN and infinities null. The
            Hugging Face form turns maps into lists of {key, value} and dictionaries into values.
        dest: a folder that does not exist or is empty.
        materialize: turn weights into repetition, by stochastic rounding: a document of weight 1.3
            appears once or, with probability 0.3, twice. Drops `curate_weight`, adds `curate_copy`
            (0 for the first copy), which the pool may not have.
        seed: seed of the rounding; the run's by default.

    Raises:
        InvalidInput: `to` is unknown, or there is a seed of nothing, or `out` holds no finished
            run, or a link that leads out, or values that JSON Lines are not written with, or a
            column of an added one's name.
        OutputConflict: `dest` is not empty, or the current folder.
        OutputFailed: `dest` cannot be written; nothing of it is left.
    """
    out, dest = Path(out).expanduser(), local_folder(dest, "--dest")
    if seed is not None and not materialize:
        raise InvalidInput(
            f"--seed {seed} is of the repetition, but documents are not repeated.",
            "Give --materialize too, or leave out --seed.",
        )
    if to not in FORMATS:
        raise InvalidInput(
            f"There is no export format {to}.", f"Give one of {', '.join(FORMATS)} with --to."
        )
    check_contained(out)
    run_seed = _run_seed(out) if seed is None else seed
    if materialize and _setting(out, "granularity") == "token":
        raise InvalidInput(
            "The run kept tokens, not documents, so no document is to be repeated.",
            "Export without --materialize, and train on the tokens that loss_mask marks.",
        )
    parts = [_Part(path, run_seed if materialize else None) for path in _part_paths(out)]
    if materialize and COPY_FIELD.name in parts[0].metadata().schema.to_arrow_schema().names:
        raise InvalidInput(
            f"The pool already has a column named {COPY_FIELD.name}.",
            "Export without --materialize, or rename that column in the pool and run again.",
        )
    try:
        with writing(dest):
            _check_empty(dest)
            rows = _write_folder(to, dest, parts)
    except DiskFull as full:
        raise full.needing(dest, "export", _needed_bytes(to, parts)) from full.__cause__
    documents = sum(part.metadata().num_rows for part in parts)
    return ExportSummary(dest=dest, documents=documents, rows=rows, files=len(parts))


def _write_folder(to: str, dest: Path, parts: list[_Part]) -> int:
    """Write all parts into a sibling of `dest` and rename it; returns the rows."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        folder = scratch / "dataset"
        folder.mkdir()
        rows = _WRITERS[to](folder, parts)
        folder.rename(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return rows


def _needed_bytes(to: str, parts: list[_Part]) -> int:
    """About how many bytes an export writes: only Parquet stays compressed."""
    if to == "parquet":
        return sum(part.path.stat().st_size for part in parts)
    files = (part.metadata() for part in parts)
    groups = (file.row_group(index) for file in files for index in range(file.num_row_groups))
    return sum(group.total_byte_size for group in groups)


def _part_paths(out: Path) -> list[Path]:
    paths = part_files(out)
    if not _is_complete(out) or not paths:
        raise InvalidInput(
            f"There is no finished run in {out}.",
            "Give the output folder of a finished curate run.",
        )
    return paths


def _is_complete(out: Path) -> bool:
    """Whether the manifest says that the run went to its end: parts alone may be some of them."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        return "complete" in manifest["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _setting(out: Path, key: str) -> object:
    config = out / "config.yaml"
    return read_yaml(config).get(key) if config.is_file() else None


def _run_seed(out: Path) -> int:
    value = _setting(out, "seed")
    return value if isinstance(value, int) else 0


def _check_empty(dest: Path) -> None:
    if dest.is_dir() and dest.samefile(Path.cwd()):  # a folder in use cannot be replaced
        raise OutputConflict(
            f"The destination {dest} is the folder that the command runs in.",
            "Give a new folder with --dest.",
        )
    taken = dest.is_symlink() or (dest.exists() and not dest.is_dir())
    if taken or (dest.is_dir() and any(dest.iterdir())):
        raise OutputConflict(
            f"The destination {dest} is not empty.", "Give a new folder with --dest."
        )


def _write_parquet(folder: Path, parts: list[_Part]) -> int:
    rows = 0
    for part in parts:
        with atomic_path(folder / part.path.name) as temporary:
            if part.seed is None:
                shutil.copyfile(part.path, temporary)
                rows += part.metadata().num_rows
                continue
            with pq.ParquetWriter(
                temporary, part.schema, compression="zstd", use_compliant_nested_type=False
            ) as writer:
                for table in part.tables():
                    writer.write_table(table)
                    rows += table.num_rows
    return rows


def _write_jsonl(folder: Path, parts: list[_Part]) -> int:
    rows = 0
    for part in parts:
        with (
            atomic_path(folder / f"{part.path.stem}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as lines,
        ):
            for batch in part.batches():
                for row in _python_rows(batch):
                    lines.write(_json_line(row))
                rows += batch.num_rows
    return rows


def _write_hf(folder: Path, parts: list[_Part]) -> int:
    from datasets import DatasetInfo, Features  # noqa: PLC0415 (slow to import)

    try:
        features = Features.from_arrow_schema(_hf_schema(parts[0].schema))
    except ValueError as error:  # such as views of lists
        raise InvalidInput(
            f"A column has a type that Hugging Face datasets lack ({short_reason(error)}).",
            "Export with --to parquet or --to jsonl.",
        ) from error
    schema = features.arrow_schema
    names = [f"data-{index:05d}-of-{len(parts):05d}.arrow" for index in range(len(parts))]
    rows = 0
    for name, part in zip(names, parts, strict=True):
        with (
            atomic_path(folder / name) as temporary,
            pa.ipc.new_stream(str(temporary), schema) as stream,
        ):
            for table in part.tables():
                stream.write_table(table.cast(schema))
                rows += table.num_rows
    DatasetInfo(features=features).write_to_directory(str(folder))
    contents = "".join(sha256_file(folder / name) for name in names)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": hashlib.sha256(contents.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    write_text(folder / "state.json", json.dumps(state, indent=2, sort_keys=True))
    return rows


def _hf_schema(schema: pa.Schema) -> pa.Schema:
    fields = [field.with_type(_hf_type(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def _hf_type(kind: pa.DataType) -> pa.DataType:
    """The same type with maps as lists of {key, value}, at any depth: datasets has no maps."""
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name.startswith("arrow."):
        return kind.storage_type
    if pa.types.is_map(kind):
        items = [("key", _hf_type(kind.key_type)), ("value", _hf_type(kind.item_type))]
        return pa.list_(pa.struct(items))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_hf_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = kind.value_field.with_type(_hf_type(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(item, kind.list_size)
        return pa.large_list(item) if pa.types.is_large_list(kind) else pa.list_(item)
    return kind


_WITHOUT_JSON: dict[type[Exception], str] = {
    OverflowError: "dates beyond the years 1 to 9999, or durations as long",
    UnicodeDecodeError: "text that is not UTF-8",
    pa.ArrowInvalid: "values that Python has no form for, such as times of an unknown zone",
}
"""What rows hold where Python values cannot be made of them."""


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except tuple(_WITHOUT_JSON) as error:
        held = next(words for kind, words in _WITHOUT_JSON.items() if isinstance(error, kind))
        raise InvalidInput(
            f"The kept rows hold {held}, which --to jsonl cannot write.",
            "Export them with --to parquet or --to hf.",
        ) from None
    return rows


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, default=_as_json) + "\n"


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _as_json(value: Any) -> str | float:
    """What stands for a value of a type that JSON does not have; see `export_dataset`."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


_WRITERS: dict[str, Callable[[Path, list[_Part]], int]] = {
    "hf": _write_hf,
    "parquet": _write_parquet,
    "jsonl": _write_jsonl,
}
