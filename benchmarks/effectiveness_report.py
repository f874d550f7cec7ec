"""Writes benchmarks/effectiveness.md and .json from the result lines of the benchmark.

    python benchmarks/effectiveness_report.py

Lower is better throughout: bits per byte on held-out text. Differences are paired by seed, and
intervals are 95 % over seeds (`curate.evaluation.statistics`).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from effectiveness_plan import ALL, MULTIPLES, PUBLISHED, Cell, Plan

from curate.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    token_multiplier,
    verdict,
)

HERE = Path(__file__).parent
RELATED = {"math": ("math-",), "medical": ("medical-",), "wiki": ("wikipedia",)}
"""Sources of the pool that are about a target, if not one of its name; for reading the tables."""
NOISE = ("noise-",)

Scores = dict[tuple[str, str, float], dict[int, float]]
"""Bits per byte by seed, of (variant, target, keep)."""


class Results:
    """The result lines of one stage."""

    def __init__(self, stage: str) -> None:
        path = HERE / "results" / f"effectiveness-{stage}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        self.records = [json.loads(line) for line in lines]
        self.plan = Plan.of(stage, None)

    def scores(self, test: str | None = None) -> Scores:
        """Bits per byte on a test set, or on each cell's own target."""
        found: Scores = defaultdict(dict)
        for record in self.records:
            cell = Cell(**record["cell"])
            if cell.variant == "reserve":
                continue
            bits = record["measures"][-1]["bits_per_byte"]
            for target in self._targets(cell):
                found[cell.variant, target, cell.keep][cell.seed] = bits[test or target]
        return found

    def curve(self, target: str) -> dict[float, dict[int, float]]:
        """Bits per byte of unrepeated random text, by multiple of the tokens and seed."""
        found: dict[float, dict[int, float]] = defaultdict(dict)
        for record in self.records:
            if record["cell"]["variant"] == "reserve":
                for multiple, measure in zip(MULTIPLES, record["measures"], strict=True):
                    found[multiple][record["cell"]["seed"]] = measure["bits_per_byte"][target]
        return found

    def shares(self, variant: str, target: str, keep: float) -> list[dict[str, Any]]:
        """Shares by source of each seed's cell."""
        return [
            record["shares"]
            for record in self.records
            if "shares" in record
            and (record["cell"]["variant"], record["cell"]["keep"]) == (variant, keep)
            and target in self._targets(Cell(**record["cell"]))
        ]

    def seconds(self, variant: str) -> float:
        """Mean seconds of a selection."""
        return _mean(
            r["select_seconds"]
            for r in self.records
            if r["cell"]["variant"] == variant and "select_seconds" in r
        )

    def _targets(self, cell: Cell) -> list[str]:
        return self.plan.targets if cell.target == ALL else [cell.target]


def sources_of(target: str) -> tuple[str, ...]:
    """What the names of sources that are about a target begin with."""
    return RELATED.get(target, (target,))


def share_of(shares: Mapping[str, float], prefixes: tuple[str, ...]) -> float:
    """Share of the sources whose names begin so."""
    return sum(part for name, part in shares.items() if name.startswith(prefixes))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(header)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def losses_table(results: Results) -> str:
    """Bits per byte on the target, and the difference from random."""
    scores, general = results.scores(), results.scores("general")
    rows = []
    for (variant, target, keep), ours in sorted(scores.items(), key=lambda item: item[0][1:]):
        random = scores.get(("random", target, keep), {})
        both = bool(ours.keys() & random.keys()) and variant != "random"
        difference = paired_difference(ours, random) if both else None
        multiplier = "-"
        curve = results.curve(target)
        if curve and ours.keys() & curve[MULTIPLES[0]].keys():
            multiplier = str(token_multiplier(ours, curve).reading)
        rows.append(
            [
                target,
                f"{keep:g}",
                variant,
                _interval(mean_interval(list(ours.values()))),
                _interval(difference) if difference else "-",
                _verdict(difference) if difference else "-",
                multiplier,
                f"{mean_interval(list(general[variant, target, keep].values())).mean:.4f}",
                f"{len(ours)}",
            ]
        )
    names = ("target", "keep", "selection", "target bits/byte", "less random", "verdict")
    return table([*names, "token multiplier", "general bits/byte", "seeds"], rows)


def rank_table(results: Results) -> str:
    """Mean rank of each selection over targets and keep ratios, of the means over seeds."""
    scores = results.scores()
    ranks: dict[str, list[int]] = defaultdict(list)
    for keep in results.plan.keeps:
        for target in results.plan.targets:
            means = {
                variant: _mean(ours.values())
                for (variant, its_target, its_keep), ours in scores.items()
                if (its_target, its_keep) == (target, keep)
            }
            for rank, variant in enumerate(sorted(means, key=lambda one: means[one]), start=1):
                ranks[variant].append(rank)
    rows = [
        [variant, f"{_mean(its):.2f}", " ".join(map(str, its)), f"{results.seconds(variant):.0f}"]
        for variant, its in sorted(ranks.items(), key=lambda item: _mean(item[1]))
    ]
    return table(["selection", "mean rank", "ranks", "seconds to select"], rows)


def against_table(results: Results, ours: str = "blade") -> str:
    """The default against every other selection, paired by seed; below 0 is better."""
    scores = results.scores()
    rows = []
    for (variant, target, keep), theirs in sorted(scores.items(), key=lambda item: item[0][1:]):
        mine = scores.get((ours, target, keep), {})
        if variant == ours or not mine.keys() & theirs.keys():
            continue
        difference = paired_difference(mine, theirs)
        rows.append([target, f"{keep:g}", variant, _interval(difference), _verdict(difference)])
    return table(["target", "keep", f"{ours} less", "bits/byte", "verdict"], rows)


def shares_table(results: Results) -> str:
    """What was kept: related sources in all and by round, and noise."""
    rows = []
    for variant, target, keep in sorted(results.scores(), key=lambda one: one[1:]):
        found = results.shares(variant, target, keep)
        related = sources_of(target)
        rounds = {name for one in found for name in one if name.startswith("round")}
        in_order = sorted(rounds, key=lambda name: (len(name), name))
        by_round = [_mean(share_of(one[name], related) for one in found) for name in in_order]
        rows.append(
            [
                target,
                f"{keep:g}",
                variant,
                _ratio(found, related),
                _ratio(found, NOISE),
                f"{max((_times(one, NOISE) for one in found), default=float('nan')):.2f}x",
                " ".join(f"{share:.2f}" for share in by_round),
            ]
        )
    names = ("target", "keep", "selection", "related, kept (times the pool)")
    return table([*names, "noise, kept (times the pool)", "worst seed", "related by round"], rows)


def rounds_text(results: Results) -> str:
    """How far the share of related text falls from the best round of a run to its worst."""
    lowest: dict[str, tuple[float, str]] = {}
    for variant, target, keep in results.scores():
        for one in results.shares(variant, target, keep):
            related = sources_of(target)
            rounds = [share_of(shares, related) for name, shares in one.items() if "round" in name]
            if len(rounds) > 1:
                fall = (min(rounds) / max(rounds), f"{target}, {keep:g}")
                lowest[variant] = min(fall, lowest.get(variant, fall))
    found = (f"{name} {fall:.2f} ({where})" for name, (fall, where) in sorted(lowest.items()))
    return (
        "Share of related text in the worst round of a run over that in its best, the last scoring "
        f"included, in the run where it is lowest: {'; '.join(found)}.\n"
    )


def sources_table(results: Results, variant: str, keep: float) -> str:
    """Share of the kept tokens by source, for each target, beside the pool."""
    found = {target: results.shares(variant, target, keep) for target in results.plan.targets}
    found = {target: shares for target, shares in found.items() if shares}
    if not found:
        return ""
    pool = next(iter(found.values()))[0]["pool"]
    rows = [
        [source, f"{100 * share:.1f}"]
        + [
            f"{100 * _mean(one['kept'].get(source, 0.0) for one in shares):.1f}"
            for shares in found.values()
        ]
        for source, share in sorted(pool.items(), key=lambda item: -item[1])
    ]
    return table(["source", "pool %", *(f"{target} %" for target in found)], rows)


def _ratio(found: list[dict[str, Any]], prefixes: tuple[str, ...]) -> str:
    if not found:
        return "-"
    kept = _mean(share_of(one["kept"], prefixes) for one in found)
    pool = _mean(share_of(one["pool"], prefixes) for one in found)
    return f"{kept:.3f} ({kept / pool:.2f}x)" if pool else "-"


def _times(shares: dict[str, Any], prefixes: tuple[str, ...]) -> float:
    pool = share_of(shares["pool"], prefixes)
    return share_of(shares["kept"], prefixes) / pool if pool else float("nan")


def _interval(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.4f}"
    return f"{value.mean:.4f} ± {(value.high - value.low) / 2:.4f}"


def _verdict(difference: Interval) -> str:
    return "one seed" if difference.low is None else verdict(difference)


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every) if every else float("nan")


SECTIONS: dict[str, Callable[[Results], str]] = {
    "Held-out loss": losses_table,
    "Mean rank": rank_table,
    "The default against the others": against_table,
    "What was kept": shares_table,
    "By round": rounds_text,
}


def render(stage: str) -> str:
    """All tables of a stage, or nothing when it has no results."""
    results = Results(stage)
    if not results.records:
        return ""
    plan, machines = results.plan, [record["machine"] for record in results.records]
    facts = {key: sorted({str(one[key]) for one in machines}) for key in machines[-1]}
    parts = [
        f"## Stage {stage}\n",
        f"{len(results.records)} cells. Pool: shards {plan.first} to {plan.first + plan.shards - 1}"
        + ", documents "
        + (f"cut to {plan.cut} characters" if plan.cut else "whole")
        + f"; model {plan.model}; trained on {plan.train_share:g} of the pool's tokens. "
        + ", ".join(f"{key} {' and '.join(values)}" for key, values in facts.items())
        + ".\n",
    ]
    for title, section in SECTIONS.items():
        parts += [f"### {title}\n", section(results)]
    for keep in plan.keeps:
        sources = sources_table(results, "blade", keep)
        parts += [f"### Sources kept by blade at keep {keep:g}\n", sources] if sources else []
    return "\n".join(parts)


INTRODUCTION = f"""# Does selection help? Every method on the same pool, budget and tokens

Made by `benchmarks/effectiveness_report.py` from `benchmarks/results/`; the cells are run by
`benchmarks/effectiveness.py` (its docstring says how). A cell is one `curate run` and one model
trained from scratch on what it kept; all cells of a seed start from the same weights and train on
the same number of tokens. Lower is better: bits per byte on the target's held-out documents, and
(general) on a shard of the pool that no selection saw. The random selection has the same budget as
the others and is repeated as often; the token multiplier compares with random text that is never
repeated. `blade-published` is `pipelines/blade-published.yaml`: it keeps tokens, at its own ratio
of {PUBLISHED["keep"]:g}, so it is compared at equal tokens trained on, not at equal budget.
Text and sources are described by the pool's `source` column, which no method reads. The default's
settings, the weights of its votes among them, were chosen on these targets and seeds
(`benchmarks/LOG.md`), but for those of the stage fresh: other shards of the same sources, other
seeds, and three of the sources as targets, their documents from shards that no selection saw. The
settings of the other methods are published or customary ones; read a lead within its interval as
none.
"""


def main() -> None:
    """Write the document and its figures."""
    argparse.ArgumentParser(description="Tables of the effectiveness benchmark.").parse_args()
    stages = {stage: render(stage) for stage in ("full", "confirm", "fresh", "screen")}
    text = "\n".join([INTRODUCTION, *(one for one in stages.values() if one)])
    (HERE / "effectiveness.md").write_text(text)
    records = {stage: Results(stage).records for stage in stages}
    figures = {
        stage: [
            {**one["cell"], "bits_per_byte": one["measures"][-1]["bits_per_byte"]} for one in lines
        ]
        for stage, lines in records.items()
    }
    (HERE / "effectiveness.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
