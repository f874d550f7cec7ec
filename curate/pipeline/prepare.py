"""Everything that can be wrong with the input, found before anything is written."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curate.config import Config
from curate.errors import DamagedShard, InvalidInput
from curate.files import local_folder, model_source
from curate.log.load import check_log_path
from curate.log.query import LOG_NAME
from curate.pipeline.folder import RunFolder
from curate.pipeline.quarantine import check_damage
from curate.read.corpus import Corpus, display_uri, open_corpus
from curate.read.locate import short_reason, takes_in
from curate.read.tokenizer import load_tokenizer, sound_texts, text_bytes
from curate.records import output_columns
from curate.select.methods import METHODS
from curate.train.compute import Compute, resolve_compute
from curate.train.model import ModelShape, find_shape
from curate.write.parts import output_schema

_TARGET_BYTES = 256_000_000
"""A target is read no further: it has the tokens that are used at 16 bytes each, four times as many
as text has.
"""
_WRITTEN = (
    "data/part-00000.parquet", "state/selection.parquet", "state/tokens/shard-00000-00000.parquet",
)  # fmt: skip
"""What a run writes would be read as part of its own input next time; one file of each depth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A run's checked inputs; `config` shows addresses without their credentials."""

    config: Config
    pool: Corpus
    target: Corpus
    shape: ModelShape
    compute: Compute
    metadata_columns: tuple[str, ...]


def prepare(config: Config) -> tuple[Inputs, RunFolder]:
    """Open and check everything a run needs.

    Raises:
        InvalidInput: a path, column, model, device or output folder cannot be used.
        TooMuchDamage: too many shards of the pool are damaged.
    """
    given = config
    config = replace(
        given,
        pool=display_uri(given.pool),
        target=display_uri(given.target),
        model=replace(given.model, name=model_source(given.model.name)),
    )
    _check_granularity(config)
    compute = resolve_compute(config.compute)
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    pool = open_corpus(
        given.pool,
        text_column=config.text_column,
        role="pool",
        reserved_columns=[field.name for field in output_columns(config.granularity)],
        tolerant=True,
    )
    check_damage(pool, config.max_bad_fraction)
    target = open_corpus(
        given.target,
        text_column=config.target_text_column or config.text_column,
        role="target",
    )
    shape = find_shape(config.model.name)
    if shape.llama is None:
        load_tokenizer(config.model.name)
    _check_window(config, shape)
    columns = _metadata_columns(config, pool)
    for corpus, flag in ((pool, "--pool"), (target, "--target")):
        _check_text(corpus, flag)
    _check_whole(target)
    _check_parquet(pool, config.granularity)
    out = local_folder(config.out, "--out")
    check_log_path(out / LOG_NAME)
    for source, flag in ((config.pool, "--pool"), (config.target, "--target")):
        if any(takes_in(source, out / name) for name in _WRITTEN):
            raise InvalidInput(
                f"The output folder {out} lies inside {flag} {source}.",
                "Give another folder with --out.",
            )
    folder = RunFolder(out)
    folder.check(config, pool, target)
    inputs = Inputs(
        config=config,
        pool=pool,
        target=target,
        shape=shape,
        compute=compute,
        metadata_columns=columns,
    )
    return inputs, folder


def _check_granularity(config: Config) -> None:
    if config.granularity in METHODS[config.method].granularities:
        return
    able = [name for name, kind in METHODS.items() if config.granularity in kind.granularities]
    raise InvalidInput(
        f"Method {config.method} cannot decide by {config.granularity}.",
        f"Use --granularity document, or --method {', '.join(able[:-1])} or {able[-1]}.",
    )


def _check_window(config: Config, shape: ModelShape) -> None:
    window = config.model.window or shape.window
    if window > shape.longest_window:
        raise InvalidInput(
            f"model.window is {window}, but {config.model.name} reads at most "
            f"{shape.longest_window} tokens.",
            f"Set model.window to {shape.longest_window} or less.",
        )
    overlap = config.model.window_overlap
    if overlap is not None and overlap >= window:
        raise InvalidInput(
            f"model.window_overlap is {overlap}, but must be less than the window of {window}.",
            "Set model.window_overlap to a smaller number.",
        )


def _check_parquet(pool: Corpus, granularity: str) -> None:
    """Begin a part of the dataset, which is written after everything else."""
    schema = output_schema(pool.schema, output_columns(granularity))
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), schema).close()
    except pa.ArrowException as error:
        raise InvalidInput(
            f"The pool has a column that Parquet cannot hold ({short_reason(error)}).",
            "Leave that column out of the pool, or give its values as text.",
        ) from None


def _check_text(corpus: Corpus, flag: str) -> None:
    """Read until the first document that is not empty."""
    for shard in corpus.sound:
        with contextlib.suppress(DamagedShard):  # which is found, and counted, when all is read
            for _, batch in corpus.iter_batches(shard, columns=[corpus.text_column]):
                if text_bytes(batch.column(0)).any():
                    return
    raise InvalidInput(
        f"The {corpus.role} has no text: every document is empty.",
        f"Give {flag} documents with text in column {corpus.text_column}.",
    )


def _check_whole(target: Corpus) -> None:
    """Read the target as `tokens.read_target` will, which comes after all of the pool.

    Raises:
        InvalidInput: a shard is damaged, or a row cannot be used.
    """
    read = 0
    for shard in target.shards:
        for first_row, batch in target.iter_batches(shard, columns=[target.text_column]):
            column = batch.column(0)
            sound_texts(column, shard, first_row)
            read += int(text_bytes(column).sum())
            if read > _TARGET_BYTES:
                return


def _metadata_columns(config: Config, pool: Corpus) -> tuple[str, ...]:
    others = [field for field in pool.schema if field.name != pool.text_column]
    if config.metadata_columns is None:
        return tuple(field.name for field in others if _is_scalar(field.type))
    known = [field.name for field in others]
    for name in config.metadata_columns:
        if name not in known:
            raise InvalidInput(
                f'metadata_columns names "{name}", which the pool does not have '
                f"(it has: {', '.join(known)}).",
                "Name columns of the pool other than the text.",
            )
    return config.metadata_columns


def _is_scalar(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
    )
