"""What a run is going to do, known once the tokens are: settings, schedule, what models need.

A run and its dry run ask the same here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from curate.config import Config
from curate.pipeline.prepare import Inputs
from curate.read.tokenizer import TextTokenizer
from curate.select.methods import METHODS, Method
from curate.select.processes import CountingProcesses, usual_processes
from curate.select.schedule import Schedule, describe_run, resolve_config
from curate.train.model import LanguageModel, count_parameters, make_network


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is going to do.

    Attributes:
        config: every setting, derived ones filled in.
        schedule: how the pool is drawn.
        method: what decides.
        parameters: of its proxy; None where it has none.
        described: all of it in a few lines.
    """

    config: Config
    schedule: Schedule
    method: type[Method]
    parameters: int | None
    described: str


def plan_run(
    inputs: Inputs, tokenizer: TextTokenizer, *, pool_tokens: int, target_tokens: int
) -> Plan:
    """Derive what follows from the inputs, their tokens and the tokenizer."""
    entries = tokenizer.vocabulary_size
    parameters = count_parameters(inputs.config.model.name, inputs.shape, entries)
    config = resolve_config(
        inputs.config,
        inputs.shape,
        pool_tokens=pool_tokens,
        target_tokens=target_tokens,
        num_parameters=parameters,
    )
    method = METHODS[config.method]
    schedule = method.plan(config, pool_tokens)
    trained = parameters if method.has_proxy else None
    return Plan(
        config=config,
        schedule=schedule,
        method=method,
        parameters=trained,
        described=describe_run(config, schedule, pool_tokens, trained),
    )


def counting_processes(inputs: Inputs, tokenizer: TextTokenizer) -> CountingProcesses:
    """What counts words beside the models, or in their place."""
    config = inputs.config
    device = inputs.compute.device.type if METHODS[config.method].has_proxy else None
    number = config.compute.counting_processes
    if number is None:
        number = usual_processes(torch.get_num_threads(), device)
    return CountingProcesses(tokenizer.to_json(), number)


def model_maker(
    config: Config, inputs: Inputs, tokenizer: TextTokenizer
) -> Callable[[], LanguageModel]:
    """Builds the proxy as it is before any step; methods without a model never call it."""

    def make() -> LanguageModel:
        separator = tokenizer.prefix_id
        network = make_network(
            config.model.name, inputs.shape, tokenizer.vocabulary_size, separator, config.seed
        )
        return LanguageModel(
            network,
            window=int(config.model.window or 0),
            overlap=int(config.model.window_overlap or 0),
            prefix_id=separator,
            compute=inputs.compute,
        )

    return make
