"""Optimizer steps: AdamW on a weighted sum of mean token losses.

A step's loss is sum over terms of weight x (mean loss per token of the term's documents). Terms are
cut into microbatches whose gradients add up, so the step does not depend on how many fit in memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from curate.clock import MODEL, doing
from curate.config.schema import TrainConfig
from curate.errors import NonFiniteLoss
from curate.read.documents import Documents
from curate.read.windows import rolling_windows
from curate.train.model import LanguageModel

_LONGEST_RAMP = 100


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a step's loss: `weight` x mean nats per counted token of `documents`."""

    documents: Documents
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimizer step did; `loss` is the weighted sum, nats per token."""

    step: int
    model: str
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float


class Optimizer:
    """AdamW over one model, with its step counter.

    Args:
        model: the model that is trained in place.
        name: what the log calls it (proxy, reference, lookahead).
        config: moments, weight decay and gradient clip.
        schedule: learning rate as a function of the 0-based step.
    """

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        config: TrainConfig,
        schedule: Callable[[int], float],
    ) -> None:
        self.model, self.name = model, name
        self.schedule = schedule
        self.steps = 0
        self._clip = config.gradient_clip
        self._adamw = torch.optim.AdamW(
            _decay_groups(model, config.weight_decay),
            lr=0.0,
            betas=(config.beta1, config.beta2),
            fused=True,
        )

    @doing(MODEL)
    def step(self, terms: Sequence[Term], first_step: int = 0) -> StepRecord:
        """Take one step on the weighted sum of the terms.

        Args:
            terms: what the loss is made of; terms without tokens count as 0.
            first_step: added to the step number in the record.

        Raises:
            NonFiniteLoss: the loss or the gradient is NaN or infinite; parameters are unchanged.
        """
        started = time.monotonic()
        loss = self._accumulate(terms)
        tokens = sum(term.documents.num_tokens for term in terms)
        return self._finish(loss, tokens, started, first_step)

    @doing(MODEL)
    def check(self, terms: Sequence[Term]) -> None:
        """Make sure that a step on these terms could be taken; take none.

        A loss can be finite where its gradient is not: weights that overflow before a normalization
        come out of it as zeros.

        Raises:
            NonFiniteLoss: as `step`.
        """
        measured = self._clip_gradient(self._accumulate(terms))
        self._adamw.zero_grad()
        self._finite(measured)

    @doing(MODEL)
    def step_on(self, loss: torch.Tensor, tokens: int) -> StepRecord:
        """Take one step on a loss whose forward pass has been made, nats per token.

        Args:
            loss: scalar with a graph that reaches this model.
            tokens: tokens of its forward pass, for the record.

        Raises:
            NonFiniteLoss: as `step`.
        """
        started = time.monotonic()
        loss.backward()  # type: ignore[no-untyped-call]
        return self._finish([loss.detach()], tokens, started, 0)

    def _finish(
        self, losses: Sequence[torch.Tensor], tokens: int, started: float, first_step: int
    ) -> StepRecord:
        """Clip the accumulated gradient, move the parameters, and say what was done."""
        rate = self.schedule(self.steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        measured = self._clip_gradient(losses)
        self._skip_if((~measured.isfinite().all()).float())
        arrived = self.model.compute.fetch(measured)
        self._adamw.step()  # asked for before the loss is waited for
        self._adamw.zero_grad()
        loss, norm = self._finite(arrived())
        number = first_step + self.steps
        self.steps += 1
        speed = tokens / max(time.monotonic() - started, 1e-9)
        return StepRecord(number, self.name, loss, rate, norm, speed)

    def _skip_if(self, broken: torch.Tensor) -> None:
        """Make the next call of AdamW no step where `broken` is 1, found out on the device.

        This is what `torch.amp.GradScaler` tells a fused optimizer.
        """
        self._adamw.found_inf = broken  # type: ignore[attr-defined]

    def _clip_gradient(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """Clip the accumulated gradient; the losses, and its norm before that, on the device."""
        parameters = list(self.model.network.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        return torch.stack([*losses, norm]).double()

    def _finite(self, measured: torch.Tensor) -> tuple[float, float]:
        """The sum of the losses, and the gradient's norm, from what `_clip_gradient` measured."""
        *losses, norm = measured.tolist()
        loss = sum(losses, 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"Step {self.steps} of the {self.name} model gave a loss of {loss:g} and a "
                f"gradient norm of {norm:g}."
            )
        return loss, norm

    def _accumulate(self, terms: Sequence[Term]) -> list[torch.Tensor]:
        """Add up the gradient of the terms; the losses that add up to theirs, on the device."""
        model, found = self.model, []
        for term in terms:
            total = term.documents.num_counted
            windows = rolling_windows(term.documents.lengths, model.window, model.overlap)
            size = model.training_microbatch_tokens
            for batch in model.batches(term.documents, windows, size) if total else ():
                loss = model.token_losses(batch).sum() * (term.weight / total)
                loss.backward()  # type: ignore[no-untyped-call]
                found.append(loss.detach())
        return found

    def state_dict(self) -> dict[str, object]:
        """Moments and step counter, for a checkpoint."""
        return {"adamw": self._adamw.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Inverse of `state_dict`."""
        self._adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]
        self.steps = int(state["steps"])  # type: ignore[call-overload]


def default_ramp(steps: int) -> int:
    """Steps of the learning rate's ramp: a tenth of all, at most 100.

    Shorter ones leave a small model in worse places, and far apart by seed (benchmarks/LOG.md).
    """
    return min(_LONGEST_RAMP, max(1, steps // 10))


def ramp_then_constant(peak: float, ramp_steps: int) -> Callable[[int], float]:
    """Learning rate that rises linearly over `ramp_steps` steps and then stays at `peak`."""
    return lambda step: peak * min(1.0, (step + 1) / max(1, ramp_steps))


def ramp_then_decay(peak: float, ramp_steps: int, steps: int) -> Callable[[int], float]:
    """Learning rate that rises over `ramp_steps` steps and is on its way to 0 at `steps`."""
    up = ramp_then_constant(1.0, ramp_steps)
    return lambda step: peak * up(step) * max(0.0, 1 - step / steps)


def _decay_groups(model: LanguageModel, weight_decay: float) -> list[dict[str, object]]:
    parameters = list(model.network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
