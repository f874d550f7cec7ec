"""Finished runs as an evaluation reads them: their settings, pool, tokenizer and curated rows."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import Config, load_config
from curate.errors import CurateError, InvalidInput
from curate.files import sha256_file
from curate.log.query import LOG_NAME, connect, reading
from curate.pipeline.folder import RunFolder
from curate.read.documents import Documents, from_tokens, offsets_from_lengths
from curate.read.tokenizer import TextTokenizer, load_tokenizer, text_bytes, text_values
from curate.write.parts import is_part, part_number

_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that went to its end.

    Attributes:
        out: its output folder.
        folder: its manifest.
        config: its resolved settings.
        pool: fingerprint of each pool shard, in order, from its log.
        record: what its log says of it: device, stage_seconds.
    """

    out: Path
    folder: RunFolder
    config: Config
    pool: tuple[str, ...]
    record: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash over the content of the curated dataset."""
        parts = {name: sha for name, sha in self.folder.files.items() if name.startswith("data/")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def kept_tokens(self) -> int:
        """Tokens the run kept, by its own tokenizer."""
        return int(self.folder.result("complete")["kept_tokens"])

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lies.

        Raises:
            InvalidInput: nowhere.
        """
        for place in (self.out / "tokenizer", self.folder.state / "tokenizer"):
            if (place / "tokenizer.json").is_file():
                return place
        raise InvalidInput(
            f"The tokenizer of the run in {self.out} is gone.",
            "Run curate run again with the same settings and another --out.",
        )

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """What tells its tokenizer from others."""
        return load_tokenizer(str(self.tokenizer_folder)).fingerprint

    @property
    def has_masks(self) -> bool:
        """Whether tokens were kept or dropped, not documents."""
        return self.config.granularity == "token"

    def parts(self) -> list[Path]:
        """The files of the curated dataset that the run wrote, in pool order."""
        data = self.out / "data"
        files = (self.out / name for name in self.folder.files)
        parts = (one for one in files if one.parent == data and is_part(one))
        return sorted(parts, key=part_number)

    def check(self, path: Path) -> None:
        """Make sure that a file of the run is the one it wrote.

        Raises:
            InvalidInput: it is gone, or another.
        """
        recorded = self.folder.files.get(str(path.relative_to(self.out)))
        if recorded is None or not path.is_file() or sha256_file(path) != recorded:
            raise InvalidInput(
                f"{path} is not what the run wrote: it is gone or was changed.",
                "See what else is damaged with curate verify; curate run with a new --out makes "
                "the output again.",
            )


def open_run(out: Path) -> FinishedRun:
    """Open the folder of a finished run.

    Raises:
        InvalidInput: there is none, or its log is not the one it wrote.
    """
    folder = RunFolder.open_finished(out)
    with reading(out) as log:
        shards = log.execute("SELECT fingerprint FROM shard ORDER BY shard_id").fetchall()
        device, seconds = log.execute("SELECT device, stage_seconds FROM run").fetchall()[0]
    run = FinishedRun(
        out=out,
        folder=folder,
        config=load_config(out / "config.yaml"),
        pool=tuple(fingerprint for (fingerprint,) in shards),
        record={"device": device, "stage_seconds": json.loads(seconds)},
    )
    if LOG_NAME in folder.files:  # or an evaluation was interrupted as it wrote there
        run.check(out / LOG_NAME)
    return run


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Some rows of a curated dataset: N documents, their weights [N] and their texts."""

    documents: Documents
    weights: npt.NDArray[np.float64]
    texts: list[str]


def read_kept(run: FinishedRun, tokenizer: TextTokenizer) -> Iterator[KeptRows]:
    """Stream the curated dataset with pool document ids; `tokenizer` is for runs without masks.

    Documents of a run with masks carry its own tokens, `counted` where the mask says so, and
    weight 1: the mask stands for the weight.

    Raises:
        InvalidInput: a part is not the one that the run wrote.
        CurateError: the rows of a part are not those that the log says were kept.
    """
    with connect(run.out) as log:
        for part in run.parts():
            run.check(part)
            ids = _kept_ids(log, part_number(part))
            with pq.ParquetFile(part) as file:
                if file.metadata.num_rows != len(ids):
                    raise CurateError(
                        f"{part} has {file.metadata.num_rows} rows, but the log says that "
                        f"{len(ids)} were kept.",
                        "Run curate run again with another --out: this folder was changed.",
                    )
                row = 0
                for batch in file.iter_batches(_BATCH_ROWS, columns=_columns(run)):
                    yield _rows(run, tokenizer, batch, ids[row : row + batch.num_rows])
                    row += batch.num_rows


def _kept_ids(log: duckdb.DuckDBPyConnection, shard_id: int) -> npt.NDArray[np.int64]:
    query = "SELECT document_id FROM document WHERE kept AND shard_id = ? ORDER BY row"
    found = log.execute(query, [shard_id]).fetchnumpy()["document_id"]
    return np.asarray(found, dtype=np.int64)


def _columns(run: FinishedRun) -> list[str]:
    masks = ["input_ids", "loss_mask"] if run.has_masks else ["curate_weight"]
    return [run.config.text_column, *masks]


def _rows(
    run: FinishedRun,
    tokenizer: TextTokenizer,
    batch: pa.RecordBatch,
    ids: npt.NDArray[np.int64],
) -> KeptRows:
    column = batch.column(run.config.text_column)
    texts, sizes = text_values(column), text_bytes(column)
    if run.has_masks:
        lists = batch.column("input_ids")
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        tokens = lists.flatten().to_numpy(zero_copy_only=False)
        mask = batch.column("loss_mask").flatten().to_numpy(zero_copy_only=False)
        documents = Documents(ids, sizes, offsets_from_lengths(lengths), tokens, mask)
        return KeptRows(documents, np.ones(len(ids)), texts)
    documents = from_tokens(ids, sizes, tokenizer.encode(texts))
    weights = batch.column("curate_weight").to_numpy(zero_copy_only=False)
    return KeptRows(documents, weights.astype(np.float64), texts)
