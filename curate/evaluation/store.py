"""A dataset's tokens on disk, in flat arrays that are mapped, not read: passed over in any order.

Why: an epoch visits the documents of a curated set in a random order, repeated by weight. The set
may not fit in memory, and a shuffle of blocks would not be uniform. Mapped flat arrays give any
document in any order, and a document's pieces too, since a piece is a slice of the same array.

What it costs: the tokens once more on disk (2 or 4 bytes each), and in memory some 30 bytes for
each document, or for each piece of a long one; the tokens themselves stay in the page cache.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from curate.errors import InvalidInput
from curate.files import atomic_folder, write_text
from curate.read.documents import Documents, offsets_from_lengths

_ARRAYS = ("ids", "bytes", "lengths", "weights", "input_ids", "counted")
_KINDS = frozenset(np.dtype(one).str for one in ("?", "u2", "i4", "i8", "f4"))
_INDEX = "store.json"


@dataclass(frozen=True, slots=True)
class Store:
    """N documents and how often each is to be seen in an epoch.

    Attributes:
        documents: their tokens, mapped from disk; `ids` are pool document ids.
        weights: copies of each in an epoch on average, float64 [N].
        facts: what was found out when the store was written.
    """

    documents: Documents
    weights: npt.NDArray[np.float64]
    facts: Mapping[str, Any]

    @property
    def epoch_tokens(self) -> float:
        """Tokens of an epoch on average, every copy counted."""
        return float(np.dot(self.weights, self.documents.lengths))


def write_store(
    folder: Path,
    blocks: Iterable[tuple[Documents, npt.NDArray[np.floating]]],
    facts: Mapping[str, Any],
) -> Store:
    """Write documents and their weights [N] into a folder, whole or not at all.

    Args:
        folder: where; what is there is replaced.
        blocks: the documents piece by piece, all of them with or all without `counted`.
        facts: plain values kept beside them; read after the last block.
    """
    kinds: dict[str, str] = {}
    with atomic_folder(folder) as temporary:
        with contextlib.ExitStack() as stack:
            files: dict[str, IO[bytes]] = {
                name: stack.enter_context((temporary / name).open("wb")) for name in _ARRAYS
            }
            for documents, weights in blocks:
                for name, array in _columns(documents, weights).items():
                    kinds[name] = array.dtype.str
                    files[name].write(array.tobytes())  # `tofile` says nothing of a full disk
        write_text(temporary / _INDEX, json.dumps({"kinds": kinds, "facts": dict(facts)}) + "\n")
    return open_store(folder)


def open_store(folder: Path) -> Store:
    """The store in a folder.

    Raises:
        FileNotFoundError: there is no whole one.
        InvalidInput: its index is not one that `write_store` wrote: a name could be a path, and a
            kind make numbers pointers.
    """
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    if not all(name in _ARRAYS and kind in _KINDS for name, kind in index["kinds"].items()):
        raise InvalidInput(f"{folder / _INDEX} was changed.", f"Remove the folder {folder}.")
    arrays = {name: _mapped(folder / name, kind) for name, kind in index["kinds"].items()}
    lengths = arrays.get("lengths", np.zeros(0, dtype=np.int64))
    empty = np.zeros(0, dtype=np.int64)
    documents = Documents(
        arrays.get("ids", empty),
        arrays.get("bytes", empty),
        offsets_from_lengths(lengths),
        arrays.get("input_ids", np.zeros(0, dtype=np.uint16)),
        arrays.get("counted"),
    )
    weights = np.asarray(arrays.get("weights", empty), dtype=np.float64)
    return Store(documents, weights, index["facts"])


def has_store(folder: Path) -> bool:
    """Whether a folder holds a whole store."""
    return (folder / _INDEX).is_file()


def _columns(
    documents: Documents, weights: npt.NDArray[np.floating]
) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {
        "ids": documents.ids,
        "bytes": documents.bytes,
        "lengths": documents.lengths,
        "weights": weights.astype(np.float32),
        "input_ids": documents.input_ids,
    }
    if documents.counted is not None:
        columns["counted"] = documents.counted
    return columns


def _mapped(path: Path, kind: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # cannot be mapped
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")
