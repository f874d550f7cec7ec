"""BLADE: bi-level adaptive data selection (arXiv 2606.18650, section 2.2 and Algorithm 1).

State: the proxy u, and the pair it is scored by: the reference w and the control. A round begins
with a sync, which makes the pair anew from u. A block is scored, its top share is kept, and u takes
one step on what was kept, alone or mixed with unselected text of the same block: a proxy that sees
only what it kept memorizes it and stops wanting it.

At token granularity with the live proxy as control, the forward pass that scores a block is the one
that is trained on: its graph is held from `score` to `learn`. A document of several batches is
scored without, and trained on in several steps; where a graph would not fit into memory, blocks are
scored without it, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from curate.config.schema import Config
from curate.noise import make_key, random_uint64
from curate.read.documents import Documents
from curate.score.excess import excess_loss, penalized_score
from curate.score.loss import (
    losses_by_model,
    mean_by_document,
    mean_loss,
    token_losses,
    tokens_read,
)
from curate.select.budget import keep_top, token_noise
from curate.select.methods.base import DOCUMENT, TOKEN, Context, RoundStart, Scores
from curate.select.methods.ensemble import Ensemble, make_ensemble
from curate.select.methods.held_out import HeldOut, pool_sample, target_sample
from curate.select.methods.pair import Pair
from curate.select.methods.proxy import Proxy
from curate.select.methods.separation import Separation, measure_separation
from curate.select.schedule import Schedule, lambda_at, plan_rounds
from curate.train.model import LanguageModel

Bool = npt.NDArray[np.bool_]

_TOLD_NOISE = 0.001
"""Spreads of the scores from which on noise is written beside each: less decides between equals."""


class BladeMethod:
    """The method at document and at token granularity; see the module's docstring."""

    granularities: ClassVar[tuple[str, ...]] = (DOCUMENT, TOKEN)
    has_proxy: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        self._context, self._config = context, context.config
        self._blade = context.config.blade
        self._by_token = context.config.granularity == TOKEN
        self._most = context.config.score_tokens
        self._held_out = HeldOut(context, nothing=self._blade.final != "ensemble")
        self._proxy = Proxy(self._held_out.rest)
        self._pair = Pair(self._held_out.rest, self._proxy)
        self._lambda = self._blade.lambda_
        self._round = 0
        self._forward: torch.Tensor | None = None
        self._start: LanguageModel | None = None
        self._ensemble: Ensemble | None = None
        self._separation: Separation | None = None

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """Rounds over the pool, a sync each."""
        return plan_rounds(config, pool_tokens=pool_tokens)

    def warm_up(self) -> None:
        """Train the proxy on unselected documents (Algorithm 1, line 1)."""
        self._proxy.warm_up()

    def start_round(self, round_index: int) -> RoundStart:
        """Sync: make the reference, and the lookahead control, anew from the proxy.

        An ensemble decides by the last round's pair instead.
        """
        if self._blade.final == "ensemble" and round_index >= self._context.schedule.rounds:
            self._gather_ensemble()
            return self._begin(round_index, self._lambda, 0)
        lambda_ = lambda_at(self._blade, round_index, self._context.schedule.rounds)
        lookahead = self._blade.control == "lookahead"
        self._pair.sync(round_index, lambda_, lookahead=lookahead, choose=self._choose)
        if self._blade.final == "ensemble":
            self._start = self._pair.control or self._proxy.scored.frozen_copy()
        return self._begin(round_index, lambda_, int(self._blade.reference_steps or 0))

    def score(self, block: Documents) -> Scores:
        """Penalized excess loss of the control over the reference; an ensemble's scores."""
        self._context.on_tokens(block.num_tokens)
        if self._by_token:
            learning = self._round < self._context.schedule.rounds
            return self._score_tokens(block, learning=learning)
        if self._ensemble is not None:
            return self._soften(self._ensemble.scores(block, self._most), block)
        pair = [self._pair.control or self._proxy.scored, self._reference]
        control, reference = losses_by_model(pair, block, self._most)
        excess = excess_loss(control, reference)
        score = penalized_score(excess, self._lambda)
        read = tokens_read(self._reference, block, self._most)
        return Scores(control, reference, excess, score, tokens_read=read)

    def learn(self, block: Documents, kept: Bool) -> None:
        """A proxy step on what was kept, or on a mixture that holds it; more on long documents."""
        losses, self._forward = self._forward, None
        held_out = self._held_out.holds(block)
        if held_out.any():  # none by token
            block, kept = block.take(np.flatnonzero(~held_out)), kept[~held_out]
        if not kept.any():
            return
        if self._blade.train_on == "mixture":
            kept = kept | self._filler(block, kept)
        if losses is not None:
            self._proxy.train_on_forward(losses, torch.from_numpy(kept).to(losses.device))
        elif self._by_token:
            self._proxy.train(block.masked(kept))
        else:
            self._proxy.train(block.take(np.flatnonzero(kept)))

    def check(self) -> None:
        """The proxy's losses must be finite; a pair is made anew, or was scored by."""
        self._proxy.check()

    def state_dict(self) -> dict[str, Any]:
        """Everything that what follows depends on, readable with `weights_only`."""
        apart = None if self._start is self._pair.control else self._start
        return {
            "proxy": self._proxy.state_dict(),
            "pair": self._pair.state_dict(),
            "lambda": self._lambda,
            "round": self._round,
            "start": None if apart is None else apart.network.state_dict(),
            "ensemble": None if self._ensemble is None else self._ensemble.state_dict(),
            "separation": dataclasses.asdict(self._separation) if self._separation else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._proxy.load_state_dict(state["proxy"])
        self._pair.load_state_dict(state["pair"])
        self._lambda = state["lambda"]
        self._round = state["round"]
        separation = state["separation"]
        self._separation = None if separation is None else Separation(**separation)
        self._start = self._pair.control if self._blade.final == "ensemble" else None
        if state["start"] is not None:
            self._start = self._proxy.model.frozen_copy()
            self._start.network.load_state_dict(state["start"])
        self._ensemble = None
        if state["ensemble"] is not None:
            context = self._held_out.rest
            self._ensemble = Ensemble.restored(
                context, state["ensemble"], **self._ensemble_models()
            )

    def _gather_ensemble(self) -> None:
        """The last round's pair and what votes beside it; does the target stand out by them?"""
        sample = pool_sample(self._context)
        ensemble = make_ensemble(self._held_out.rest, sample, **self._ensemble_models())
        target = self._held_out.target
        if len(target):
            samples = target, self._held_out.pool()
            scores = [ensemble.scores(one, self._most) for one in samples]
            for sample, found in zip(samples, scores, strict=True):
                found.check(sample)
            self._separation = measure_separation(*(one.score for one in scores))
        self._ensemble = ensemble

    def _ensemble_models(self) -> dict[str, LanguageModel]:
        """The models of an ensemble."""
        if self._start is None:
            raise RuntimeError("an ensemble decides after a round")
        proxy = self._proxy.scored.frozen_copy()
        return {"control": self._start, "reference": self._reference, "proxy": proxy}

    def _soften(self, scores: Scores, block: Documents) -> Scores:
        """The scores under noise, more of it the less the target stands out."""
        if self._separation is None:
            return scores
        noise = self._separation.noise(self._config.seed, block.ids)
        told = noise if self._separation.temperature >= _TOLD_NOISE else None
        return dataclasses.replace(scores, score=scores.score + noise, noise=told)

    def _begin(self, round_index: int, lambda_: float, reference_steps: int) -> RoundStart:
        """What holds for a round once its pair is there."""
        self._lambda, self._round, self._forward = lambda_, round_index, None
        sample, separation = self._held_out.target, self._separation
        if not len(sample):
            sample = target_sample(self._context)
        return RoundStart(
            lambda_=lambda_,
            proxy_step=self._proxy.optimizer.steps,
            reference_steps=reference_steps,
            target_loss_proxy=mean_loss(self._proxy.scored, sample),
            target_loss_reference=mean_loss(self._reference, sample),
            target_separation=separation.spreads if separation else None,
            note=separation.doubt if separation else None,
        )

    @property
    def _reference(self) -> LanguageModel:
        if self._pair.reference is None:
            raise RuntimeError("scores are made within a round")
        return self._pair.reference

    def _score_tokens(self, block: Documents, *, learning: bool) -> Scores:
        with torch.no_grad():
            reference = _numpy(token_losses(self._reference, block))
        live = self._pair.control is None and self._proxy.average is None
        fits = self._proxy.fit_a_step(block) and self._proxy.holds_graph_of(block)
        if live and learning and fits:
            self._forward = self._proxy.forward(block)
            control = _numpy(self._forward)
        else:
            with torch.no_grad():
                control = _numpy(token_losses(self._pair.control or self._proxy.scored, block))
        excess = excess_loss(control, reference)
        ours, theirs, between = (
            mean_by_document(one, block) for one in (control, reference, excess)
        )
        scores = Scores(ours, theirs, between, between)
        return scores.with_tokens(penalized_score(excess, self._lambda), block)

    def _choose(self, block: Documents) -> Documents:
        """The top share of a block, for L_train(a, .)."""
        budget = self._config.keep * block.num_tokens
        key = make_key(self._config.seed, "ties")
        by_token = self._by_token
        scores = self._score_tokens(block, learning=False) if by_token else self.score(block)
        scores.check(block)
        if scores.token_score is not None:
            one = np.ones(len(scores.token_score), dtype=np.int64)
            return block.masked(keep_top(scores.token_score, one, budget, token_noise(key, block)))
        kept = keep_top(scores.score, block.lengths, budget, random_uint64(key, block.ids))
        kept[scores.score.argmax()] |= not kept.any()
        return block.take(np.flatnonzero(kept))

    def _filler(self, block: Documents, kept: Bool) -> Bool:
        """Unselected documents or tokens of the block, at random, for the mixture's other share."""
        share = self._blade.mixture_kept_share
        key = make_key(self._config.seed, "mixture", self._round)
        if self._by_token:
            sizes, noise = np.ones(len(kept), dtype=np.int64), token_noise(key, block)
        else:
            sizes, noise = block.lengths, random_uint64(key, block.ids)
        wanted = sizes[kept].sum() * (1 - share) / share
        others = keep_top(np.where(kept, -1.0, 0.0), np.where(kept, 0, sizes), wanted, noise)
        return others & ~kept


def _numpy(losses: torch.Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = losses.detach().double().cpu().numpy()
    return values
