"""`curate run --dry-run`: what a run would take, before it takes it.

Everything is checked as for a run. The pool's tokens are extrapolated from a random sample of its
text, from which the tokenizer is trained as the run would train it, and the time from a trial of
the method on that sample (`pipeline.trial`). Memory is what the trial came to, since a run's does
not grow with its pool. Nothing is written but temporary files.
"""

from __future__ import annotations

import itertools
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curate.config import Config
from curate.errors import InvalidInput
from curate.pipeline.estimated import Estimate
from curate.pipeline.plan import counting_processes, model_maker, plan_run
from curate.pipeline.prepare import Inputs, prepare
from curate.pipeline.progress import Progress
from curate.pipeline.space import needed_bytes
from curate.pipeline.tokens import make_tokenizer, read_target, tokenizer_sample
from curate.pipeline.trial import SECONDS, Costs, try_method
from curate.read.cache import TokenCache, write_fragments
from curate.read.corpus import Shard, open_corpus
from curate.read.tokenizer import TextTokenizer, text_bytes
from curate.refusal import writing
from curate.select.methods import METHODS, Context
from curate.select.schedule import Schedule, sync_tokens
from curate.train.compute import tune_memory

_TRIAL_BYTES = 2_000_000
"""Of text that the method is tried on: enough for a block or two of the largest preset."""
_SECONDS_OF_DOCUMENT, _SECONDS_OF_BYTE = 20e-6, 20e-9
"""Selecting, writing and logging, seen in runs on two cores; little beside the models."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Random texts of a pool, and what the pool comes to by the shards that they are from.

    Attributes:
        texts: about as many bytes as a tokenizer is trained on.
        documents: rows of the pool.
        bytes: UTF-8 bytes of their text.
    """

    texts: list[str]
    documents: int
    bytes: int


def estimate(config: Config, stream: TextIO | None = None) -> Estimate:
    """Check everything that a run would check, and say what it would take; write nothing.

    Args:
        config: what would be done.
        stream: where notes are printed; standard error by default.

    Raises:
        InvalidInput: something the user gave cannot be used.
        NonFiniteLoss: training diverged in its first steps.
        OutputFailed: temporary files cannot be written.
    """
    began = time.monotonic()
    inputs, folder = prepare(config)
    scratch_home = Path(tempfile.gettempdir())
    with (
        Progress(stream) as progress,
        writing(scratch_home),
        tempfile.TemporaryDirectory(prefix="curate-trial-") as scratch,
    ):
        found, tokenizer, sampling = _read_sample(inputs)
        started = time.monotonic()
        cache = _tokenize(inputs, found.texts, tokenizer, Path(scratch))
        sample_bytes = max(1, sum(fragment.bytes for fragment in cache.fragments))
        tokenizing = (time.monotonic() - started) / sample_bytes
        if not cache.tokens:
            raise InvalidInput(
                "A sample of the pool has no text: its documents gave no tokens.",
                f"Give --pool documents with text in column {inputs.pool.text_column}.",
            )
        tokens = _rounded(cache.tokens * found.bytes / sample_bytes)
        target = read_target(inputs, tokenizer, progress)
        plan = plan_run(inputs, tokenizer, pool_tokens=tokens, target_tokens=target.num_tokens)
        if inputs.compute.device.type == "cpu":
            tune_memory()
        with counting_processes(inputs, tokenizer) as processes:
            costs = try_method(
                plan.method,
                Context(
                    config=plan.config,
                    schedule=plan.schedule,
                    cache=cache,
                    target=target,
                    make_model=model_maker(plan.config, inputs, tokenizer),
                    decode=tokenizer.decode,
                    on_step=lambda record: None,
                    processes=processes,
                ),
                Path(scratch),
                SECONDS,
            )
    seconds = {
        "tokenize": sampling + tokenizing * found.bytes,
        **stage_seconds(costs, plan.config, plan.schedule, tokens),
        "write": _SECONDS_OF_DOCUMENT * found.documents + _SECONDS_OF_BYTE * found.bytes,
    }
    return Estimate(
        out=folder.path,
        begun=bool(folder.done),
        plan=plan.described,
        pool_documents=found.documents,
        pool_bytes=found.bytes,
        pool_tokens=tokens,
        seconds=seconds,
        memory_bytes=_peak_memory(),
        device_memory_bytes=_peak_device_memory(inputs),
        disk_bytes=needed_bytes(inputs, folder, tokens=tokens, documents=found.documents),
        free_bytes=_free_bytes(folder.path),
        compute=inputs.compute.names,
        threads=torch.get_num_threads(),
        trial_seconds=time.monotonic() - began,
    )


def stage_seconds(
    costs: Costs, config: Config, schedule: Schedule, pool_tokens: int
) -> dict[str, float]:
    """What the stages of a method take, in seconds.

    Args:
        costs: of a token in each.
        config: resolved.
        schedule: the plan.
        pool_tokens: tokens of the pool.
    """
    trains = METHODS[config.method].has_proxy
    warm_up = costs.step * int(config.blade.warmup_tokens or 0) if trains else 0.0
    if not trains:  # whose progress counts the pool once for its scores, and what is before them
        warm_up = costs.count * max(0, schedule.expected_tokens - pool_tokens)
    syncs = costs.step * schedule.syncs * sync_tokens(config)
    drawn = schedule.passes * min(pool_tokens, schedule.pass_tokens or pool_tokens)
    rounds = schedule.rounds * costs.sync + costs.draw * drawn
    scoring = costs.score * pool_tokens if schedule.scoring else 0.0
    in_rounds = schedule.rounds > 0
    return {
        "start": costs.once,
        "warm-up": warm_up,
        "rounds": rounds + syncs * in_rounds,
        "scoring": scoring + syncs * (not in_rounds),
    }


def _read_sample(inputs: Inputs) -> tuple[_Sample, TextTokenizer, float]:
    """Random texts, the tokenizer that a run would have, and the seconds that both took."""
    pool = inputs.pool
    read: dict[Shard, tuple[int, int]] = {}

    def on_read(shard: Shard, texts: pa.Array) -> None:
        rows, size = read.get(shard, (0, 0))
        read[shard] = rows + len(texts), size + int(text_bytes(texts).sum())

    started = time.monotonic()
    texts = list(tokenizer_sample(inputs, on_read))
    tokenizer = make_tokenizer(inputs, iter(texts))
    seconds = time.monotonic() - started
    rows, size = (sum(one[place] for one in read.values()) for place in (0, 1))
    whole, part = (sum(shard.text_bytes for shard in shards) for shards in (pool.sound, read))
    times = whole / max(1, part)
    known = [shard.rows for shard in pool.sound]
    documents = round(rows * times) if None in known else sum(filter(None, known))
    return _Sample(texts, documents, round(size * times)), tokenizer, seconds


def _tokenize(
    inputs: Inputs, texts: list[str], tokenizer: TextTokenizer, scratch: Path
) -> TokenCache:
    """The token cache of a pool of some of the texts, read from a file as a pool is."""
    size = sum(map(len, texts))
    every = max(1, round(size / _TRIAL_BYTES))
    column = inputs.pool.text_column
    path = scratch / "sample.parquet"
    pq.write_table(pa.table({column: pa.array(texts[::every], pa.large_string())}), path)
    corpus = open_corpus(str(path), text_column=column)
    cache = TokenCache(scratch / "tokens", (), partitions=1)
    for fragment in write_fragments(
        corpus,
        corpus.shards[0],
        tokenizer,
        cache.folder,
        metadata_columns=(),
        partitions=cache.partitions,
        seed=inputs.config.seed,
    ):
        cache = cache.with_fragment(fragment)
    return cache


def _rounded(number: float) -> int:
    """To three digits, which is as much as a sample tells."""
    return max(1, int(float(f"{number:.3g}")))


def _peak_memory() -> int:
    """Bytes of this process at its largest."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _peak_device_memory(inputs: Inputs) -> int | None:
    device = inputs.compute.device
    return None if device.type == "cpu" else torch.cuda.max_memory_reserved(device)


def _free_bytes(out: Path) -> int:
    """Bytes that are free on the disk of a folder that need not be there yet."""
    place = next(one for one in itertools.chain([out], out.absolute().parents) if one.exists())
    return shutil.disk_usage(place).free
