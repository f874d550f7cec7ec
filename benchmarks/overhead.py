"""What does curating cost beside training? Whole runs beside one epoch of the product's own loop.

PLAIN trains the same proxy on every token of the same pool once, with the product's optimizer, in
the order of the run's first pass; its tokenizing is not counted. DOCUMENT is `curate.run` with the
defaults at keep 0.3 in one pass, TOKEN the same at token granularity; on a pool of some 2.5 million
tokens or more T : K is 10 : 3. All are timed in turn in one process; ratios are medians over the
repeats. The result holds where each run says that its time went.

    python benchmarks/overhead.py --pool POOL --target TARGET --model tiny --megabytes 8

POOL is a folder of shards with a column text; the first shards' documents up to so many megabytes
are used, whole. Writes benchmarks/results/overhead-MODEL-DEVICE.json.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import code_version, describe_machine
from text_pool import write_pool

import curate
from curate.config.schema import ComputeConfig, TrainConfig
from curate.read.cache import cache_from_json, draw_batches
from curate.train.compute import resolve_compute, tune_memory
from curate.train.model import PRESETS, LanguageModel, build_network
from curate.train.optimizer import Optimizer, Term, ramp_then_constant

RESULTS = Path(__file__).parent / "results"
RUNS: dict[str, dict[str, Any]] = {
    "document": {},
    "token": {"granularity": "token"},
}


def run(out: Path, settings: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Seconds of a whole run, and where it says they went."""
    shutil.rmtree(out, ignore_errors=True)
    config = curate.load_config(flags={**settings, "out": str(out)})
    started = time.perf_counter()
    done = curate.run(config, io.StringIO())
    return time.perf_counter() - started, done.activity_seconds


def plain(out: Path, device: str, model: str) -> tuple[float, int]:
    """Seconds of one epoch over the tokens of the run in `out`, and how many they are."""
    manifest = json.loads((out / "manifest.json").read_text())["stages"]
    cache = cache_from_json(out / "state" / "tokens", manifest["tokens"])
    resolved, shape = manifest["config"], PRESETS[model]
    microbatch = resolved["compute"]["microbatch_tokens"]
    compute = resolve_compute(ComputeConfig(device=device, microbatch_tokens=microbatch))
    proxy = LanguageModel(
        build_network(shape, manifest["tokenizer"]["entries"], 0, seed=0),
        window=resolved["model"]["window"],
        overlap=resolved["model"]["window_overlap"],
        prefix_id=0,
        compute=compute,
    )
    train = resolved["train"]
    rate = ramp_then_constant(train["learning_rate"], train["ramp_steps"])
    optimizer = Optimizer(proxy, "proxy", TrainConfig(), rate)
    started = time.perf_counter()
    for block in draw_batches(cache.stream(0, "pass", 0), train["batch_tokens"], 0):
        optimizer.step([Term(block)])
    return time.perf_counter() - started, cache.tokens


def main() -> None:
    """Time whole runs beside plain training, and write the ratios down."""
    parser = argparse.ArgumentParser(description="Time whole runs beside plain training.")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--model", default="tiny", choices=list(PRESETS))
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    tune_memory()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pool(options.pool, folder / "pool", options.megabytes * 1e6)
        common = {
            "pool": str(folder / "pool"),
            "target": str(options.target),
            "keep": options.keep,
            "model.name": options.model,
            "compute.device": options.device,
        }
        for number in range(options.repeats):
            row: dict[str, Any] = {}
            for name in options.runs:
                seconds, activities = run(folder / name, {**common, **RUNS[name]})
                row[name] = {"seconds": seconds, "activities": activities}
            seconds, tokens = plain(folder / options.runs[0], options.device, options.model)
            row["plain"] = {"seconds": seconds}
            rows.append(row)
            print(number, {name: round(one["seconds"], 1) for name, one in row.items()}, flush=True)
        found = {name: figures(name, rows, folder / name) for name in options.runs}
    result = {
        **describe_machine("torch", "transformers"),
        "code": code_version(),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "model": options.model,
        "keep": options.keep,
        "pool_tokens": tokens,
        "repeats": options.repeats,
        "plain_tokens_per_second": round(
            tokens / statistics.median(row["plain"]["seconds"] for row in rows)
        ),
        **found,
    }
    kind = "cuda" if options.device.startswith("cuda") else "cpu"
    path = RESULTS / f"overhead-{options.model}-{kind}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def figures(name: str, rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """The ratio of a kind of run, where its time went, and the sizes of its steps."""
    ratios = [row[name]["seconds"] / row["plain"]["seconds"] for row in rows]
    shares: dict[str, list[float]] = {}
    for row in rows:
        total = sum(row[name]["activities"].values())
        for activity, seconds in row[name]["activities"].items():
            shares.setdefault(activity, []).append(seconds / total)
    manifest = json.loads((out / "manifest.json").read_text())["stages"]["config"]
    blade, batch = manifest["blade"], manifest["train"]["batch_tokens"]
    return {
        "times_plain": round(statistics.median(ratios), 3),
        "each": [round(one, 3) for one in ratios],
        "share_of_time": {
            activity: round(statistics.median(one), 4) for activity, one in shares.items()
        },
        "steps": {
            "batch_tokens": batch,
            "sync_every": blade["sync_every"],
            "reference_steps": blade["reference_steps"],
            "reference_batch_tokens": batch,
        },
    }


if __name__ == "__main__":
    main()
