"""The tokenized pool on disk: written once, streamed in any random order, flat in memory.

A fragment holds a run of rows of one shard, at most about `FRAGMENT_TOKENS` tokens. Inside its
Arrow file the documents are sorted into P partitions by a hash of (seed, document id), one record
batch each. A pass draws fragments in random order, a window of them at a time, and reads the
window's partitions one by one: each partition is a uniform random sample of the window, small
enough to shuffle in memory. Beside each token file lies a Parquet file with one row per document
(ids, sizes, the user's metadata columns) for the log.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.clock import READ, doing
from curate.errors import InvalidInput
from curate.files import atomic_path
from curate.noise import make_key, random_uint64, shuffled_order, uniform
from curate.read.corpus import Corpus, Shard
from curate.read.documents import Documents, concatenate, cut, from_tokens
from curate.read.metadata import metadata_values
from curate.read.tokenizer import NOT_UTF8, TextTokenizer, read_texts, text_bytes
from curate.records import DOCUMENT, make_document_id

FRAGMENT_TOKENS = 8_000_000
FRAGMENT_ROWS = 250_000
PARTITION_TOKENS = 2_000_000
MAX_PARTITIONS = 64
WINDOW_FRAGMENTS = 64
_BYTES_PER_TOKEN = 4

WhichIds = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
"""Tells of document ids [N] whether each is meant."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of rows of one shard.

    `rows` counts all, `documents` those with at least one token, `bad` those that cannot be used.
    """

    name: str
    shard_id: int
    rows: int
    documents: int
    tokens: int
    bytes: int
    bad: int = 0


@dataclass(frozen=True, slots=True)
class TokenCache:
    """All fragments of the pool, in pool order.

    Attributes:
        folder: where they lie.
        fragments: what is known of each.
        partitions: in each fragment.
        damaged: shards that turned out damaged as they were read, and why; none has a fragment.
        leave_out: tells of document ids [N] which of them streams pass over, bool [N].
    """

    folder: Path
    fragments: tuple[Fragment, ...]
    partitions: int
    damaged: Mapping[int, str] = field(default_factory=dict)
    leave_out: WhichIds | None = None

    @property
    def documents(self) -> int:
        """Pool rows with at least one token."""
        return sum(fragment.documents for fragment in self.fragments)

    @property
    def tokens(self) -> int:
        """Tokens of the whole pool."""
        return sum(fragment.tokens for fragment in self.fragments)

    def with_fragment(self, fragment: Fragment) -> TokenCache:
        """The same with one more."""
        return dataclasses.replace(self, fragments=(*self.fragments, fragment))

    def with_damage(self, shard_id: int, problem: str) -> TokenCache:
        """The same without what was read of a shard before it turned out damaged."""
        sound = tuple(one for one in self.fragments if one.shard_id != shard_id)
        damaged = {**self.damaged, shard_id: problem}
        return dataclasses.replace(self, fragments=sound, damaged=damaged)

    def without(self, which: WhichIds) -> TokenCache:
        """The same pool, of which streams pass over such documents too."""
        before = self.leave_out

        def either(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
            return which(ids) if before is None else which(ids) | before(ids)

        return dataclasses.replace(self, leave_out=either)

    def document_files(self) -> list[Path]:
        """Parquet files with one row per pool row, in pool order."""
        return [self.folder / f"{fragment.name}.parquet" for fragment in self.fragments]

    def token_files(self) -> list[Path]:
        """Arrow files with the tokens, in pool order."""
        return [self.folder / f"{fragment.name}.arrow" for fragment in self.fragments]

    def stream(self, seed: int, *purpose: str | int) -> Iterator[Documents]:
        """Every document that is not left out once, in an order that is a pure function of (seed,
        purpose).
        """
        key = make_key(seed, "order", *purpose)
        order = shuffled_order(key, range(len(self.fragments)))
        for first in range(0, len(order), WINDOW_FRAGMENTS):
            window = order[first : first + WINDOW_FRAGMENTS]
            for partition in shuffled_order(key ^ int(window[0]), range(self.partitions)):
                yield self._shuffled(window, int(partition), key)

    def in_pool_order(self, which: WhichIds | None = None) -> Iterator[Documents]:
        """Every document, left out or not, by fragment; no partition shows in the order.

        Args:
            which: fragments without any such document are passed over, and not read.
        """
        rows: Counter[int] = Counter()
        for fragment in self.fragments:
            first = make_document_id(fragment.shard_id, rows[fragment.shard_id])
            rows[fragment.shard_id] += fragment.rows
            if which is not None and not which(first + np.arange(fragment.rows)).any():
                continue
            parts = [self._read(fragment, partition) for partition in range(self.partitions)]
            every = concatenate(parts)
            yield every.take(np.argsort(every.ids))

    @doing(READ)
    def _shuffled(self, window: npt.NDArray[np.int64], partition: int, key: int) -> Documents:
        parts = [self._read(self.fragments[int(i)], partition) for i in window]
        drawn = concatenate([part for part in parts if len(part)])
        if self.leave_out is not None:
            drawn = drawn.take(np.flatnonzero(~self.leave_out(drawn.ids)))
        return drawn.take(shuffled_order(key, drawn.ids))

    def _read(self, fragment: Fragment, partition: int) -> Documents:
        with pa.OSFile(str(self.folder / f"{fragment.name}.arrow")) as opened:
            batch = pa.ipc.open_file(opened).get_batch(partition)
        tokens = batch.column("input_ids")
        return Documents(
            batch.column("document_id").to_numpy(),
            batch.column("bytes").to_numpy(),
            tokens.offsets.to_numpy().astype(np.int64),
            tokens.values.to_numpy(),
        )

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest."""
        fragments = [dataclasses.asdict(fragment) for fragment in self.fragments]
        damaged = {str(shard_id): problem for shard_id, problem in self.damaged.items()}
        return {"partitions": self.partitions, "fragments": fragments, "damaged": damaged}


def cache_from_json(folder: Path, tree: dict[str, Any]) -> TokenCache:
    """Inverse of `TokenCache.to_json`.

    Raises:
        InvalidInput: it is not what that gave; a name could be a path to another file.
    """
    try:
        fragments = tuple(Fragment(**one) for one in tree["fragments"])
        partitions = tree["partitions"]
        named = dict(tree.get("damaged", {}))
        damaged = {int(shard_id): str(problem) for shard_id, problem in named.items()}
    except (KeyError, TypeError, ValueError):
        fragments, partitions, damaged = (), None, {}
    if not isinstance(partitions, int) or not all(map(_is_sound, fragments)):
        raise InvalidInput(
            f"What the run knows of its tokens in {folder} was changed.",
            "Run curate run with another --out.",
        )
    return TokenCache(folder, fragments, partitions, damaged)


def _is_sound(fragment: Fragment) -> bool:
    name, *sizes = dataclasses.astuple(fragment)
    named = isinstance(name, str) and re.fullmatch(r"shard-[0-9]{5,}-[0-9]{5,}", name)
    return bool(named) and all(isinstance(size, int) for size in sizes)


def draw_blocks(stream: Iterator[Documents], block_tokens: int) -> Iterator[Documents]:
    """Consecutive documents of a stream in blocks of `block_tokens` tokens on average.

    A block ends with the document that fills it; what that document holds beyond is taken off the
    next block (whole blocks' worth excepted). The last block may be smaller. Blocks run across the
    stream's chunks.
    """
    held: list[Documents] = []
    held_tokens = 0  # of the block being filled, what the one before took too much included
    for chunk in stream:
        first = 0
        ends = chunk.offsets[1:]
        while first < len(chunk):
            wanted = chunk.offsets[first] + block_tokens - held_tokens
            last = min(int(np.searchsorted(ends, wanted)) + 1, len(chunk))
            piece = chunk.slice(first, last)
            held.append(piece)
            held_tokens += piece.num_tokens
            first = last
            if held_tokens >= block_tokens:
                with doing(READ):
                    block = concatenate(held)
                yield block
                held, held_tokens = [], held_tokens % block_tokens
        with doing(READ):
            held = [concatenate(held)] if held else []  # a copy, so that the chunk can go
    if held:
        yield concatenate(held)


def draw_batches(
    stream: Iterator[Documents], batch_tokens: int, key: int, *, longest: int | None = None
) -> Iterator[Documents]:
    """Blocks to train on, of `batch_tokens` tokens on average and never twice as many.

    Documents longer than a batch are cut into pieces of at most one, which are scattered over their
    chunk of the stream, so that no step is one long document's. The order of whole documents stays.

    Args:
        stream: documents in random order.
        batch_tokens: tokens of a block.
        key: of where the pieces go.
        longest: tokens of a piece, `batch_tokens` by default.
    """
    pieces = (_scattered(chunk, longest or batch_tokens, key) for chunk in stream)
    return draw_blocks(pieces, batch_tokens)


def _scattered(documents: Documents, piece_tokens: int, key: int) -> Documents:
    """Documents in pieces: the first where its document is, those after it anywhere."""
    if documents.lengths.max(initial=0) <= piece_tokens:
        return documents
    owners, pieces = cut(documents, piece_tokens)
    number = np.arange(len(owners)) - np.searchsorted(owners, owners)
    noise = random_uint64(key, pieces.ids) + number.astype(np.uint64)
    anywhere = uniform(key, noise.view(np.int64)) * len(documents)
    place = np.where(number == 0, owners + 0.5, anywhere)
    return pieces.take(np.argsort(place, kind="stable"))


def plan_partitions(corpus: Corpus) -> int:
    """Partitions in each fragment, from the pool's estimated tokens."""
    tokens = sum(shard.text_bytes for shard in corpus.shards) // _BYTES_PER_TOKEN
    return max(1, min(MAX_PARTITIONS, -(-tokens // PARTITION_TOKENS)))


def write_fragments(
    corpus: Corpus,
    shard: Shard,
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    metadata_columns: Sequence[str],
    partitions: int,
    seed: int,
    done: Sequence[Fragment] = (),
) -> Iterator[Fragment]:
    """Tokenize one shard into fragments under `folder`, each whole when it is yielded.

    The rows of `done`, its first fragments, are read over. Every column is read, also those that
    only pass through to the output, so that damage in them is found before anything is trained.

    Raises:
        DamagedShard: the shard turns out damaged; fragments that were yielded are void.
    """
    writer = _FragmentWriter(folder, shard.shard_id, partitions, seed)
    writer.fragments = len(done)
    next_row = sum(fragment.rows for fragment in done)
    problems: dict[int, str] = {}
    batches = corpus.iter_batches(shard, batch_rows=256, on_bad=problems.__setitem__)
    for first_row, batch in batches:
        if first_row < next_row:
            continue
        column = batch.column(corpus.text_column)
        texts, bad = read_texts(column)
        problems.update({first_row + place: NOT_UTF8 for place in bad})
        metadata = [metadata_values(batch.column(name)) for name in metadata_columns]
        writer.add(
            first_row,
            text_bytes(column),
            tokenizer.encode(texts),
            pa.RecordBatch.from_arrays(metadata, names=list(metadata_columns)),
            [problems.pop(row, None) for row in range(first_row, first_row + len(texts))],
        )
        if writer.full:
            yield writer.flush()
    if writer.rows:
        yield writer.flush()


class _FragmentWriter:
    """Collects rows of one shard and writes them as a fragment when enough have come."""

    def __init__(self, folder: Path, shard_id: int, partitions: int, seed: int) -> None:
        self.folder, self.shard_id, self.partitions = folder, shard_id, partitions
        self.key = make_key(seed, "partition")
        self.fragments = 0
        self._clear()

    def _clear(self) -> None:
        self.rows = self.tokens = 0
        self.first_row = 0
        self.sizes: list[npt.NDArray[np.int64]] = []
        self.input_ids: list[npt.NDArray[np.integer]] = []
        self.metadata: list[pa.RecordBatch] = []
        self.problems: list[str | None] = []

    @property
    def full(self) -> bool:
        return self.tokens >= FRAGMENT_TOKENS or self.rows >= FRAGMENT_ROWS

    def add(
        self,
        first_row: int,
        sizes: npt.NDArray[np.int64],
        input_ids: list[npt.NDArray[np.integer]],
        metadata: pa.RecordBatch,
        problems: list[str | None],
    ) -> None:
        if self.rows == 0:
            self.first_row = first_row
        self.rows += len(sizes)
        self.tokens += sum(map(len, input_ids))
        self.sizes.append(sizes)
        self.input_ids.extend(input_ids)
        self.metadata.append(metadata)
        self.problems.extend(problems)

    def flush(self) -> Fragment:
        name = f"shard-{self.shard_id:05d}-{self.fragments:05d}"
        rows = self.first_row + np.arange(self.rows)
        ids = make_document_id(self.shard_id, 0) + rows
        sizes = np.concatenate([np.zeros(0, np.int64), *self.sizes])
        every = from_tokens(ids, sizes, self.input_ids)
        self._write_tokens(name, every)
        self._write_documents(name, every, rows)
        full = every.lengths > 0
        fragment = Fragment(
            name,
            self.shard_id,
            self.rows,
            int(full.sum()),
            self.tokens,
            int(sizes.sum()),
            sum(problem is not None for problem in self.problems),
        )
        self.fragments += 1
        self._clear()
        return fragment

    def _write_tokens(self, name: str, every: Documents) -> None:
        kind = pa.from_numpy_dtype(every.input_ids.dtype)
        schema = pa.schema(
            [
                pa.field("document_id", pa.int64()),
                pa.field("bytes", pa.int64()),
                pa.field("input_ids", pa.list_(kind)),
            ]
        )
        owner = random_uint64(self.key, every.ids) % np.uint64(self.partitions)
        with (
            atomic_path(self.folder / f"{name}.arrow") as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for partition in range(self.partitions):
                mine = np.flatnonzero((owner == partition) & (every.lengths > 0))
                part = every.take(mine)
                tokens = pa.ListArray.from_arrays(part.offsets.astype(np.int32), part.input_ids)
                writer.write_batch(
                    pa.RecordBatch.from_arrays(
                        [pa.array(part.ids), pa.array(part.bytes), tokens], schema=schema
                    )
                )

    def _write_documents(self, name: str, every: Documents, rows: npt.NDArray[np.int64]) -> None:
        shard_ids = np.full(len(every), self.shard_id, dtype=np.int32)
        columns = [every.ids, shard_ids, rows, every.lengths, every.bytes]
        arrays = [*map(pa.array, columns), pa.array(self.problems, pa.string())]
        table = pa.Table.from_arrays(arrays, schema=DOCUMENT)
        if self.metadata:
            extra = pa.Table.from_batches(self.metadata)
            for field, column in zip(extra.schema, extra.columns, strict=True):
                table = table.append_column(field, column)
        with atomic_path(self.folder / f"{name}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
