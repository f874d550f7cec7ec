"""The pair a block is scored by: the reference w and the control it is compared with.

A sync makes both anew from the proxy u (BLADE, arXiv 2606.18650, Algorithm 1): w takes K steps on
L_val + lambda L_train(a, .); the control is u itself as published, or u+, which takes the same K
steps on lambda L_train(a, .) alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from curate.noise import make_key, shuffled_order
from curate.read.cache import draw_batches
from curate.read.documents import Documents
from curate.select.methods.base import Context
from curate.select.methods.proxy import Proxy
from curate.train.model import LanguageModel
from curate.train.optimizer import Term
from curate.train.reference import lookahead_terms, reference_terms, step_away


class Pair:
    """Makes the reference and the control, and keeps them between syncs.

    Attributes:
        reference: w, frozen; None before the first sync.
        control: the frozen copy u+; None where the live proxy is the control.
    """

    def __init__(self, context: Context, proxy: Proxy) -> None:
        self._context, self._proxy = context, proxy
        self.reference: LanguageModel | None = None
        self.control: LanguageModel | None = None
        self._steps = {"reference": 0, "lookahead": 0}
        self._target_batches = self._draw_target(0)

    def sync(
        self,
        round_index: int,
        lambda_: float,
        *,
        lookahead: bool,
        choose: Callable[[Documents], Documents],
    ) -> None:
        """Make w, and u+ under `lookahead`, anew from the proxy.

        Args:
            round_index: names the pool batches drawn.
            lambda_: weight of L_train.
            lookahead: whether the control is a copy that takes the same steps.
            choose: the top share of a block under the outgoing pair.
        """
        config = self._context.config
        num_steps = int(config.blade.reference_steps or 0)
        target = list(itertools.islice(self._target_batches, num_steps))
        # The pool batches are chosen by the outgoing pair, so before it is overwritten.
        pool = self._pool_batches(round_index, num_steps, choose) if lambda_ > 0 else []
        self.reference = self._step_away("reference", reference_terms(target, pool, lambda_))
        self.control = None
        if lookahead:
            self.control = self._step_away("lookahead", lookahead_terms(pool, lambda_))

    def state_dict(self) -> dict[str, Any]:
        """Both models and what was drawn, readable with `weights_only`."""
        models = {"reference": self.reference, "control": self.control}
        weights = {
            name: model.network.state_dict() if model else None for name, model in models.items()
        }
        return {"weights": weights, "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.reference = self._restore(state["weights"]["reference"])
        self.control = self._restore(state["weights"]["control"])
        self._steps = dict(state["steps"])
        self._target_batches = self._draw_target(self._steps["reference"])

    def _step_away(self, name: str, steps: list[list[Term]]) -> LanguageModel:
        config = self._context.config
        optimizer = self._proxy.optimizer
        rate = config.blade.reference_learning_rate
        moved = step_away(
            self._proxy.scored,
            name,
            steps,
            learning_rate=optimizer.schedule(optimizer.steps) if rate is None else rate,
            decay=config.blade.reference_schedule == "linear",
            config=config.train,
            first_step=self._steps[name],
            on_step=self._context.on_step,
            on_tokens=self._context.on_tokens,
        )
        self._steps[name] += len(steps)
        return moved

    def _pool_batches(
        self, round_index: int, num_steps: int, choose: Callable[[Documents], Documents]
    ) -> list[Documents]:
        """K pool batches for L_train(a, .); a = 1 at the first sync."""
        config, first = self._context.config, self.reference is None
        whole = first or config.granularity == "token"
        longest = self._proxy.batch_tokens
        tokens = round(longest if whole else longest / config.keep)
        batches: list[Documents] = []
        for epoch in itertools.count():
            stream = self._context.cache.stream(config.seed, "sync", round_index, epoch)
            key = make_key(config.seed, "sync pieces", round_index, epoch)
            for block in draw_batches(stream, tokens, key, longest=longest):
                if len(batches) == num_steps:
                    return batches
                batches.append(block if first else choose(block))
        return batches

    def _restore(self, weights: dict[str, Any] | None) -> LanguageModel | None:
        if weights is None:
            return None
        model = self._proxy.model.frozen_copy()
        model.network.load_state_dict(weights)
        return model

    def _draw_target(self, skip: int) -> Iterator[Documents]:
        """Endless target batches, shuffled anew each epoch, from batch number `skip` on."""

        def epochs() -> Iterator[Documents]:
            target = self._context.target
            for epoch in itertools.count():
                key = make_key(self._context.config.seed, "target", epoch)
                order = shuffled_order(key, target.ids)
                shuffled = iter([target.take(order)])
                yield from draw_batches(shuffled, self._proxy.batch_tokens, key)

        return itertools.islice(epochs(), skip, None)
