"""Does selection help, and whose helps most? Every method on the same pool, budget and tokens.

A CELL is one selection and one model trained on it from scratch: (variant, target, keep, seed). The
selection is a real `curate run`; the model is trained by the machinery of `curate evaluate`, on the
same number of tokens in every cell, and measured on the target's test documents and on a sample of
a pool shard that no selection saw. Cells of one seed share the model's initial weights.

Each finished cell is one line of `benchmarks/results/effectiveness-STAGE.jsonl`. Cells that are
there are skipped, so the benchmark runs in pieces: stop it, and start the same command again.
Several processes may work at once (--part 0/2, --part 1/2).

    python benchmarks/effectiveness.py --pool POOL --targets TARGETS --work WORK --stage confirm
    python benchmarks/effectiveness_report.py      # writes benchmarks/effectiveness.md

POOL is a folder of shards with columns text and source, TARGETS a folder with
NAME/target.parquet and NAME/test.parquet. `source` is read for the report alone, and where the
stage `fresh` makes targets of three sources, on which, as on its shards and seeds, nothing of the
defaults was chosen; it needs no TARGETS.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from effectiveness_plan import (
    ALL,
    GENERAL_CHARACTERS,
    MULTIPLES,
    TEST_CHARACTERS,
    Cell,
    Plan,
    cells_of,
)
from machine import describe_machine

import curate
from curate.config.schema import ComputeConfig, TrainConfig
from curate.evaluation.arms import cut, pass_over
from curate.evaluation.runs import open_run, read_kept
from curate.evaluation.store import write_store
from curate.evaluation.train import Measure, ModelSettings, train_and_measure
from curate.noise import make_key, shuffled_order
from curate.read.documents import Documents, from_tokens
from curate.read.tokenizer import TextTokenizer, load_tokenizer
from curate.train.compute import resolve_compute, tune_memory
from curate.train.model import PRESETS
from curate.train.optimizer import default_ramp

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where everything lies, and how much of it is used."""

    plan: Plan
    work: Path
    targets: Path
    device: str
    threads: int

    @property
    def pool(self) -> Path:
        """The pool that selections draw from."""
        return self.work / f"pool-{self.plan.first}-{self.plan.shards}-{self.plan.cut}"

    def targets_of(self, cell: Cell) -> list[str]:
        """The targets that a cell is measured on."""
        return self.plan.targets if cell.target == ALL else [cell.target]

    def reserve(self) -> list[Path]:
        """Shards of more random text, for the token multiplier."""
        return sorted(self.reserve_folder.iterdir())

    @property
    def reserve_folder(self) -> Path:
        """The folder of those shards."""
        return self.work / f"reserve-{self.plan.first + self.plan.shards}-{self.plan.cut}"


def prepare(bench: Bench, source: Path) -> None:
    """Copy the pool's shards, and those behind as a reserve, documents cut to a length."""
    plan, shards = bench.plan, sorted(source.glob("*.parquet"))
    behind = plan.first + plan.shards
    for number, shard in enumerate(shards[plan.first :], start=plan.first):
        place = bench.pool if number < behind else bench.reserve_folder
        place.mkdir(parents=True, exist_ok=True)
        cut_shard(shard, place / shard.name, plan.cut)
    if plan.of_sources:
        *of_target, of_test, _ = shards[behind:]  # the last is the general test
        for name in plan.targets:
            write_source(of_target, name, bench.targets / name / "target.parquet")
            write_source([of_test], name, bench.targets / name / "test.parquet")


def write_source(shards: list[Path], source: str, place: Path) -> None:
    """Write the documents that shards have of a source."""
    tables = (pq.read_table(one, columns=["id", "text", "source"]) for one in shards)
    table = pa.concat_tables(tables).filter(pc.field("source") == source)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(f".{time.monotonic_ns()}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(place)


def cut_shard(shard: Path, place: Path, characters: int | None) -> None:
    """Copy a shard with its documents cut to a length; nothing where it is there."""
    if place.exists():
        return
    table = pq.read_table(shard, columns=["id", "text", "source"])
    if characters:
        text = pc.utf8_slice_codeunits(table["text"], 0, characters)
        table = table.set_column(1, "text", text)
    temporary = place.with_suffix(f".{time.monotonic_ns()}.tmp")
    pq.write_table(table, temporary, row_group_size=2000)
    temporary.replace(place)


def select(bench: Bench, cell: Cell) -> Path:
    """Run `curate run` for a cell; returns its output folder."""
    out = bench.work / "runs" / bench.plan.stage / cell.name
    settings = {
        "pool": str(bench.pool),
        "target": str(bench.targets / bench.targets_of(cell)[0] / "target.parquet"),
        "out": str(out),
        "keep": cell.keep,
        "seed": cell.seed,
        "model.name": bench.plan.model,
        "metadata_columns": ["source"],
        "compute.device": bench.device,
        "compute.threads": bench.threads,
        **cell.settings,
    }
    curate.run(curate.load_config(flags=settings), io.StringIO())
    return out


def train(bench: Bench, cell: Cell, out: Path) -> tuple[Measure, float]:
    """Train a model on a selection; returns its measure and the passes over the kept set."""
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    run = open_run(out)
    rows = ((one.documents, one.weights) for one in read_kept(run, tokenizer))
    store = write_store(out / "store", rows, {})
    budget = train_tokens(bench, out)
    settings = model_settings(bench, tokenizer, budget)
    tests = test_sets(bench, tokenizer, bench.targets_of(cell))
    stream = pass_over(store, cell.seed, settings.piece_tokens)
    (measure,) = train_and_measure(settings, stream, [budget], cell.seed, tests)
    return measure, measure.tokens / store.epoch_tokens


def train_on_reserve(bench: Bench, seed: int, out: Path) -> list[Measure]:
    """Train on random text that is never repeated, up to several times the budget."""
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    budget = train_tokens(bench, out)
    settings = model_settings(bench, tokenizer, budget)
    shards = [*sorted(bench.pool.iterdir()), *bench.reserve()[:-1]]
    stream = _random_text(shards, tokenizer, seed, settings.piece_tokens)
    tests = test_sets(bench, tokenizer, bench.plan.targets)
    return train_and_measure(settings, stream, [m * budget for m in MULTIPLES], seed, tests)


def _random_text(
    shards: list[Path], tokenizer: TextTokenizer, seed: int, piece_tokens: int
) -> Iterator[Documents]:
    texts = [t for shard in shards for t in pq.read_table(shard)["text"].to_pylist()]
    order = shuffled_order(make_key(seed, "reserve"), range(len(texts)))
    for first in range(0, len(order), 512):
        yield cut(_encode(tokenizer, [texts[i] for i in order[first : first + 512]]), piece_tokens)[
            1
        ]


def train_tokens(bench: Bench, out: Path) -> int:
    """Tokens every model is trained on: a share of the pool, the same for every selection."""
    with curate.run_sql(out, "SELECT pool_tokens FROM run") as rows:
        (pool_tokens,) = rows.read_all()["pool_tokens"].to_pylist()
    return round(bench.plan.train_share * int(pool_tokens))


def model_settings(bench: Bench, tokenizer: TextTokenizer, budget: int) -> ModelSettings:
    """The model that is trained on what was selected: the shape of the proxy."""
    shape = PRESETS[bench.plan.model]
    return ModelSettings(
        name=bench.plan.model,
        shape=shape,
        vocabulary_size=tokenizer.vocabulary_size,
        prefix_id=tokenizer.prefix_id,
        window=shape.window,
        overlap=shape.window // 8,
        batch_tokens=shape.batch_tokens,
        learning_rate=shape.learning_rate,
        compute=resolve_compute(ComputeConfig(device=bench.device)),
        train=TrainConfig(ramp_steps=default_ramp(budget // shape.batch_tokens)),
    )


def test_sets(bench: Bench, tokenizer: TextTokenizer, targets: list[str]) -> dict[str, Documents]:
    """Held-out documents: the targets' test documents, and a shard that no selection saw."""
    files = {name: (bench.targets / name / "test.parquet", TEST_CHARACTERS) for name in targets}
    files["general"] = (bench.reserve()[-1], GENERAL_CHARACTERS)
    return {name: _first_documents(tokenizer, *where) for name, where in files.items()}


def _first_documents(tokenizer: TextTokenizer, path: Path, characters: int) -> Documents:
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    order = shuffled_order(make_key(0, "test documents"), range(len(texts)))
    chosen, held = [], 0
    for place in order:
        if held >= characters:
            break
        chosen.append(texts[place])
        held += len(texts[place])
    return _encode(tokenizer, chosen)


def _encode(tokenizer: TextTokenizer, texts: list[str]) -> Documents:
    sizes = [len(text.encode()) for text in texts]
    return from_tokens(range(len(texts)), sizes, tokenizer.encode(texts))


def shares(out: Path) -> dict[str, Any]:
    """Share of tokens by source: of the pool, of the kept set, and of what each round kept."""
    query = """
        SELECT 'pool' AS place, source, sum(tokens)::DOUBLE AS tokens FROM document GROUP BY ALL
        UNION ALL SELECT 'kept', source, sum(tokens_kept) FROM document GROUP BY ALL
        UNION ALL SELECT 'round ' || round, source, sum(decision.tokens_kept)
        FROM decision JOIN document USING (document_id) GROUP BY ALL
    """
    found: dict[str, dict[str, float]] = {}
    for row in curate.run_sql(out, query).read_all().to_pylist():
        found.setdefault(row["place"], {})[row["source"]] = row["tokens"]
    return {
        place: {name: round(part / sum(tokens.values()), 5) for name, part in tokens.items()}
        for place, tokens in found.items()
    }


def run_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Select, train and measure; returns the result line."""
    out = select(bench, cell)
    record: dict[str, Any] = {"cell": dataclasses.asdict(cell), "stage": bench.plan.stage}
    if cell.variant == "reserve":
        measures = train_on_reserve(bench, cell.seed, out)
        record["measures"] = [dataclasses.asdict(one) for one in measures]
    else:
        measure, passes = train(bench, cell, out)
        seconds = json.loads(
            curate.run_sql(out, "SELECT stage_seconds FROM run").read_all()[0][0].as_py()
        )
        record |= {
            "measures": [dataclasses.asdict(measure)],
            "passes": round(passes, 3),
            "select_seconds": round(sum(seconds.values()), 1),
            "shares": shares(out),
        }
    shutil.rmtree(out)
    machine = describe_machine("torch", "transformers", "pyarrow")
    return record | {"machine": {**machine, "device": bench.device, "threads": bench.threads}}


def main() -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description="The effectiveness benchmark.")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--targets", type=Path, help="not for the stage fresh")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", required=True, choices=["screen", "confirm", "fresh", "full"])
    parser.add_argument("--model", default=None, help="a preset; the stage's own by default")
    parser.add_argument("--variants", nargs="*", help="only these")
    parser.add_argument("--keeps", nargs="*", type=float, help="only these keep ratios")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these seeds")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th missing cell, from I")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    tune_memory()
    plan = Plan.of(options.stage, options.model)
    if not plan.of_sources and options.targets is None:
        parser.error(f"the stage {plan.stage} needs --targets")
    bench = Bench(
        plan=plan,
        work=options.work,
        targets=options.work / "targets" if plan.of_sources else options.targets,
        device=options.device,
        threads=options.threads,
    )
    prepare(bench, options.pool)
    part, parts = map(int, options.part.split("/"))
    results = RESULTS / f"effectiveness-{plan.stage}.jsonl"
    results.parent.mkdir(exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    wanted = dataclasses.replace(
        plan, keeps=options.keeps or plan.keeps, seeds=options.seeds or plan.seeds
    )
    for number, cell in enumerate(cells_of(wanted, options.variants)):
        if number % parts != part or cell.name in done(results):
            continue
        if time.monotonic() > deadline:
            break
        record = run_cell(bench, cell)
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        bits = record["measures"][-1]["bits_per_byte"]
        print(f"{cell.name}: {json.dumps({k: round(v, 4) for k, v in bits.items()})}", flush=True)


def done(results: Path) -> set[str]:
    """Names of the cells that have a result."""
    if not results.exists():
        return set()
    cells = (json.loads(line)["cell"] for line in results.read_text().splitlines())
    return {Cell(**one).name for one in cells}


if __name__ == "__main__":
    main()
