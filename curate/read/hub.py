"""Read a Hugging Face dataset, by name from the Hub or as `save_to_disk` left it, as one shard.

`hf:owner/name?split=train&config=en&revision=main` loads through `datasets.load_dataset`, which
keeps an Arrow copy in its own cache; a folder with `state.json` is opened in place. Either way the
rows are memory mapped. Code from a dataset repository is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from curate.errors import InvalidInput
from curate.read.locate import connect, display_uri, short_reason
from curate.read.schema import OnBadRow, Probe, conform, fewer_rows, ignore_bad_row

PREFIX = "hf:"
_OPTIONS = ("split", "config", "revision")


@dataclass(frozen=True, slots=True)
class HubReader:
    """Reads a loaded dataset; `uri` is what the user gave (absolute where it is a folder)."""

    uri: str
    dataset: Any

    def probe(self) -> Probe:
        """Describe the dataset; sizes are those of its Arrow buffers, in bytes."""
        data = self.dataset.data
        return Probe(
            schema=self.dataset.features.arrow_schema,
            size=int(data.nbytes),
            rows=len(self.dataset),
            text_bytes=int(data.nbytes),
            fingerprint=self.fingerprint(),
        )

    def fingerprint(self) -> str:
        """What `datasets` knows it by."""
        return str(self.dataset._fingerprint)

    def read(
        self,
        schema: pa.Schema,
        wanted: pa.Schema,
        batch_rows: int,
        on_bad: OnBadRow = ignore_bad_row,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order as batches of `wanted`, at most `batch_rows` rows each.

        `schema` is the corpus schema, of which `wanted` is a part; `on_bad` is told nothing.
        """
        del schema, on_bad
        data = self.dataset.data
        most = fewer_rows(batch_rows, int(data.nbytes), data.num_rows)
        for table in self.dataset.with_format("arrow").iter(most):
            for batch in table.combine_chunks().to_batches():
                yield conform(batch, wanted)


def is_name(source: str) -> bool:
    """Whether `source` is `hf:NAME` (and not an fsspec `hf://` URL)."""
    return source.startswith(PREFIX) and not source.startswith("hf://")


def load_name(source: str, role: str) -> HubReader:
    """Load `hf:NAME?split=..&config=..&revision=..`; the split is `train` unless given.

    Raises:
        InvalidInput: an option is unknown, or the dataset cannot be loaded.
    """
    name, _, query = source.removeprefix(PREFIX).partition("?")
    options = {key: unquote(value) for key, value in _pairs(query)}
    for key in options:
        if key not in _OPTIONS:
            raise InvalidInput(
                f'The {role} {PREFIX}{name} has an unknown option "{key}".',
                "Use split, config and revision, as in hf:owner/name?split=train&config=en.",
            )
    from datasets import load_dataset  # noqa: PLC0415 (slow to import, rarely needed)

    try:
        dataset = load_dataset(
            name,
            name=options.get("config"),
            split=options.get("split", "train"),
            revision=options.get("revision"),
        )
    except Exception as error:  # the library raises many kinds, from several packages
        raise _not_loaded(source, role, error) from None
    return HubReader(source, dataset)


def load_folder(source: str, role: str) -> HubReader | None:
    """Open the folder that `Dataset.save_to_disk` wrote; None where `source` is not one.

    Raises:
        InvalidInput: the folder holds several splits, or cannot be read.
    """
    fs, path = connect(source, role)
    path = path.rstrip("/")
    local = isinstance(fs, LocalFileSystem)
    if not local and re.search(r"[*?\[]", path):
        return None
    if _holds(fs, f"{path}/dataset_dict.json"):
        raise InvalidInput(
            f"The {role} path {display_uri(source)} holds several splits of a dataset.",
            "Name the folder of one split in it.",
        )
    if not (_holds(fs, f"{path}/state.json") and _holds(fs, f"{path}/dataset_info.json")):
        return None
    from datasets import load_from_disk  # noqa: PLC0415 (slow to import, rarely needed)

    address = path if local else str(fs.unstrip_protocol(path))
    try:
        dataset = load_from_disk(address, storage_options=fs.storage_options)
    except Exception as error:  # the library raises many kinds, from several packages
        raise _not_loaded(source, role, error) from None
    return HubReader(display_uri(address), dataset)


def _holds(fs: Any, path: str) -> bool:
    """Whether a file is there; a storage error is left to the listing that follows."""
    try:
        return bool(fs.isfile(path))
    except Exception:
        return False


def _pairs(query: str) -> list[tuple[str, str]]:
    """(key, raw value) of each option; a plus sign stays one, as splits are joined by it."""
    parts = (part.partition("=") for part in query.split("&") if part)
    return [(key, value) for key, _, value in parts]


def _not_loaded(source: str, role: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"The {role} dataset {display_uri(source)} could not be loaded ({short_reason(error)}).",
        "Check its name, config, split and revision, and that the Hub or your cache has it.",
    )
