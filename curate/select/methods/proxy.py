"""The proxy model u: its optimizer, its warm-up on unselected documents, its checkpoint."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from curate.read.cache import draw_blocks
from curate.read.documents import Documents
from curate.score.loss import token_losses
from curate.select.methods.base import Context
from curate.train.optimizer import Optimizer, Term, ramp_then_constant


class Proxy:
    """A model that learns from the pool, one batch of documents a step.

    Attributes:
        model: the live model.
        optimizer: its AdamW and step counter.
        batch_tokens: tokens of one step.
    """

    def __init__(self, context: Context) -> None:
        train = context.config.train
        self._context = context
        self.batch_tokens = int(train.batch_tokens or 0)
        self.model = context.make_model()
        schedule = ramp_then_constant(float(train.learning_rate or 0.0), train.ramp_steps)
        self.optimizer = Optimizer(self.model, "proxy", train, schedule)

    def warm_up(self) -> None:
        """Train on unselected documents for `blade.warmup_tokens` (Algorithm 1, line 1)."""
        left = int(self._context.config.blade.warmup_tokens or 0)
        for epoch in itertools.count():
            if left <= 0:
                return
            stream = self._context.cache.stream(self._context.config.seed, "warm-up", epoch)
            for block in draw_blocks(stream, self.batch_tokens):
                self.train(block)
                left -= block.num_tokens
                if left <= 0:
                    return

    def train(self, documents: Documents) -> None:
        """One step on the counted tokens of the documents."""
        self._context.on_step(self.optimizer.step([Term(documents)]))
        self._context.on_tokens(documents.num_tokens)

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
        self._context.on_step(self.optimizer.step_on(mean, len(losses)))

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer, readable with `weights_only`."""
        return {
            "weights": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
