"""K steps away from the proxy: how the reference model and its control are made at a sync.

BLADE section 2.2, Algorithm 1: w <- u with a fresh AdamW, then K steps on
H(w) = L_val(w) + lambda L_train(a, w). Under the `lookahead` control u+ <- u takes the same K
steps, with the same batches and optimizer, on lambda L_train(a, .) alone: both sides of the penalty
L_train(w) - L_train(u) are then K steps from the same point (first-order bi-level methods treat
the two inner problems alike; F2SA, arXiv 2301.10945). With lambda 0 that leaves u+ = u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from curate.config.schema import TrainConfig
from curate.read.documents import Documents
from curate.train.model import LanguageModel
from curate.train.optimizer import (
    Optimizer,
    StepRecord,
    Term,
    ramp_then_constant,
    ramp_then_decay,
)


def reference_terms(
    target: Sequence[Documents], pool: Sequence[Documents], lambda_: float
) -> list[list[Term]]:
    """The loss of each reference step: L_val plus, where `pool` has batches, lambda L_train(a)."""
    if not pool:
        return [[Term(batch)] for batch in target]
    return [[Term(batch), Term(kept, lambda_)] for batch, kept in zip(target, pool, strict=True)]


def lookahead_terms(pool: Sequence[Documents], lambda_: float) -> list[list[Term]]:
    """The loss of each lookahead step: lambda L_train(a) on the reference's pool batches."""
    return [[Term(kept, lambda_)] for kept in pool]


def step_away(
    proxy: LanguageModel,
    name: str,
    steps: Sequence[Sequence[Term]],
    *,
    learning_rate: float,
    decay: bool,
    config: TrainConfig,
    first_step: int,
    on_step: Callable[[StepRecord], None],
    on_tokens: Callable[[int], None],
) -> LanguageModel:
    """A frozen copy of the proxy after `steps`, taken with a fresh AdamW; the proxy is unchanged.

    Args:
        proxy: the model to start from.
        name: what the log calls the copy.
        steps: the terms of each step's loss.
        learning_rate: reached after a ramp of a tenth of the steps, because a fresh AdamW's first
            steps have unit size whatever the gradient.
        decay: whether the rate then falls linearly to 0: a model at a constant rate carries the
            noise of its last steps, and so would its scores.
        config: moments, weight decay and gradient clip.
        first_step: step number of the first record.
        on_step: told of every step.
        on_tokens: told of every step's tokens.
    """
    if not steps:
        return proxy.frozen_copy()
    moved = proxy.trainable_copy()
    ramp_steps = max(1, len(steps) // 10)
    if decay:
        schedule = ramp_then_decay(learning_rate, ramp_steps, len(steps))
    else:
        schedule = ramp_then_constant(learning_rate, ramp_steps)
    optimizer = Optimizer(moved, name, config, schedule)
    for terms in steps:
        on_step(optimizer.step(terms, first_step))
        on_tokens(sum(term.documents.num_tokens for term in terms))
    moved.network.requires_grad_(False)
    return moved
