"""What a selection method is to the pipeline: it turns blocks of documents into scores.

The pipeline knows neither models nor targets. It draws blocks of candidates in a random order,
asks the method to score each, spends the token budget on the highest scores, tells the method what
was kept, and logs all of it. A method without rounds of its own has a schedule of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from curate.config.schema import Config
from curate.read.cache import TokenCache
from curate.read.documents import Documents
from curate.select.schedule import Schedule
from curate.train.model import LanguageModel
from curate.train.optimizer import StepRecord

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N documents; losses are NaN where a method has no such model.

    Attributes:
        proxy_loss: nats per token under the proxy (or its control copy), float64 [N].
        reference_loss: nats per token under the reference, float64 [N].
        excess_loss: proxy loss - reference loss, float64 [N]; higher means keep.
        score: what documents are ranked by, float64 [N]; higher means keep.
    """

    proxy_loss: Float64
    reference_loss: Float64
    excess_loss: Float64
    score: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStart:
    """What a method reports when a round begins; None where it has no such quantity."""

    lambda_: float | None = None
    proxy_step: int = 0
    reference_steps: int = 0
    target_loss_proxy: float | None = None
    target_loss_reference: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a method may read: settings, the tokenized pool and target, a model, a place to log.

    Attributes:
        config: every setting, derived ones filled in.
        schedule: how the pool will be drawn.
        cache: the tokenized pool.
        target: tokenized target documents.
        make_model: builds the proxy as it is before any step.
        on_step: told of every optimizer step.
        on_tokens: told of tokens trained on or scored, for progress.
    """

    config: Config
    schedule: Schedule
    cache: TokenCache
    target: Documents
    make_model: Callable[[], LanguageModel]
    on_step: Callable[[StepRecord], None]
    on_tokens: Callable[[int], None] = field(default=lambda tokens: None)


class Method(Protocol):
    """A selection method. Scores depend on documents, models and seed alone."""

    def warm_up(self) -> None:
        """Whatever precedes the first round."""

    def start_round(self, round_index: int) -> RoundStart:
        """Begin a round: bring models in step."""

    def score(self, block: Documents) -> Scores:
        """Score a block of candidates."""

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Be told which documents of the block just scored were kept."""

    def save(self, path: Path) -> None:
        """Write everything the next round depends on."""

    def load(self, path: Path) -> None:
        """Inverse of `save`."""
