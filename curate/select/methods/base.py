"""What a selection method is to the pipeline: it turns blocks of documents into scores.

The pipeline knows neither models nor targets. It asks the method for a plan, draws blocks of
candidates in a random order, asks the method to score each, spends the token budget on the highest
scores, tells the method what was kept, and logs all of it. A method that scores once plans no
rounds, only the scoring at the end, which is decided over the pool as a whole (by token, where a
mask must be written beside each block, block by block).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from curate.config.schema import Config
from curate.errors import NonFiniteLoss
from curate.read.cache import TokenCache
from curate.read.documents import Documents
from curate.score.loss import mean_by_document
from curate.select.counting import NgramCounter
from curate.select.processes import CountingProcesses
from curate.select.schedule import Schedule
from curate.train.model import LanguageModel
from curate.train.optimizer import StepRecord

Float64 = npt.NDArray[np.float64]

DOCUMENT, TOKEN = "document", "token"
"""The granularities: what is kept or dropped as one."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N documents; losses are NaN where a method has no such model.

    Attributes:
        proxy_loss: nats per token under the proxy (or its control copy), float64 [N].
        reference_loss: nats per token under the reference, float64 [N].
        excess_loss: proxy loss - reference loss, float64 [N]; higher means keep.
        score: what documents are ranked by, float64 [N]; higher means keep.
        token_score: at token granularity, what tokens are ranked by, float64 [tokens of the
            block]; `score` is then its mean over each document.
        tokens_read: tokens of each document that the losses are means of, int64 [N]; None where
            all were read.
        ngram_vote: the part of each score that an n-gram classifier gave, float64 [N]; None where
            there is none.
        redundancy_vote: the part of each score that is for what the proxy has learned since the
            last sync, float64 [N]; None where there is none.
        noise: the part of each score that is a function of seed and document alone, float64 [N];
            None where there is none, or too little to decide anything.
    """

    proxy_loss: Float64
    reference_loss: Float64
    excess_loss: Float64
    score: Float64
    token_score: Float64 | None = None
    tokens_read: npt.NDArray[np.int64] | None = None
    ngram_vote: Float64 | None = None
    redundancy_vote: Float64 | None = None
    noise: Float64 | None = None

    @classmethod
    def of(
        cls,
        score: Float64,
        *,
        proxy_loss: Float64 | None = None,
        tokens_read: npt.NDArray[np.int64] | None = None,
        noise: Float64 | None = None,
    ) -> Scores:
        """Scores of a method that has no reference, and maybe no proxy either."""
        unknown = np.full(len(score), np.nan)
        proxy_loss = unknown if proxy_loss is None else proxy_loss
        return cls(proxy_loss, unknown, unknown, score, tokens_read=tokens_read, noise=noise)

    def with_tokens(self, token_score: Float64, block: Documents) -> Scores:
        """The same losses under scores of the block's tokens."""
        mean = mean_by_document(token_score, block)
        return dataclasses.replace(self, score=mean, token_score=token_score)

    def check(self, block: Documents) -> None:
        """Make sure that all scores are finite numbers; losses are where the scores are.

        Raises:
            NonFiniteLoss: one is not.
        """
        check_finite("a score", self.score, block)
        if self.token_score is not None:
            largest = np.zeros(len(block))
            owners = np.repeat(np.arange(len(block)), block.lengths)
            np.maximum.at(largest, owners, np.abs(self.token_score))
            check_finite("a token score", largest, block)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStart:
    """What a method reports when a round begins; None where it has no such quantity.

    Attributes:
        target_separation: spreads by which documents of the target that scoring has not learned
            from score above the pool's.
        note: what the user should know before the round's decisions.
    """

    lambda_: float | None = None
    proxy_step: int = 0
    reference_steps: int = 0
    target_loss_proxy: float | None = None
    target_loss_reference: float | None = None
    target_separation: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a method may read: settings, the tokenized pool and target, a model, a place to log.

    Attributes:
        config: every setting, derived ones filled in.
        schedule: how the pool will be drawn.
        cache: the tokenized pool.
        target: tokenized target documents.
        make_model: builds the proxy as it is before any step.
        decode: the texts of documents, for methods that count words.
        processes: what counts words beside this process; None for nothing.
        on_step: told of every optimizer step.
        on_tokens: told of tokens trained on or scored, for progress.
    """

    config: Config
    schedule: Schedule
    cache: TokenCache
    target: Documents
    make_model: Callable[[], LanguageModel]
    decode: Callable[[Documents], list[str]]
    on_step: Callable[[StepRecord], None]
    on_tokens: Callable[[int], None] = field(default=lambda tokens: None)
    processes: CountingProcesses | None = None

    def ngram_counter(self, num_buckets: int) -> NgramCounter:
        """What counts words into so many buckets."""
        return NgramCounter(self.decode, num_buckets, self.processes)


class Method(Protocol):
    """A selection method. Scores depend on documents, models and seed alone.

    Attributes:
        granularities: the units it can keep or drop.
        has_proxy: whether it trains a proxy model.
    """

    granularities: ClassVar[tuple[str, ...]]
    has_proxy: ClassVar[bool]

    def __init__(self, context: Context) -> None:
        """Build everything that precedes the first step."""

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """How the pool is to be drawn under a resolved config."""

    def warm_up(self) -> None:
        """Whatever precedes the first round; after `load_state_dict`, what is left of it.

        When it tells `Context.on_step` of a step of the proxy, there is a `state_dict`.
        """

    def start_round(self, round_index: int) -> RoundStart:
        """Begin a round: bring models in step."""

    def score(self, block: Documents) -> Scores:
        """Score a block of candidates; changes nothing of `state_dict`."""

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Be told what of the block just scored was kept.

        Args:
            block: the documents.
            kept: one flag a document [N], or at token granularity one a token.
        """

    def check(self) -> None:
        """Make sure at the end of a stage that what was trained can be gone on from.

        Raises:
            NonFiniteLoss: it gives losses or scores that are not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that what follows depends on, tensors and plain values; between blocks too."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, wherever its tensors lie."""


def check_finite(what: str, values: Float64, documents: Documents) -> None:
    """Make sure that every document's value is a finite number, in float32 as files hold it.

    Args:
        what: what the values are, with its article, for the error.
        values: one a document, [N].
        documents: N documents.

    Raises:
        NonFiniteLoss: one is not; it names the document.
    """
    with np.errstate(over="ignore"):
        broken = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
    if len(broken):
        raise NonFiniteLoss(
            f"Document {documents.ids[broken[0]]} got {what} that is not a finite number."
        )
