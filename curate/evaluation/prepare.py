"""Everything that can be wrong with an evaluation, found before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from curate.config.schema import ComputeConfig
from curate.errors import InvalidInput
from curate.evaluation.runs import FinishedRun, open_run
from curate.evaluation.settings import CURATED, EvaluateSettings, arm_name
from curate.evaluation.tokens import cached_tokens
from curate.read.cache import TokenCache
from curate.read.corpus import Corpus, display_uri, open_corpus
from curate.read.documents import Documents, from_tokens
from curate.read.tokenizer import TextTokenizer, load_tokenizer, sound_texts, text_bytes
from curate.records import make_document_id
from curate.train.compute import Compute, resolve_compute
from curate.train.model import ModelShape, find_shape


@dataclass(frozen=True, slots=True)
class Test:
    """The target's test set.

    Attributes:
        documents: its documents with at least one token.
        texts: their texts, to find them again in a kept set.
        fingerprints: of its shards.
    """

    documents: Documents
    texts: frozenset[str]
    fingerprints: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The checked inputs of an evaluation.

    Attributes:
        settings: what was asked for.
        run: the run that is evaluated.
        others: further runs by the name of their arm.
        pool: the pool's tokens where they are still there, else its text.
        tokenizer: the one of all arms.
        test: the target's test set.
        shape: the model's shape.
        compute: device and precision.
        warnings: sentences that belong beside the result.
    """

    settings: EvaluateSettings
    run: FinishedRun
    others: dict[str, FinishedRun]
    pool: TokenCache | Corpus
    tokenizer: TextTokenizer
    test: Test
    shape: ModelShape
    compute: Compute
    warnings: tuple[str, ...]

    @property
    def datasets(self) -> dict[str, FinishedRun]:
        """The runs whose curated datasets are arms, by name; the evaluated one first."""
        return {CURATED: self.run, **self.others}


def prepare(settings: EvaluateSettings) -> Inputs:
    """Open and check everything an evaluation needs.

    Raises:
        InvalidInput: a run, the test, the model or the device cannot be used.
    """
    run = open_run(settings.out)
    others = {arm_name(out): _open_other(out, run) for out in settings.against}
    compute = resolve_compute(ComputeConfig(device=settings.device, threads=settings.threads))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shape = find_shape(settings.model)
    _check_window(settings, shape)
    from_scratch = shape.llama is not None
    tokenizer = load_tokenizer(str(run.tokenizer_folder) if from_scratch else settings.model)
    for one in (run, *others.values()):
        _check_masks(one, tokenizer)
    pool = cached_tokens(run, tokenizer) or open_pool(run, settings.pool)
    test = _read_test(settings, run, tokenizer)
    return Inputs(
        settings=settings,
        run=run,
        others=others,
        pool=pool,
        tokenizer=tokenizer,
        test=test,
        shape=shape,
        compute=compute,
        warnings=tuple(_seen_targets(test, run, others)),
    )


def open_pool(run: FinishedRun, source: str | None) -> Corpus:
    """The text of a run's pool.

    Raises:
        InvalidInput: it is gone, or not what it was.
    """
    try:
        pool = open_corpus(
            source or run.config.pool, text_column=run.config.text_column, tolerant=True
        )
    except InvalidInput as error:
        raise InvalidInput(
            error.problem, "Say with --pool where the pool of the run lies now."
        ) from None
    if tuple(shard.fingerprint for shard in pool.shards) != run.pool:
        raise InvalidInput(
            f"The pool in {display_uri(source or run.config.pool)} is not the one that the run in "
            f"{run.out} curated.",
            "Say with --pool where the pool of the run lies now.",
        )
    return pool


def _open_other(out: Path, run: FinishedRun) -> FinishedRun:
    other = open_run(out)
    if other.pool != run.pool:
        raise InvalidInput(
            f"The runs in {run.out} and {out} curated different pools.",
            "Give --against runs over the same pool.",
        )
    return other


def _check_window(settings: EvaluateSettings, shape: ModelShape) -> None:
    if settings.window is not None and settings.window > shape.longest_window:
        raise InvalidInput(
            f"--window is {settings.window}, but {settings.model} reads at most "
            f"{shape.longest_window} tokens.",
            f"Set --window to {shape.longest_window} or less.",
        )


def _check_masks(run: FinishedRun, tokenizer: TextTokenizer) -> None:
    if run.has_masks and run.tokenizer_fingerprint != tokenizer.fingerprint:
        raise InvalidInput(
            f"The run in {run.out} kept tokens of another tokenizer than the one that this "
            "evaluation reads with.",
            "Evaluate runs at token granularity with a preset, and against runs of the same "
            "tokenizer.",
        )


def _read_test(settings: EvaluateSettings, run: FinishedRun, tokenizer: TextTokenizer) -> Test:
    config = run.config
    column = settings.text_column or config.target_text_column or config.text_column
    corpus = open_corpus(str(settings.test), text_column=column, role="test")
    documents, texts = read_documents(corpus, tokenizer)
    if documents.num_tokens == 0:
        raise InvalidInput(
            "The test has no text: every document is empty.",
            f"Give --test documents with text in column {column}.",
        )
    fingerprints = tuple(shard.fingerprint for shard in corpus.shards)
    return Test(documents, frozenset(texts), fingerprints)


def _seen_targets(test: Test, run: FinishedRun, others: dict[str, FinishedRun]) -> Iterator[str]:
    """What to say where the test is a run's own target."""
    for name, one in [("the run", run), *others.items()]:
        seen = {shard["fingerprint"] for shard in one.folder.identity["target"]}
        if seen & set(test.fingerprints):
            yield (
                f"The test is the target that {name} selected for: its gain on other text of the "
                "kind is likely smaller."
            )


def read_documents(corpus: Corpus, tokenizer: TextTokenizer) -> tuple[Documents, list[str]]:
    """A whole corpus in memory: its documents with at least one token, and their texts."""
    ids: list[int] = []
    sizes: list[int] = []
    texts: list[str] = []
    tokens = []
    for shard in corpus.shards:
        for first_row, batch in corpus.iter_batches(shard, columns=[corpus.text_column]):
            column = batch.column(0)
            first = make_document_id(shard.shard_id, first_row)
            ids.extend(range(first, first + batch.num_rows))
            sizes.extend(text_bytes(column).tolist())
            texts.extend(sound_texts(column, shard, first_row))
            tokens.extend(tokenizer.encode(texts[-batch.num_rows :]))
    every = from_tokens(ids, sizes, tokens)
    full = np.flatnonzero(every.lengths)
    return every.take(full), [texts[i] for i in full]
