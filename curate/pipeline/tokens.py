"""Stages `tokenizer` and `tokens`: the pool's text becomes the token cache."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.clock import TOKENIZE, doing
from curate.errors import DamagedShard, InvalidInput, OutputFailed
from curate.pipeline.folder import START_AGAIN, RunFolder, check_state
from curate.pipeline.prepare import Inputs
from curate.pipeline.progress import Progress
from curate.pipeline.quarantine import check_damage, damaged_shards
from curate.read.cache import (
    TokenCache,
    cache_from_json,
    plan_partitions,
    write_fragments,
)
from curate.read.corpus import Shard
from curate.read.documents import Documents, from_tokens
from curate.read.tokenizer import (
    TextTokenizer,
    load_tokenizer,
    sample_texts,
    sound_texts,
    text_bytes,
    train_tokenizer,
)
from curate.records import make_document_id

_TARGET_TOKENS = 16_000_000
"""A target beyond this is cut: it would not fit the idea of a small sample held in memory."""


@doing(TOKENIZE)
def tokenizer_stage(inputs: Inputs, folder: RunFolder, progress: Progress) -> TextTokenizer:
    """Train the tokenizer on the pool, or fetch the pretrained model's own.

    Raises:
        InvalidInput: the pretrained model's cannot be loaded.
        OutputFailed: the run's own copy is gone.
    """
    place = folder.state / "tokenizer"
    if folder.result("tokenizer") is None:
        started = time.monotonic()
        progress.start("tokenizer", 1, "")
        tokenizer = make_tokenizer(inputs, tokenizer_sample(inputs))
        tokenizer.save(place)
        folder.finish("tokenizer", {"entries": tokenizer.vocabulary_size}, [], started)
    try:
        return load_tokenizer(str(place))
    except InvalidInput as error:  # what it says is about a model that the user chose
        raise OutputFailed(
            f"The run's own tokenizer {place} cannot be read.", START_AGAIN
        ) from error


def tokenizer_sample(
    inputs: Inputs, on_read: Callable[[Shard, pa.Array], None] = lambda shard, texts: None
) -> Iterator[str]:
    """What a tokenizer is trained on: `sample_texts` of the pool."""
    size = inputs.config.model.tokenizer_sample_bytes
    return sample_texts(inputs.pool, inputs.config.seed, size, on_read)


def make_tokenizer(inputs: Inputs, sample: Iterator[str]) -> TextTokenizer:
    """A tokenizer trained on the sample, or the pretrained model's own.

    Raises:
        InvalidInput: the pretrained model's cannot be loaded.
    """
    model = inputs.config.model
    if inputs.shape.llama is None:
        return load_tokenizer(model.name)
    return train_tokenizer(sample, model.vocabulary_size or inputs.shape.vocabulary_size or 0)


@doing(TOKENIZE)
def tokens_stage(
    inputs: Inputs, folder: RunFolder, tokenizer: TextTokenizer, progress: Progress
) -> TokenCache:
    """Tokenize every shard of the pool into the cache.

    Raises:
        InvalidInput: the whole pool gave no tokens.
        OutputFailed: what is recorded of the cache is gone or damaged.
        TooMuchDamage: more of it cannot be read than `max_bad_fraction` allows.
    """
    place = folder.state / "tokens"
    done = folder.result("tokens")
    if done is not None:
        return _kept(place, done)
    partial = folder.partial("tokens")
    if partial is None:
        shutil.rmtree(place, ignore_errors=True)
        cache = TokenCache(place, (), plan_partitions(inputs.pool))
    else:
        cache = _kept(place, partial)
    for problem in damaged_shards(inputs.pool).values():
        progress.note(f"Quarantined: {problem}")
    progress.start("tokenize", sum(shard.text_bytes for shard in inputs.pool.shards), "B")
    started = time.monotonic()
    interval = 60 * inputs.config.compute.checkpoint_minutes
    most = inputs.config.max_bad_fraction
    next_look, damaged = 0, cache.damaged
    try:
        for cache in _grow(inputs, tokenizer, cache, progress):  # noqa: B020 (each holds the last)
            done = len(cache.fragments)
            if done >= next_look or cache.damaged is not damaged:
                shard = cache.fragments[-1].shard_id if cache.fragments else None
                check_damage(inputs.pool, most, cache, under_way=shard)
                next_look, damaged = done + 1 + done // 32, cache.damaged  # a look takes O(done)
            if time.monotonic() - started >= interval:
                folder.pause("tokens", cache.to_json(), started)
                started = time.monotonic()
    except KeyboardInterrupt:
        folder.pause("tokens", cache.to_json(), started)
        raise
    check_damage(inputs.pool, most, cache)
    if cache.tokens == 0:
        raise InvalidInput(
            "The pool has no text: its documents gave no tokens.",
            f"Give --pool documents with text in column {inputs.pool.text_column}.",
        )
    folder.finish("tokens", cache.to_json(), [], started)
    return cache


def _kept(place: Path, recorded: dict[str, Any]) -> TokenCache:
    """The cache as the manifest has it, all of which must be there."""
    cache = cache_from_json(place, recorded)
    check_state(itertools.chain(cache.token_files(), cache.document_files()))
    return cache


def _grow(
    inputs: Inputs, tokenizer: TextTokenizer, cache: TokenCache, progress: Progress
) -> Iterator[TokenCache]:
    """The cache after each fragment that is not done yet, and after each shard that is damaged."""
    last = cache.fragments[-1].shard_id if cache.fragments else 0
    before = [one for one in cache.fragments if one.shard_id == last]
    for shard in inputs.pool.sound:
        if shard.shard_id < last or shard.shard_id in cache.damaged:
            continue
        try:
            for fragment in write_fragments(
                inputs.pool,
                shard,
                tokenizer,
                cache.folder,
                metadata_columns=inputs.metadata_columns,
                partitions=cache.partitions,
                seed=inputs.config.seed,
                done=[one for one in before if one.shard_id == shard.shard_id],
            ):
                cache = cache.with_fragment(fragment)
                progress.advance(fragment.bytes)
                yield cache
        except DamagedShard as damage:
            progress.note(f"Quarantined: {damage.problem}")
            cache = cache.with_damage(shard.shard_id, damage.problem)
            yield cache


@doing(TOKENIZE)
def read_target(inputs: Inputs, tokenizer: TextTokenizer, progress: Progress) -> Documents:
    """The tokenized target, in memory; reading stops after 16 M tokens, and the user is told.

    Raises:
        InvalidInput: it gave no tokens.
    """
    target = inputs.target
    ids: list[int] = []
    sizes: list[int] = []
    tokens = []
    read = 0
    batches = (
        (shard, *found)
        for shard in target.shards
        for found in target.iter_batches(shard, columns=[target.text_column])
    )
    for shard, first_row, batch in batches:
        column = batch.column(0)
        sizes.extend(text_bytes(column).tolist())
        tokens.extend(tokenizer.encode(sound_texts(column, shard, first_row)))
        first = make_document_id(shard.shard_id, first_row)
        ids.extend(range(first, first + batch.num_rows))
        read += sum(map(len, tokens[-batch.num_rows :]))
        if read > _TARGET_TOKENS:
            if next(batches, None) is not None:
                progress.note(
                    f"The target is large: its first {len(ids):,} documents, {read:,} tokens, are "
                    "used, and the others are not read."
                )
            break
    if read == 0:
        raise InvalidInput(
            "The target has no text: its documents gave no tokens.",
            f"Give --target documents with text in column {target.text_column}.",
        )
    every = from_tokens(ids, sizes, tokens)
    return every.take(np.flatnonzero(every.lengths))
