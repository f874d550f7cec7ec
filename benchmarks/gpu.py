"""How well does a GPU do its work: model FLOPs utilization, and a whole run's idle time and cost.

Needs nothing but a CUDA device and curate: documents are random tokens, and the pool of the run is
the source of Python and of the packages at hand. Without a CUDA device it says so, and measures
nothing.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --shapes toy --model nano --megabytes 0.3 1 --device cpu    # rehearse

Scoring is what a selection does: two models over the same documents. Training is optimizer steps on
such documents. Both go through the product's own functions with document isolation: no document
sees another. Utilization counts the FLOPs of real tokens alone: two for each weight of a matrix
product and token, and the causal half of attention; three times as many in training. Padding,
overlaps and whatever is computed twice count as nothing. The peak is the data sheet's, dense
bfloat16; of a device that is not listed, the best of large products.

The idle share of a run is that in which no kernel ran, as nvidia-smi samples it; the start of
Python and the loading of libraries come before. Its cost is that of a whole run beside plain
training of the same proxy for an epoch of the same pool, as in overhead.py. Pools are run in the
order given. The first run of the process compiles kernels; what the last pool took beyond the one
before it says how runs grow.

Writes benchmarks/results/gpu-shapes.json and gpu-run.json, after each shape and repeat what there
is; a rehearsal writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import code_version, describe_machine
from overhead import plain, run

import curate
from curate.config.schema import ComputeConfig, TrainConfig
from curate.read.documents import Documents, offsets_from_lengths
from curate.score.loss import losses_by_model
from curate.train.compute import resolve_compute
from curate.train.flash import has_flash_attention
from curate.train.model import LanguageModel, ModelShape, build_network
from curate.train.optimizer import Optimizer, Term

RESULTS = Path(__file__).parent / "results"
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s by a part of the device's name (data sheets, SXM)."""
SHAPES: dict[str, dict[str, int]] = {
    "125M": {"hidden": 768, "layers": 12, "heads": 12, "intermediate": 2048},
    "350M": {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 2736},
    "1.1B": {"hidden": 2048, "layers": 22, "heads": 32, "intermediate": 5632},
    "toy": {"hidden": 64, "layers": 2, "heads": 2, "intermediate": 128},
}
WINDOW = {"toy": 128}
DEFAULT_WINDOW, VOCABULARY = 2048, 32_000
BARS = {"scoring": 0.45, "training": 0.40}


def random_documents(tokens: int, window: int) -> Documents:
    """Documents of random tokens, from a few to four windows long, half of them under a third."""
    draw = np.random.default_rng(0)
    drawn = np.clip(draw.lognormal(np.log(window / 3), 1.0, size=tokens), 8, 4 * window)
    enough = int(np.searchsorted(np.cumsum(drawn), tokens)) + 1
    lengths = drawn[:enough].astype(np.int64)
    offsets = offsets_from_lengths(lengths)
    ids = draw.integers(1, VOCABULARY, size=offsets[-1])
    return Documents(np.arange(len(lengths)), lengths, offsets, ids)


def forward_flops(shape: dict[str, int], documents: Documents, window: int) -> float:
    """FLOPs of one forward pass over every token once, without overlaps and padding."""
    hidden, wide = shape["hidden"], shape["intermediate"]
    weights = shape["layers"] * (4 * hidden * hidden + 3 * hidden * wide) + VOCABULARY * hidden
    full, rest = np.divmod(documents.lengths, window)
    pairs = (full * window * (window + 1) + rest * (rest + 1)).sum() / 2
    return 2.0 * weights * documents.num_tokens + 4.0 * shape["layers"] * hidden * float(pairs)


def peak_flops(device: torch.device) -> tuple[float, str]:
    """FLOP/s of bfloat16 products, and where the figure is from."""
    if device.type == "cuda":
        for part, peak in PEAK.items():
            if part in torch.cuda.get_device_name(device):
                return peak, "data sheet"
    size = 8192 if device.type == "cuda" else 512
    factor = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    taken = min(timed(lambda: factor @ factor, device) for _ in range(10))
    return 2.0 * size**3 / taken, "measured"


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that some work takes, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def utilization(name: str, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Utilization in scoring with two models and in training, at one shape."""
    torch.compiler.reset()
    compute = resolve_compute(
        ComputeConfig(
            device=options.device, dtype="bfloat16", microbatch_tokens=options.microbatch_tokens
        )
    )
    window, shape = WINDOW.get(name, DEFAULT_WINDOW), SHAPES[name]
    made = ModelShape(
        window=window, longest_window=window, vocabulary_size=VOCABULARY,
        batch_tokens=options.batch_tokens, learning_rate=1e-4, llama=shape,
    )  # fmt: skip
    proxy = LanguageModel(
        build_network(made, VOCABULARY, 0, seed=0), window=window, overlap=window // 8,
        prefix_id=0, compute=compute,
    )  # fmt: skip
    scored = random_documents(options.score_tokens, window)
    pair = proxy.frozen_copy(), proxy.frozen_copy()

    scoring = repeat(lambda: losses_by_model(pair, scored), options.repeats, compute.device)
    step = random_documents(options.batch_tokens, window)
    optimizer = Optimizer(proxy, "proxy", TrainConfig(), lambda _: 1e-4)
    training = repeat(lambda: optimizer.step([Term(step)]), options.repeats * 3, compute.device)
    if compute.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(compute.device)
        torch.cuda.reset_peak_memory_stats(compute.device)
    else:
        memory = 0
    flops = {
        "scoring": 2 * forward_flops(shape, scored, window),
        "training": 3 * forward_flops(shape, step, window),
    }
    tokens = {"scoring": 2 * scored.num_tokens, "training": step.num_tokens}
    return {
        "microbatch_tokens": [proxy.microbatch_tokens, proxy.training_microbatch_tokens],
        "flash_attention": has_flash_attention(compute.device),
        "peak_memory_bytes": memory,
    } | {
        kind: {
            "utilization": round(flops[kind] / statistics.median(seconds) / peak, 4),
            "each": [round(flops[kind] / one / peak, 4) for one in seconds],
            "tokens_per_second": round(tokens[kind] / statistics.median(seconds)),
            "bar": BARS[kind],
        }
        for kind, seconds in (("scoring", scoring), ("training", training))
    }


def repeat(work: Callable[[], Any], times: int, device: torch.device) -> list[float]:
    """Seconds of each repeat, after two that do not count."""
    return [timed(work, device) for _ in range(times + 2)][2:]


def installed_text(place: Path, megabytes: float) -> float:
    """A pool and a target made of Python's and installed packages' source files; its megabytes."""
    found, size = [], 0
    folders = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")]
    files = [path for one in folders for path in sorted(Path(one).rglob("*.py"))]
    for path in dict.fromkeys(files):
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [text[first : first + 4000] for first in range(0, len(text), 4000)]
        size += len(text)
        if size > megabytes * 1e6:
            break
    (place / "pool").mkdir()
    pq.write_table(pa.table({"text": found}), place / "pool" / "0.parquet", row_group_size=1000)
    target = [text for text in found if "unittest" in text][:500] or found[:100]
    pq.write_table(pa.table({"text": target}), place / "target.parquet")
    return round(size / 1e6, 1)


@contextmanager
def busy_samples(device: torch.device) -> Iterator[list[float]]:
    """Percent of the time in which a kernel ran, sampled beside the work by nvidia-smi."""
    found: list[float] = []
    if device.type == "cpu":
        yield found
        return
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen([*query, "-i", name, "-lms", "200"], stdout=file)
        try:
            yield found
        finally:
            process.terminate()
            process.wait()
            file.seek(0)
            found += [float(line) for line in file if line.strip().isdigit()]
    if not found:
        raise RuntimeError("nvidia-smi gave no sample of the device's use")


def whole_runs(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """The device's idle share in a `curate run`, its cost, and where it says its time went.

    After each run, what there is so far.
    """
    pools: list[dict[str, Any]] = []
    for megabytes in options.megabytes:
        pools.append({"repeats": []})
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            pools[-1]["megabytes"] = installed_text(place, megabytes)
            for _ in range(options.repeats):
                measured, pools[-1]["tokens"] = one_run(place, options, device)
                pools[-1]["repeats"].append(measured)
                for name in ("idle", "times_plain"):
                    values = [one[name] for one in pools[-1]["repeats"]]
                    pools[-1][name] = statistics.median(values)
                yield {
                    "model": options.model,
                    "bar_idle": 0.05,
                    "bar_times_plain": 1.25,
                    "pools": pools,
                    **growth(pools[-2:]),
                }


def one_run(
    place: Path, options: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Any], int]:
    """A run over the pool in a folder, plain training beside it, and the pool's tokens."""
    settings = {
        "pool": str(place / "pool"), "target": str(place / "target.parquet"), "keep": 0.3,
        "model.name": options.model, "compute.device": options.device,
        "compute.microbatch_tokens": options.microbatch_tokens,
    }  # fmt: skip
    with busy_samples(device) as samples:
        seconds, activities = run(place / "out", settings)
    epoch, tokens = plain(place / "out", options.device, options.model)
    idle = 1 - statistics.fmean(samples or [0]) / 100
    return {
        "idle": round(idle, 4),
        "idle_seconds": round(idle * seconds, 1),
        "times_plain": round(seconds / epoch, 3),
        "seconds": round(seconds, 1),
        "plain_seconds": round(epoch, 1),
        "activity_seconds": {key: round(one, 2) for key, one in activities.items()},
    }, tokens


def growth(pools: list[dict[str, Any]]) -> dict[str, Any]:
    """What a pool took beyond another: its cost beside plain training, and the idle share."""
    if len(pools) < 2 or pools[0]["tokens"] >= pools[1]["tokens"]:
        return {}
    smaller, larger = (
        [
            statistics.median(one[name] for one in pool["repeats"])
            for name in ("seconds", "plain_seconds", "idle_seconds")
        ]
        for pool in pools
    )
    seconds, plain_seconds, idle = (
        after - before for before, after in zip(smaller, larger, strict=True)
    )
    found = {
        "tokens": pools[1]["tokens"] - pools[0]["tokens"],
        "seconds": round(seconds, 1),
        "times_plain": round(seconds / plain_seconds, 3),
        "idle": round(idle / seconds, 4),
    }
    return {"beyond_the_pool_before": found}


def main() -> None:
    """Measure what the device can, and write it down."""
    parser = argparse.ArgumentParser(description="Utilization of a GPU.")
    parser.add_argument("--parts", nargs="*", default=["shapes", "run"], choices=["shapes", "run"])
    parser.add_argument("--shapes", nargs="*", default=["125M", "350M", "1.1B"], choices=SHAPES)
    parser.add_argument("--score-tokens", type=int, default=500_000)
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--microbatch-tokens", type=int, help="the product's default if not given")
    parser.add_argument("--model", default="base", help="preset of the run")
    parser.add_argument(
        "--megabytes", nargs="*", type=float, default=[10, 10, 100], help="text of the runs' pools"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("There is no CUDA device: nothing was measured.")
        sys.exit(0)
    if "run" in options.parts:
        curate.run  # noqa: B018 (loads every library, so that a missing one shows before any work)
    device = torch.device(options.device)
    common = {
        **describe_machine("torch", "transformers"),
        "code": code_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    if "shapes" in options.parts:
        peak, source = peak_flops(device)
        result: dict[str, Any] = {
            **common,
            "peak_flops": peak,
            "peak_from": source,
            "score_tokens": options.score_tokens,
            "batch_tokens": options.batch_tokens,
            "repeats": options.repeats,
            "shapes": {},
        }
        for name in options.shapes:
            result["shapes"][name] = utilization(name, options, peak)
            report({name: result["shapes"][name]}, "shapes", result, device)
    if "run" in options.parts:
        for found in whole_runs(options, device):
            report(found, "run", {**common, **found}, device)


def report(part: dict[str, Any], name: str, result: dict[str, Any], device: torch.device) -> None:
    """Show a part, and keep all there is."""
    print(json.dumps(part, indent=1), flush=True)
    if device.type == "cuda":
        (RESULTS / f"gpu-{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
