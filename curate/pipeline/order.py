"""The order of a run: check, tokenize, warm up, rounds, select, write, log.

A stage runs only if the manifest does not have it, so the same call goes on where an interrupted
one stopped, and a finished run is only reported.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from curate.clock import timing
from curate.config import Config
from curate.errors import DiskFull
from curate.pipeline import outputs
from curate.pipeline.folder import RunFolder
from curate.pipeline.lock import locked
from curate.pipeline.plan import counting_processes, model_maker, plan_run
from curate.pipeline.prepare import Inputs, prepare
from curate.pipeline.progress import Progress
from curate.pipeline.rounds import Rounds
from curate.pipeline.space import needed_bytes
from curate.pipeline.tokens import read_target, tokenizer_stage, tokens_stage
from curate.refusal import writing
from curate.select.methods import Context
from curate.select.schedule import at_lower_rates
from curate.stop import Stop
from curate.train.compute import tune_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a finished run did.

    Attributes:
        out: the output folder.
        pool_documents: rows of the pool.
        pool_tokens: their tokens.
        kept_documents: rows in the curated dataset.
        kept_tokens: their tokens.
        stage_seconds: time by stage, over all starts of the run.
        activity_seconds: the same time by what was done (`curate.clock`).
    """

    out: Path
    pool_documents: int
    pool_tokens: int
    kept_documents: int
    kept_tokens: int
    stage_seconds: dict[str, float]
    activity_seconds: dict[str, float]


def run(config: Config, stream: TextIO | None = None, stop: Stop | None = None) -> RunSummary:
    """Curate a pool: `curate run`.

    Args:
        config: what to do.
        stream: where progress and the resolved schedule are printed; standard error by default.
        stop: asked whether the run should stop; listens to no signal by default.

    Raises:
        InvalidInput: something the user gave cannot be used.
        NonFiniteLoss: training diverged, at lower learning rates too.
        OutputFailed: the output cannot be written; the same call goes on when it can.
    """
    with timing():
        inputs, folder = prepare(config)
        complete = folder.result("complete")
        if complete is None:
            try:
                complete = _go_on(inputs, folder, stream, stop or Stop())
            except DiskFull as full:
                left = needed_bytes(inputs, folder)
                raise full.needing(folder.path, "run", left) from full.__cause__
    return RunSummary(
        out=folder.path,
        stage_seconds=folder.stage_seconds(),
        activity_seconds=folder.activity_seconds(),
        **complete,
    )


def _go_on(inputs: Inputs, folder: RunFolder, stream: TextIO | None, stop: Stop) -> dict[str, int]:
    with locked(folder.path), writing(folder.path), Progress(stream) as progress:
        folder.check(inputs.config, inputs.pool, inputs.target)  # another run may have been here
        folder.create()
        return _run_stages(inputs, folder, progress, stop)


def _run_stages(
    inputs: Inputs, folder: RunFolder, progress: Progress, stop: Stop
) -> dict[str, int]:
    tokenizer = tokenizer_stage(inputs, folder, progress)
    cache = tokens_stage(inputs, folder, tokenizer, progress)
    target = read_target(inputs, tokenizer, progress)
    if inputs.compute.device.type == "cpu":
        tune_memory()
    plan = plan_run(inputs, tokenizer, pool_tokens=cache.tokens, target_tokens=target.num_tokens)
    config, schedule, kind = plan.config, plan.schedule, plan.method
    outputs.config_stage(config, folder)
    progress.note(plan.described)
    rounds = Rounds(config, schedule, cache, folder, progress=progress, stop=stop)
    if not rounds.finished():
        if kind.has_proxy:
            folder.hold_compute(inputs.compute.names, begun=rounds.begun)
        context = Context(
            config=config,
            schedule=schedule,
            cache=cache,
            target=target,
            make_model=model_maker(config, inputs, tokenizer),
            decode=tokenizer.decode,
            on_step=rounds.on_step,
            on_tokens=rounds.on_tokens,
        )
        progress.start("curate", schedule.expected_tokens, "tok")
        with counting_processes(inputs, tokenizer) as processes:
            context = dataclasses.replace(context, processes=processes)
            rounds.run(
                lambda rollbacks: kind(
                    dataclasses.replace(context, config=at_lower_rates(config, rollbacks))
                )
            )
    rounds.tidy(rounds.stages()[-1])  # a kill may have come between its end and this
    selection, kept = outputs.select_stage(config, folder, cache, rounds.files())
    outputs.data_stage(inputs, folder, selection, progress)
    complete = {
        "pool_documents": sum(fragment.rows for fragment in cache.fragments),
        "pool_tokens": cache.tokens,
        "kept_documents": kept.documents,
        "kept_tokens": kept.tokens,
    }
    figures = {
        **complete,
        "target_documents": len(target),
        "target_tokens": target.num_tokens,
        "model_parameters": plan.parameters,
    }
    outputs.log_stage(
        inputs,
        config,
        folder,
        cache,
        rounds=rounds.files(),
        selection=selection,
        figures=figures,
    )
    outputs.complete_stage(folder, complete)
    return complete
