"""The order of an evaluation: check, tokenize, print the sizes, train what is missing, report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from curate.errors import DiskFull
from curate.evaluation import record
from curate.evaluation.arms import draw_sample, gather, pass_over, read_sample, stream_pool
from curate.evaluation.plan import Plan, describe_plan, general_tokens, make_plan, model_settings
from curate.evaluation.prepare import Inputs, prepare
from curate.evaluation.report import make_report
from curate.evaluation.settings import POOL, EvaluateSettings
from curate.evaluation.store import write_store
from curate.evaluation.tokens import FOLDER, dataset_store, tokenize_pool
from curate.evaluation.train import Measure, train_and_measure, trained_tokens
from curate.log.cells import visible
from curate.log.query import LOG_NAME
from curate.noise import make_key
from curate.pipeline.lock import locked
from curate.pipeline.progress import Progress
from curate.pipeline.space import cache_bytes, evaluation_bytes
from curate.read.cache import TokenCache
from curate.read.documents import Documents
from curate.refusal import writing
from curate.train.compute import FreedMemory, tune_memory

HELD_OUT_KEY = make_key(0, "evaluation held out")
"""The general sample is the same in every evaluation of a pool."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        out: the folder of the run that was evaluated.
        report: the content of its `evaluation.json`.
    """

    out: Path
    report: dict[str, Any]


def evaluate(settings: EvaluateSettings, stream: TextIO | None = None) -> Evaluation:
    """Whether a curated dataset helps: `curate evaluate`.

    Args:
        settings: what to train and measure.
        stream: where sizes, progress and single results are printed; standard error by default.

    Raises:
        InvalidInput: something the user gave cannot be used.
        NonFiniteLoss: training diverged.
        OutputFailed: a result cannot be written; the same call goes on when it can.
    """
    inputs = prepare(settings)
    request = record.request_digest(inputs, model_settings(inputs))
    report = record.find_report(inputs.run, request)
    if report is None:
        try:
            report = _go_on(inputs, request, stream)
        except DiskFull as full:
            raise full.needing(
                settings.out, "evaluation", _needed_bytes(inputs)
            ) from full.__cause__
    return Evaluation(inputs.run.out, report)


def _go_on(inputs: Inputs, request: str, stream: TextIO | None) -> dict[str, Any]:
    out = inputs.run.out
    with locked(out), writing(out), Progress(stream) as progress:
        plan = _resolve(inputs, progress)
        if inputs.compute.device.type == "cpu":
            tune_memory()
        progress.note(describe_plan(inputs, plan))
        trained = _train_all(inputs, plan, progress)
        report = make_report(inputs, plan, trained, request)
        record.write_report(inputs.run, report)
        return report


def _needed_bytes(inputs: Inputs) -> int:
    """About how many bytes an evaluation writes."""
    entries = inputs.tokenizer.vocabulary_size
    cache = 0
    if not isinstance(inputs.pool, TokenCache):
        complete = inputs.run.folder.result("complete")
        cache = cache_bytes(complete["pool_tokens"], complete["pool_documents"], entries)
    kept = [one.kept_tokens for one in inputs.datasets.values()]
    log = inputs.run.out / LOG_NAME
    return evaluation_bytes(kept, cache, log.stat().st_size if log.exists() else 0, entries)


def _resolve(inputs: Inputs, progress: Progress) -> Plan:
    """Tokenize what is not tokenized yet, and know every size."""
    run, tokenizer = inputs.run, inputs.tokenizer
    cache = inputs.pool
    if not isinstance(cache, TokenCache):
        cache = tokenize_pool(run, cache, tokenizer, progress)
    held_out = draw_sample(cache, HELD_OUT_KEY, general_tokens(cache.tokens))
    folder = run.out / FOLDER / "datasets"
    progress.start("tokenize", len(inputs.datasets), "dataset")
    stores = {}
    for name, one in inputs.datasets.items():
        stores[name] = dataset_store(one, tokenizer, held_out, inputs.test.texts, folder)
        progress.advance(1)
    progress.close()
    return make_plan(inputs, cache, held_out, read_sample(cache, held_out), stores)


def _train_all(
    inputs: Inputs, plan: Plan, progress: Progress
) -> dict[tuple[str, int], list[Measure]]:
    results = record.Results(record.results_folder(inputs))
    pairs = [(arm, seed) for seed in plan.seeds for arm in plan.arms]
    facts = {pair: record.result_facts(inputs, plan, *pair) for pair in pairs}
    trained = {pair: found for pair in pairs if (found := results.find(facts[pair])) is not None}
    missing = [pair for pair in pairs if pair not in trained]
    if trained:
        progress.note(f"{len(trained)} of {len(pairs)} results are there already")
    total = sum(trained_tokens(plan.arm_budgets(arm)) for arm, _ in missing)
    progress.start("evaluate", total, "tok")
    for arm, seed in missing:
        name = visible(f"{arm}, seed {seed}")
        progress.stage(name)
        trained[arm, seed] = _train(inputs, plan, arm, seed, progress)
        results.add(facts[arm, seed], trained[arm, seed])
        _tell(name, trained[arm, seed], progress)
    progress.close()
    return trained


def _tell(name: str, measures: list[Measure], progress: Progress) -> None:
    """Show a result: behind the bar on a terminal, as a line elsewhere."""
    bits = measures[-1].bits_per_byte
    progress.show(**{key: f"{value:.4f}" for key, value in bits.items()})
    if not progress.on_terminal:
        one = ", ".join(f"{key} {value:.4f}" for key, value in bits.items())
        seconds = measures[-1].seconds
        progress.note(f"{name}: {one} bits per byte, {seconds:.1f} s")


def _train(inputs: Inputs, plan: Plan, arm: str, seed: int, progress: Progress) -> list[Measure]:
    scratch = inputs.run.out / FOLDER / "sample"
    memory = FreedMemory()

    def on_tokens(tokens: int) -> None:
        progress.advance(tokens)
        memory.when_grown()

    try:
        return train_and_measure(
            plan.model,
            arm_stream(plan, arm, seed, scratch),
            plan.arm_budgets(arm),
            seed,
            plan.test_sets,
            on_tokens=on_tokens,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def arm_stream(plan: Plan, arm: str, seed: int, scratch: Path) -> Iterator[Documents]:
    """What an arm trains on, endlessly, in pieces no longer than the model's window.

    Args:
        plan: a resolved evaluation.
        arm: one of `plan.arms`.
        seed: of the sample, the order and the repetition.
        scratch: where the random arm keeps its sample while the stream is read.
    """
    pieces = plan.model.piece_tokens
    if arm in plan.stores:
        return pass_over(plan.stores[arm], seed, pieces)
    if arm == POOL:
        return stream_pool(plan.cache, seed, pieces, plan.held_out)
    key = make_key(seed, "evaluation random sample")
    sample = draw_sample(plan.cache, key, plan.sample_tokens, plan.held_out)
    chosen = gather(plan.cache, sample, plan.held_out)
    store = write_store(scratch, ((block, np.ones(len(block))) for block in chosen), {})
    return pass_over(store, seed, pieces)
