"""A planted pool of English-like words whose tokens are its UTF-8 bytes, and a context over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.config.schema import Config
from curate.read.cache import TokenCache, write_fragments
from curate.read.corpus import open_corpus
from curate.read.documents import Documents, concatenate, offsets_from_lengths
from curate.select.methods.base import Context
from curate.select.schedule import Schedule

VOCABULARIES = (
    ["alpha", "beta", "gamma", "delta", "sigma"],
    ["rain", "snow", "wind", "hail", "sleet"],
)
SHARED = ["the", "of", "and", "to", "in", ",", "."]
PLANTED_EVERY = 4
"""Every fourth pool row is of kind 0, like the target; the rest are of kind 1."""


class Bytes:
    """Stands where a tokenizer stands: a text's tokens are its bytes."""

    @staticmethod
    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) for text in texts]


def decode(documents: Documents) -> list[str]:
    """Inverse of `Bytes.encode`."""
    every = documents.input_ids.astype(np.uint8).tobytes()
    ends = zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
    return [every[first:last].decode() for first, last in ends]


def as_documents(texts: list[str], first_id: int = 0) -> Documents:
    """Tokenized texts; ids count from `first_id`."""
    encoded = Bytes.encode(texts)
    lengths = np.array([len(one) for one in encoded], dtype=np.int64)
    tokens = np.concatenate([np.zeros(0, dtype=np.uint16), *encoded])
    ids = first_id + np.arange(len(texts))
    return Documents(ids, lengths, offsets_from_lengths(lengths), tokens)


def word_text(kind: int, number: int) -> str:
    """10 to 40 words, about half of them common to both kinds."""
    random = np.random.default_rng([kind, number])
    words = [*VOCABULARIES[kind], *SHARED]
    return " ".join(random.choice(words, size=int(random.integers(10, 40))))


def pool_kind(row: int) -> int:
    return 0 if row % PLANTED_EVERY == 0 else 1


@dataclass
class WordPool:
    """The pool's texts by row, its cache, and the target."""

    texts: list[str]
    cache: TokenCache
    target_texts: list[str]
    tokens: list[int] = field(default_factory=list)

    @property
    def every(self) -> Documents:
        """The whole pool in one block."""
        return concatenate(list(self.cache.stream(0)))

    @staticmethod
    def planted(documents: Documents) -> np.ndarray:
        """Which pool documents are of the target's kind."""
        return documents.ids % PLANTED_EVERY == 0

    def context(
        self, *, target: list[str] | None = None, seed: int = 0, **sections: Any
    ) -> Context:
        texts = self.target_texts if target is None else target
        self.tokens.clear()
        return Context(
            config=Config(pool="p", target="t", out="o", seed=seed, **sections),
            schedule=Schedule(),
            cache=self.cache,
            target=as_documents(texts),
            make_model=no_model,
            decode=decode,
            on_step=lambda step: None,
            on_tokens=self.tokens.append,
        )


def no_model() -> Any:
    raise AssertionError("a method that counts words builds no model")


def make_word_pool(folder: Path, texts: list[str] | None = None, rows: int = 240) -> WordPool:
    """Write and tokenize a pool, by default the planted one; its target is of kind 0."""
    texts = [word_text(pool_kind(row), row) for row in range(rows)] if texts is None else texts
    pq.write_table(pa.table({"text": texts}), folder / "pool.parquet")
    corpus = open_corpus(str(folder / "pool.parquet"))
    fragments = write_fragments(
        corpus,
        corpus.shards[0],
        Bytes(),
        folder / "cache",
        metadata_columns=[],
        partitions=3,
        seed=0,
    )
    cache = TokenCache(folder / "cache", tuple(fragments), 3)
    return WordPool(texts, cache, [word_text(0, 10_000 + row) for row in range(30)])


def in_pieces(documents: Documents, seed: int) -> tuple[list[Documents], np.ndarray]:
    """The documents shuffled and cut at random, one piece empty, and where they came from."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(documents))
    cuts = np.sort(random.integers(0, len(order), 7))
    pieces = [documents.take(piece) for piece in np.split(order, [0, *cuts])]
    return pieces, order
