"""What an evaluation is asked to do: frozen, and checked when built."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from curate.errors import InvalidInput
from curate.files import model_source

CURATED, RANDOM, POOL = "curated", "random", "pool"
"""The arms that every evaluation has; further runs are arms under their own path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """The settings of `curate evaluate`; None stands for a value that is derived and printed.

    Attributes:
        out: the output folder of a finished run; results are written into it.
        test: held-out documents like the target's: any corpus that `curate run` reads.
        against: output folders of other finished runs over the same pool.
        seeds: how many times each arm is trained, with one seed after another.
        first_seed: the first of them; another gives trainings that nothing was chosen by.
        tokens: tokens that each arm is trained on; min(4 x kept tokens, 20 x parameters).
        model: a preset, or a folder or Hub id of a causal model to continue.
        multiples: budgets of the whole pool, as multiples of `tokens`.
        text_column: the test's column that holds the text; the run's by default.
        pool: where the run's pool lies now, if it moved.
        window: inputs the model reads at once; the model's own.
        batch_tokens: tokens in one optimizer step; the model's own.
        learning_rate: peak learning rate; the model's own.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; the machine's cores by default.
        results: folder of the results by content, to share between evaluations;
            `evaluation/results` in `out`.

    Raises:
        InvalidInput: a value is missing or out of its limits.
    """

    out: Path
    test: str | None = None
    against: tuple[Path, ...] = ()
    seeds: int = 3
    first_seed: int = 0
    tokens: int | None = None
    model: str = "tiny"
    multiples: tuple[float, ...] = field(default=(1.0, 2.0, 4.0))
    text_column: str | None = None
    pool: str | None = None
    window: int | None = None
    batch_tokens: int | None = None
    learning_rate: float | None = None
    device: str = "auto"
    threads: int | None = None
    results: Path | None = None

    def __post_init__(self) -> None:
        self._take_paths()
        if not self.test:
            raise InvalidInput(
                "There is no test set to measure on.",
                "Give --test documents like the target's that the run has not seen.",
            )
        _check_whole("--seeds", self.seeds, 1, "to 3 or more")
        _check_whole("--first-seed", self.first_seed, 0, "to 0 or more")
        for flag, value, minimum in (
            ("--tokens", self.tokens, 1),
            ("--window", self.window, 8),
            ("--batch-tokens", self.batch_tokens, 1),
            ("--threads", self.threads, 1),
        ):
            if value is not None:
                _check_whole(flag, value, minimum, "higher, or leave it out")
        rate = self.learning_rate
        if rate is not None and not (0 < rate < math.inf):
            raise InvalidInput(
                f"--learning-rate must be a number above 0, but is {rate:g}.",
                "Set --learning-rate higher, or leave it out.",
            )
        if not self.multiples or not all(0 < one < math.inf for one in self.multiples):
            given = ",".join(f"{one:g}" for one in self.multiples)
            raise InvalidInput(
                f"--multiples must be numbers above 0, but is {given or 'empty'}.",
                "Set --multiples to a list such as 1,2,4.",
            )
        self._check_runs()

    def _take_paths(self) -> None:
        """Strings are paths too."""
        object.__setattr__(self, "model", model_source(self.model))
        object.__setattr__(self, "out", Path(self.out).expanduser())
        object.__setattr__(self, "against", tuple(Path(one).expanduser() for one in self.against))
        if self.results is not None:
            object.__setattr__(self, "results", Path(self.results).expanduser())

    def _check_runs(self) -> None:
        places = [self.out, *self.against]
        resolved = [place.resolve() for place in places]
        for index, place in enumerate(resolved):
            if place in resolved[:index]:
                raise InvalidInput(
                    f"The run in {places[index]} is named twice.",
                    "Give --against other runs than the one that is evaluated, each once.",
                )


def arm_name(out: Path) -> str:
    """What the arm of another run is called: its path."""
    name = str(out)
    return f"./{name}" if name in (CURATED, RANDOM, POOL) else name


def _check_whole(flag: str, value: int, minimum: int, remedy: str) -> None:
    if value < minimum:
        raise InvalidInput(
            f"{flag} must be at least {minimum}, but is {value}.", f"Set {flag} {remedy}."
        )
