"""Text to tokens for an evaluation, once: the pool, and the curated datasets.

The pool's tokens are those that `curate run` left in its state where they are still there and of
the right tokenizer, and otherwise are made under `evaluation/` in the run's folder. Nothing here
grows in memory with the pool.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate.errors import DamagedShard, InvalidInput
from curate.evaluation.runs import FinishedRun, read_kept
from curate.evaluation.store import Store, has_store, open_store, write_store
from curate.files import is_whole, write_text
from curate.noise import Sample
from curate.pipeline.progress import Progress
from curate.read.cache import TokenCache, cache_from_json, plan_partitions, write_fragments
from curate.read.corpus import Corpus
from curate.read.documents import Documents
from curate.read.tokenizer import TextTokenizer

FOLDER = "evaluation"
"""Folder in a run's output that holds tokens and results of evaluations; may be deleted."""


def cached_tokens(run: FinishedRun, tokenizer: TextTokenizer) -> TokenCache | None:
    """The pool's tokens where a run or an evaluation left them, or None."""
    done = run.folder.result("tokens")
    if run.tokenizer_fingerprint == tokenizer.fingerprint and done is not None:
        cache = cache_from_json(run.folder.state / "tokens", done)
        if _is_whole(cache):
            return cache
    place = run.out / FOLDER / "tokens"
    index = place / "cache.json"
    if not index.is_file():
        return None
    found = json.loads(index.read_text(encoding="utf-8"))
    if (found["tokenizer"], found.get("seed")) != (tokenizer.fingerprint, run.config.seed):
        return None
    cache = cache_from_json(place, found["cache"])
    return cache if _is_whole(cache) else None


def tokenize_pool(
    run: FinishedRun, pool: Corpus, tokenizer: TextTokenizer, progress: Progress
) -> TokenCache:
    """Tokenize the pool into `evaluation/tokens` of the run's folder, in the run's partitions."""
    place = run.out / FOLDER / "tokens"
    shutil.rmtree(place, ignore_errors=True)
    partitions, seed = plan_partitions(pool), run.config.seed
    cache = TokenCache(place, (), partitions)
    progress.start("tokenize", sum(shard.text_bytes for shard in pool.shards), "B")
    for shard in pool.sound:
        try:
            for fragment in write_fragments(
                pool, shard, tokenizer, place, metadata_columns=[], partitions=partitions, seed=seed
            ):
                cache = cache.with_fragment(fragment)
                progress.advance(fragment.bytes)
        except DamagedShard as damage:
            cache = cache.with_damage(shard.shard_id, damage.problem)
    index = {"tokenizer": tokenizer.fingerprint, "seed": seed, "cache": cache.to_json()}
    write_text(place / "cache.json", json.dumps(index) + "\n")
    return cache


def dataset_store(
    run: FinishedRun,
    tokenizer: TextTokenizer,
    held_out: Sample,
    test_texts: frozenset[str],
    folder: Path,
) -> Store:
    """The curated dataset of a run without the held-out documents, made once below `folder`.

    Its `facts` count held-out documents left out (`held_out`), and documents whose text is that of
    a test document (`in_test`), which stay: they are the run's own choice.

    Raises:
        InvalidInput: nothing is left.
    """
    asked = [run.fingerprint, tokenizer.fingerprint, held_out.key, held_out.cutoff]
    asked.append(hashlib.sha256("\0".join(sorted(test_texts)).encode()).hexdigest())
    place = folder / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]
    if has_store(place):
        store = open_store(place)
    else:
        facts: dict[str, Any] = {"held_out": 0, "in_test": 0}
        blocks = _training_rows(run, tokenizer, held_out, test_texts, facts)
        store = write_store(place, blocks, facts)
    if not store.epoch_tokens > 0:
        raise InvalidInput(
            f"Nothing of what the run in {run.out} kept is left without the held-out documents.",
            "Evaluate a run that kept more of its pool.",
        )
    return store


def _training_rows(
    run: FinishedRun,
    tokenizer: TextTokenizer,
    held_out: Sample,
    test_texts: frozenset[str],
    facts: dict[str, Any],
) -> Iterator[tuple[Documents, npt.NDArray[np.float64]]]:
    for rows in read_kept(run, tokenizer):
        held = held_out.holds(rows.documents.ids)
        facts["held_out"] += int(held.sum())
        facts["in_test"] += sum(text in test_texts for text in rows.texts)
        chosen = np.flatnonzero(~held & (rows.documents.lengths > 0))
        yield rows.documents.take(chosen), rows.weights[chosen]


def _is_whole(cache: TokenCache) -> bool:
    return all(map(is_whole, (*cache.token_files(), *cache.document_files())))
