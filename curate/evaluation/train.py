"""One model from its first step to its test losses, for one stream of documents and one seed.

Why a loop of its own: arms are comparable only when everything but their data is the same. For a
seed every arm starts from the same weights, takes steps of the same number of tokens under the same
schedule (a ramp, a constant rate, a linear decay to 0 over the last fifth), and stops at the same
number of tokens.

How several budgets share one training: the decay is what makes a run's end good, so a point of a
loss curve needs its own. A trunk goes on at the constant rate; at 0.8 b of budget b a copy of model
and optimizer branches off, decays until b and is measured, while the trunk goes on with the same
blocks. Every point is exactly what a run of that budget alone would have given; budgets of 1, 2 and
4 cost 4.6 together instead of 7.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from curate.config.schema import TrainConfig
from curate.errors import NonFiniteLoss
from curate.read.cache import draw_blocks
from curate.read.documents import Documents, concatenate
from curate.score.loss import document_losses
from curate.train.compute import Compute
from curate.train.model import LanguageModel, ModelShape, make_network
from curate.train.optimizer import Optimizer, Term

DECAY_SHARE = 0.2
"""Share of a budget over which the learning rate falls to 0."""
_MEASURED_AT_ONCE = 1 << 22
"""Tokens of a test set that batches are made of at once; their padded cells take 16 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """A model before it is trained; equal settings and seeds give equal weights.

    Attributes:
        name: a preset of `train.model`, or a folder or Hub id whose weights are continued.
        shape: its shape.
        vocabulary_size: entries of the tokenizer.
        prefix_id: the tokenizer's document separator.
        window: inputs read at once; training pieces are cut to it.
        overlap: inputs each later window of a long test document re-reads as context.
        batch_tokens: tokens in one optimizer step.
        learning_rate: peak learning rate.
        compute: device and precision.
        train: ramp (resolved to steps), moments, weight decay and gradient clip.
    """

    name: str
    shape: ModelShape
    vocabulary_size: int
    prefix_id: int
    window: int
    overlap: int
    batch_tokens: int
    learning_rate: float
    compute: Compute
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def piece_tokens(self) -> int:
        """Longest piece of a document that one row of a training batch takes."""
        return min(self.window, self.batch_tokens)

    def build(self, seed: int) -> LanguageModel:
        """The model before any step."""
        network = make_network(self.name, self.shape, self.vocabulary_size, self.prefix_id, seed)
        return LanguageModel(
            network,
            window=self.window,
            overlap=self.overlap,
            prefix_id=self.prefix_id,
            compute=self.compute,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A trained model's losses on each test set, by its name.

    Attributes:
        budget: tokens that were asked for.
        tokens: tokens trained on, context that is no label included; the budget or up to one
            batch more.
        steps: optimizer steps.
        loss: mean loss, nats per token.
        bits_per_byte: nats / ln 2 over the UTF-8 bytes of the set.
        seconds: wall-clock training time of a run of this budget alone; measuring not included.
    """

    budget: int
    tokens: int
    steps: int
    loss: dict[str, float]
    bits_per_byte: dict[str, float]
    seconds: float


def train_and_measure(
    settings: ModelSettings,
    stream: Iterator[Documents],
    budgets: Sequence[int],
    seed: int,
    test_sets: Mapping[str, Documents],
    *,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> list[Measure]:
    """Train one model on a stream and measure it at each budget.

    Args:
        settings: the model and its optimizer.
        stream: training documents, no longer than `settings.piece_tokens` tokens so that every
            step has about `settings.batch_tokens`; their `counted` flags are honoured.
        budgets: tokens to train on, each annealed as if it were the only one.
        seed: of the initial weights.
        test_sets: held-out documents by name.
        on_tokens: told of tokens passed through any copy of the model, for progress.

    Returns:
        One measure a budget, in ascending order of budgets.

    Raises:
        NonFiniteLoss: training diverged.
        ValueError: the stream ended before the largest budget, or there is no budget above 0.
    """
    pending = sorted(set(budgets))
    if not pending or pending[0] < 1:
        raise ValueError("budgets must be positive")
    trunk: _Trainer | None = _Trainer(settings, settings.build(seed))
    branches: list[_Trainer] = []
    measures: list[Measure] = []
    blocks = draw_blocks(stream, settings.batch_tokens)
    while True:
        while pending and trunk is not None and trunk.tokens >= (1 - DECAY_SHARE) * pending[0]:
            branches.append(trunk.branch(pending.pop(0), last=not pending))
            trunk = trunk if pending else None
        measures += [one.measure(test_sets) for one in branches if one.finished]
        branches = [one for one in branches if not one.finished]
        if trunk is None and not branches:
            return measures
        block = next(blocks, None)
        if block is None:
            raise ValueError("the stream of documents ended before the budget was spent")
        for trainer in [*branches, *([trunk] if trunk else [])]:
            trainer.step(block)
            on_tokens(block.num_tokens)


def measure_documents(model: LanguageModel, documents: Documents) -> tuple[float, float]:
    """Mean loss in nats per token, and bits per UTF-8 byte, over all tokens of the documents."""
    nats = sum(
        float(np.dot(document_losses(model, block), block.lengths))
        for block in draw_blocks(iter([documents]), _MEASURED_AT_ONCE)
    )
    bits = nats / math.log(2)
    return nats / documents.num_tokens, bits / int(documents.bytes.sum())


def trained_tokens(budgets: Sequence[int]) -> int:
    """Tokens that `train_and_measure` passes through models, branches included; an estimate."""
    largest = max(budgets)
    return largest + sum(round(DECAY_SHARE * one) for one in set(budgets) if one != largest)


class _Trainer:
    """A model in training; a trunk has no budget and so no decay."""

    def __init__(self, settings: ModelSettings, model: LanguageModel) -> None:
        self.settings, self.model = settings, model
        self.optimizer = Optimizer(model, "evaluation", settings.train, self._rate)
        self.last = Term(concatenate([]))
        self.budget = 0
        self.tokens = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        return self.tokens >= self.budget

    def branch(self, budget: int, *, last: bool) -> _Trainer:
        """The run of `budget` from here on; the last branch needs no copy of the trunk."""
        twin = self
        if not last:
            twin = _Trainer(self.settings, self.model.trainable_copy())
            twin.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            twin.tokens, twin.seconds, twin.last = self.tokens, self.seconds, self.last
        twin.budget = budget
        return twin

    def step(self, block: Documents) -> None:
        started = time.monotonic()
        self.last = Term(block)
        with _advised():
            self.optimizer.step([self.last])
        self.tokens += block.num_tokens
        self.seconds += time.monotonic() - started

    def measure(self, test_sets: Mapping[str, Documents]) -> Measure:
        with _advised():  # what the last step broke shows only now
            self.optimizer.check([self.last])
            found = {name: measure_documents(self.model, one) for name, one in test_sets.items()}
            for name, (loss, _) in found.items():
                if not math.isfinite(loss):
                    raise NonFiniteLoss(f"The loss on {name} text is {loss:g} after training.")
        return Measure(
            budget=self.budget,
            tokens=self.tokens,
            steps=self.optimizer.steps,
            loss={name: loss for name, (loss, _) in found.items()},
            bits_per_byte={name: bits for name, (_, bits) in found.items()},
            seconds=self.seconds,
        )

    def _rate(self, step: int) -> float:
        ramp = min(1.0, (step + 1) / max(1, int(self.settings.train.ramp_steps or 0)))
        left = (self.budget - self.tokens) / (DECAY_SHARE * self.budget) if self.budget else 1.0
        return self.settings.learning_rate * ramp * min(1.0, max(0.0, left))


@contextlib.contextmanager
def _advised() -> Iterator[None]:
    try:
        yield
    except NonFiniteLoss as error:
        raise NonFiniteLoss(error.problem, "Lower --learning-rate.") from error
