"""BLADE: bi-level adaptive data selection (arXiv 2606.18650, section 2.2 and Algorithm 1).

State: the proxy u with its optimizer, the reference w, and the control u is compared through: u
itself as published, or the lookahead copy u+. A round begins with a sync, which makes w (and u+)
anew from u. A block is scored by the pair, its top share is kept, and u takes one step on what
was kept, alone or mixed with unselected documents of the same block: a proxy that sees only kept
documents memorizes them and stops wanting them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from curate.noise import make_key, random_uint64, shuffled_order
from curate.read.cache import draw_blocks
from curate.read.documents import Documents
from curate.score.excess import excess_loss, penalized_score
from curate.score.loss import document_losses, mean_loss
from curate.select.budget import keep_top
from curate.select.methods.base import Context, RoundStart, Scores
from curate.select.schedule import lambda_at
from curate.train.model import LanguageModel
from curate.train.optimizer import Optimizer, Term, ramp_then_constant
from curate.train.reference import lookahead_terms, reference_terms, step_away

_TARGET_LOSS_BATCHES = 8


class BladeMethod:
    """The method at document granularity; see the module's docstring."""

    def __init__(self, context: Context) -> None:
        config = context.config
        self._context, self._config, self._blade = context, config, config.blade
        self._batch_tokens = int(config.train.batch_tokens or 0)
        self._proxy = context.make_model()
        self._optimizer = Optimizer(
            self._proxy,
            "proxy",
            config.train,
            ramp_then_constant(float(config.train.learning_rate or 0.0), config.train.ramp_steps),
        )
        self._reference: LanguageModel | None = None
        self._lookahead: LanguageModel | None = None
        self._lambda = config.blade.lambda_
        self._reference_steps = 0
        self._lookahead_steps = 0
        self._target_batches = self._draw_target(0)
        self._mixture_key = 0
        self._tie_key = make_key(config.seed, "ties")

    def warm_up(self) -> None:
        """Train the proxy on unselected documents (Algorithm 1, line 1)."""
        left = int(self._blade.warmup_tokens or 0)
        for epoch in itertools.count():
            if left <= 0:
                return
            stream = self._context.cache.stream(self._config.seed, "warm-up", epoch)
            for block in draw_blocks(stream, self._batch_tokens):
                self._train(block)
                left -= block.num_tokens
                if left <= 0:
                    return

    def start_round(self, round_index: int) -> RoundStart:
        """Sync: make the reference, and the lookahead control, anew from the proxy."""
        lambda_ = lambda_at(self._blade, round_index, self._context.schedule.rounds)
        num_steps = int(self._blade.reference_steps or 0)
        target = list(itertools.islice(self._target_batches, num_steps))
        # The pool batches are chosen by the outgoing pair, so before it is overwritten.
        pool = self._sync_batches(round_index, num_steps) if lambda_ > 0 else []
        self._make_pair(target, pool, lambda_)
        self._lambda = lambda_
        self._mixture_key = make_key(self._config.seed, "mixture", round_index)
        if self._reference is None:
            raise RuntimeError("a sync makes a reference")
        sample = self._target_sample()
        return RoundStart(
            lambda_=lambda_,
            proxy_step=self._optimizer.steps,
            reference_steps=num_steps,
            target_loss_proxy=mean_loss(self._proxy, sample),
            target_loss_reference=mean_loss(self._reference, sample),
        )

    def score(self, block: Documents) -> Scores:
        """Penalized excess loss of the control over the reference."""
        if self._reference is None:
            raise RuntimeError("score is called within a round")
        proxy_losses = document_losses(self._lookahead or self._proxy, block)
        reference_losses = document_losses(self._reference, block)
        self._context.on_tokens(block.num_tokens)
        excess = excess_loss(proxy_losses, reference_losses)
        return Scores(proxy_losses, reference_losses, excess, penalized_score(excess, self._lambda))

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """One proxy step on the kept documents, or on a mixture that holds them."""
        chosen = np.flatnonzero(kept)
        if self._blade.train_on == "mixture":
            chosen = np.concatenate([chosen, self._filler(block, kept)])
        if len(chosen):
            self._train(block.take(np.sort(chosen)))

    def save(self, path: Path) -> None:
        """Everything the next sync depends on, readable with `weights_only`."""
        models = {"proxy": self._proxy, "reference": self._reference, "lookahead": self._lookahead}
        torch.save(
            {
                "models": {
                    name: model.network.state_dict() if model else None
                    for name, model in models.items()
                },
                "optimizer": self._optimizer.state_dict(),
                "lambda": self._lambda,
                "reference_steps": self._reference_steps,
                "lookahead_steps": self._lookahead_steps,
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Inverse of `save`."""
        state = torch.load(path, map_location=self._proxy.compute.device, weights_only=True)
        self._proxy.network.load_state_dict(state["models"]["proxy"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._reference = self._restore(state["models"]["reference"])
        self._lookahead = self._restore(state["models"]["lookahead"])
        self._lambda = state["lambda"]
        self._reference_steps = state["reference_steps"]
        self._lookahead_steps = state["lookahead_steps"]
        self._target_batches = self._draw_target(self._reference_steps)

    def _restore(self, weights: dict[str, torch.Tensor] | None) -> LanguageModel | None:
        if weights is None:
            return None
        model = self._proxy.frozen_copy()
        model.network.load_state_dict(weights)
        return model

    def _train(self, documents: Documents) -> None:
        self._context.on_step(self._optimizer.step([Term(documents)]))
        self._context.on_tokens(documents.num_tokens)

    def _filler(self, block: Documents, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Unselected documents of the block, at random, that make up the mixture's other share."""
        share = self._blade.mixture_kept_share
        wanted = block.lengths[kept].sum() * (1 - share) / share
        noise = random_uint64(self._mixture_key, block.ids)
        scores = np.where(kept, -1.0, 0.0)
        others = keep_top(scores, np.where(kept, 0, block.lengths), wanted, noise)
        return np.flatnonzero(others & ~kept)

    def _make_pair(self, target: list[Documents], pool: list[Documents], lambda_: float) -> None:
        rate = self._blade.reference_learning_rate
        rate = self._optimizer.schedule(self._optimizer.steps) if rate is None else rate
        steps = reference_terms(target, pool, lambda_)
        self._reference = step_away(
            self._proxy,
            "reference",
            steps,
            learning_rate=rate,
            config=self._config.train,
            first_step=self._reference_steps,
            on_step=self._context.on_step,
        )
        self._reference_steps += len(steps)
        self._count_tokens(steps)
        if self._blade.control == "proxy":
            return
        steps = lookahead_terms(pool, lambda_)
        self._lookahead = step_away(
            self._proxy,
            "lookahead",
            steps,
            learning_rate=rate,
            config=self._config.train,
            first_step=self._lookahead_steps,
            on_step=self._context.on_step,
        )
        self._lookahead_steps += len(steps)
        self._count_tokens(steps)

    def _count_tokens(self, steps: list[list[Term]]) -> None:
        self._context.on_tokens(sum(t.documents.num_tokens for step in steps for t in step))

    def _sync_batches(self, round_index: int, num_steps: int) -> list[Documents]:
        """K pool batches for L_train(a, .), a being the outgoing pair's top share; 1 at first."""
        keep = 1.0 if self._reference is None else self._config.keep
        batches: list[Documents] = []
        for epoch in itertools.count():
            stream = self._context.cache.stream(self._config.seed, "sync", round_index, epoch)
            for block in draw_blocks(stream, round(self._batch_tokens / keep)):
                if len(batches) == num_steps:
                    return batches
                batches.append(self._keep(block, keep) if keep < 1 else block)
        return batches

    def _keep(self, block: Documents, keep: float) -> Documents:
        ties = random_uint64(self._tie_key, block.ids)
        scores = self.score(block).score
        kept = keep_top(scores, block.lengths, keep * block.num_tokens, ties)
        return block.take(np.flatnonzero(kept) if kept.any() else np.argsort(-scores)[:1])

    def _draw_target(self, skip: int) -> Iterator[Documents]:
        """Endless target batches, shuffled anew each epoch, from batch number `skip` on."""

        def epochs() -> Iterator[Documents]:
            target = self._context.target
            for epoch in itertools.count():
                key = make_key(self._config.seed, "target", epoch)
                order = shuffled_order(key, target.ids)
                yield from draw_blocks(iter([target.take(order)]), self._batch_tokens)

        return itertools.islice(epochs(), skip, None)

    def _target_sample(self) -> Documents:
        """The fixed part of the target that the log's target losses are measured on."""
        target = self._context.target
        order = shuffled_order(make_key(self._config.seed, "target sample"), target.ids)
        ends = np.cumsum(target.lengths[order])
        enough = int(np.searchsorted(ends, _TARGET_LOSS_BATCHES * self._batch_tokens)) + 1
        return target.take(order[:enough])
