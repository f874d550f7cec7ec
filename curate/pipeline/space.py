"""How many bytes of disk a run or an evaluation still needs: an estimate for people.

Whole stages are counted, at sizes seen in runs over natural text, and what a stage under way has
on disk already is taken off. DuckDB's spill, which only a small memory makes it write, is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from curate.pipeline.folder import RunFolder
from curate.pipeline.prepare import Inputs
from curate.read.cache import cache_from_json
from curate.select.methods import METHODS
from curate.select.methods.base import TOKEN
from curate.train.model import count_parameters

_CACHED_DOCUMENT = 40
_DECISION = 40
_SELECTION = 20
_LOGGED_DOCUMENT = 60
_KEPT_DOCUMENT = 16
"""Bytes of one row in the files of a run."""

_MASKED_TOKEN = 2.5
"""Bytes of a token and its mask, compressed."""

_LOG = 2_000_000
_FEWEST = 1_000_000
"""Bytes of an empty log; and of what is named as missing at least."""

_BYTES_PER_TOKEN, _BYTES_PER_TEXT = 4, 2000
"""Of natural text, where nothing is counted yet."""

_MODEL_COPIES = 6
"""Copies of the weights in a checkpoint: live, mean, two moments, reference, control."""

_WIDE_VOCABULARY = 1 << 16
_CHECKPOINTS = 2
"""The old one goes when the new one is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The sizes of a run.

    Attributes:
        pool_bytes: of its shards on storage.
        tokens: of its pool.
        documents: of its pool.
        vocabulary_size: of its tokenizer.
        keep: share of the tokens that are kept.
        visits: decisions about each document.
        by_token: whether there are masks.
        model_bytes: weights and moments in a checkpoint.
    """

    pool_bytes: int
    tokens: int
    documents: int
    vocabulary_size: int
    keep: float
    visits: int
    by_token: bool
    model_bytes: int


def needed_bytes(
    inputs: Inputs, folder: RunFolder, *, tokens: int | None = None, documents: int | None = None
) -> int:
    """About how many bytes a run will still write.

    Args:
        inputs: of the run.
        folder: what it has written.
        tokens: of its pool, where that is known better than by the bytes of its shards.
        documents: likewise.
    """
    config, pool, model = inputs.config, inputs.pool, inputs.config.model
    recorded = folder.result("tokens")
    if recorded is not None:
        tokens = cache_from_json(folder.state / "tokens", recorded).tokens
    elif tokens is None:
        tokens = sum(shard.text_bytes for shard in pool.shards) // _BYTES_PER_TOKEN
    if documents is None:
        documents = sum(shard.rows or shard.text_bytes // _BYTES_PER_TEXT for shard in pool.shards)
    entries = (folder.result("tokenizer") or {}).get("entries", 0)
    size = int(entries or model.vocabulary_size or inputs.shape.vocabulary_size or 0)
    kind = METHODS[config.method]
    parameters = count_parameters(model.name, inputs.shape, size) if kind.has_proxy else 0
    work = Work(
        pool_bytes=sum(shard.bytes for shard in pool.shards),
        tokens=tokens,
        documents=documents,
        vocabulary_size=size,
        keep=config.keep,
        visits=config.visits,
        by_token=config.granularity == TOKEN,
        model_bytes=4 * _MODEL_COPIES * parameters,
    )
    written = {
        "tokens": _size(folder.state / "tokens"),
        "rounds": _size(folder.state / "rounds") + _size(folder.state / "checkpoints"),
        "data": _size(folder.path / "data"),
    }
    return bytes_left(work, folder.done, written)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which need not be there."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def bytes_left(work: Work, done: Collection[str], written: Mapping[str, int]) -> int:
    """About how many bytes a run will still write.

    Args:
        work: its sizes.
        done: names of its stages that are done.
        written: bytes that `tokens`, `rounds` (with checkpoints) and `data` have on disk.
    """
    masks = _MASKED_TOKEN * work.keep * work.tokens if work.by_token else 0
    decisions = work.visits * work.documents
    needs = {
        "tokens": cache_bytes(work.tokens, work.documents, work.vocabulary_size),
        "rounds": _DECISION * decisions + work.visits * masks + _CHECKPOINTS * work.model_bytes,
        "select": _SELECTION * work.documents + masks,
        "data": work.keep * (work.pool_bytes + _KEPT_DOCUMENT * work.documents) + masks,
        "log": _LOG + _LOGGED_DOCUMENT * work.documents + _DECISION * decisions,
    }
    finished = {*done, *(["rounds"] if "select" in done else [])}
    left = (
        max(0.0, need - written.get(stage, 0))
        for stage, need in needs.items()
        if stage not in finished
    )
    return max(_FEWEST, int(sum(left)))


def evaluation_bytes(kept_tokens: Iterable[int], cache: int, log: int, vocabulary_size: int) -> int:
    """About how many bytes an evaluation will write.

    Args:
        kept_tokens: of each curated dataset, the evaluated one first.
        cache: bytes of the pool's tokens, 0 where they are there already.
        log: bytes of the run's log, which is copied.
        vocabulary_size: of the tokenizer.
    """
    kept = list(kept_tokens)
    arms = sum(kept) + kept[0]  # the random sample is as large as the evaluated dataset
    return max(_FEWEST, cache + token_bytes(vocabulary_size) * arms + log)


def cache_bytes(tokens: int, documents: int, vocabulary_size: int) -> int:
    """About how many bytes the token cache of a pool takes."""
    return token_bytes(vocabulary_size) * tokens + _CACHED_DOCUMENT * documents


def token_bytes(vocabulary_size: int) -> int:
    """Bytes of one token id on disk."""
    return 2 if vocabulary_size <= _WIDE_VOCABULARY else 4
