"""The proxy model u: its optimizer, its warm-up on unselected documents, its checkpoint.

Syncs start from, and documents are scored by, a running average of the proxy's weights. The live
weights at a constant learning rate carry the noise of their last steps; a reference whose rate
decays loses that noise, and would be better than its control on every text, most on the hardest.
The average spans a fixed share of the steps so far (Karras et al., arXiv 2312.02696, section 3.1).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from curate.clock import MODEL, doing
from curate.errors import NonFiniteLoss
from curate.noise import make_key
from curate.read.cache import draw_batches
from curate.read.documents import Documents
from curate.score.loss import mean_loss, token_losses
from curate.select.methods.base import Context
from curate.train.model import LanguageModel
from curate.train.optimizer import Optimizer, Term, ramp_then_constant


class Proxy:
    """A model that learns from the pool, one batch of documents a step.

    Attributes:
        model: the live model.
        average: running average of its weights; None where the live ones are used.
        optimizer: its AdamW and step counter.
        batch_tokens: tokens of one step.
    """

    def __init__(self, context: Context) -> None:
        train = context.config.train
        self._context = context
        self.batch_tokens = int(train.batch_tokens or 0)
        self.model = context.make_model()
        self._span = float(context.config.blade.proxy_average or 0.0)
        self.average = self.model.frozen_copy() if self._span > 0 else None
        schedule = ramp_then_constant(float(train.learning_rate or 0.0), int(train.ramp_steps or 0))
        self.optimizer = Optimizer(self.model, "proxy", train, schedule)

    @property
    def scored(self) -> LanguageModel:
        """The weights that are compared and copied: the average, or the live ones."""
        return self.average or self.model

    def warm_up(self) -> None:
        """Train on unselected documents for `blade.warmup_tokens` (Algorithm 1, line 1).

        After `load_state_dict` it goes on from the step that was saved.
        """
        left = int(self._context.config.blade.warmup_tokens or 0)
        done = self.optimizer.steps  # of a warm-up that a checkpoint was made of
        for epoch in itertools.count():
            if left <= 0:
                return
            seed = self._context.config.seed
            stream = self._context.cache.stream(seed, "warm-up", epoch)
            key = make_key(seed, "warm-up pieces", epoch)
            for block in draw_batches(stream, self.batch_tokens, key):
                if done > 0:
                    done -= 1
                else:
                    self.train(block)
                left -= block.num_tokens
                if left <= 0:
                    return

    def fit_a_step(self, documents: Documents) -> bool:
        """Whether documents are trained on in one step: they hold less than two batches."""
        return documents.num_tokens < 2 * self.batch_tokens

    def holds_graph_of(self, documents: Documents) -> bool:
        """Whether the graph of their forward pass fits into memory until tokens are chosen."""
        most = self.model.held_tokens
        return most is None or documents.num_tokens <= most

    def train(self, documents: Documents) -> None:
        """One step on the counted tokens, or as many as there are batches in long documents."""
        if self.fit_a_step(documents):
            self._step(documents)
            return
        key = make_key(self._context.config.seed, "step pieces", self.optimizer.steps)
        for batch in draw_batches(iter([documents]), self.batch_tokens, key):
            if batch.num_counted:
                self._step(batch)

    def forward(self, documents: Documents) -> torch.Tensor:
        """Token losses with their graph, float32 [tokens], for `train_on_forward`."""
        return token_losses(self.model, documents)

    def train_on_forward(self, losses: torch.Tensor, counted: torch.Tensor) -> None:
        """One step on the mean of the counted losses of a forward pass already made.

        Args:
            losses: what `forward` gave, [tokens].
            counted: bool [tokens].
        """
        mean = losses[counted].sum() / counted.sum()
        record = self.optimizer.step_on(mean, len(losses))
        self._update_average()
        self._context.on_step(record)

    def check(self) -> None:
        """What the last step of a stage broke would show only in the next, so look for it.

        Raises:
            NonFiniteLoss: on a batch of the target, a loss or the gradient is NaN or infinite.
        """
        sample = next(draw_batches(iter([self._context.target]), self.batch_tokens, 0))
        self.optimizer.check([Term(sample)])
        loss = mean_loss(self.scored, sample)
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The proxy model's average has a loss of {loss:g} after {self.optimizer.steps} "
                "steps."
            )

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer, readable with `weights_only`."""
        return {
            "weights": self.model.network.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.network.load_state_dict(state["weights"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _step(self, documents: Documents) -> None:
        record = self.optimizer.step([Term(documents)])
        self._update_average()
        self._context.on_step(record)
        self._context.on_tokens(documents.num_tokens)

    @doing(MODEL)
    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average a step's worth towards the live weights."""
        if self.average is None:
            return
        share = 1 / (1 + self._span * (self.optimizer.steps - 1))
        both = zip(self.average.network.parameters(), self.model.network.parameters(), strict=True)
        for mean, live in both:
            mean.lerp_(live, share)
