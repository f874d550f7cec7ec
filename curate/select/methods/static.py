"""Selections by a static reference: CoLoR-Filter and RHO-1, as BLADE without its dynamic part.

CoLoR-Filter (arXiv 2406.10670): score = loss under a prior - loss under the prior fine-tuned on the
target, every document once, the pool decided as a whole. RHO-1 (arXiv 2404.07965): the reference
is made once, the proxy goes on training on what is kept, and is compared with it as it is now.
Both use the proxy and reference settings of section `blade`; what is not theirs to vary there,
lambda and the control, is set where the config is resolved (`curate/select/schedule.py`).
"""

from __future__ import annotations

from curate.config.schema import Config
from curate.select.methods.base import RoundStart
from curate.select.methods.blade import BladeMethod
from curate.select.schedule import Schedule, plan_rounds, plan_scoring


class ColorMethod(BladeMethod):
    """One static sync with lambda 0; scores once."""

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """Warm-up, one sync, one scoring of the whole pool."""
        blade, batch = config.blade, int(config.train.batch_tokens or 0)
        return plan_scoring(
            expected_tokens=int(blade.warmup_tokens or 0)
            + int(blade.reference_steps or 0) * batch
            + pool_tokens,
            syncs=1,
            description=f"warm-up {blade.warmup_tokens:,} tokens; {blade.reference_steps} "
            "reference steps on the target; every document scored once",
        )


class Rho1Method(BladeMethod):
    """A reference made once, before the first round, and the live proxy as its control."""

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """Rounds over the pool, with a sync only before the first."""
        return plan_rounds(config, pool_tokens=pool_tokens, syncs=1)

    def start_round(self, round_index: int) -> RoundStart:
        """Make the reference before the first round; afterwards it stays."""
        if self._pair.reference is None:
            return super().start_round(round_index)
        return self._begin(round_index, 0.0, 0)
