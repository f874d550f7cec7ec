"""Does any config file or shard, whatever its bytes, end in anything but a result or two sentences?

A coverage-guided fuzzer (atheris, which is libFuzzer) changes sound inputs for as long as asked and
holds each to the properties of tests/fuzz_helpers.py: a config loads and writes back equal, a shard
is read in full and alike twice, or a `CurateError` says why not. Any other exception, a crash of
the process, more than 4 GB of memory or 25 seconds for one input is a finding: the input stays in
the working folder, and the benchmark fails.

    pip install atheris
    python benchmarks/fuzz.py --inputs 1000000

Inputs are shared out over the targets by `SHARES`. Writes benchmarks/results/fuzz.json, a row for
each target, which stays where a later command names other targets.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "fuzz.json"
SHARES = {"config": 0.4, "jsonl": 0.2, "gzip": 0.1, "parquet": 0.3}
"""The part of the inputs that each target gets."""
_LIMITS = ("-timeout=25", "-rss_limit_mb=4096", "-len_control=20")
_LONGEST = {"config": 8192, "jsonl": 1024, "gzip": 1024, "parquet": 16384}
"""Bytes of an input; a JSONL file of many broken lines takes a parse for each."""
_DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)")


def main() -> None:
    """Fuzz every target in a process of its own, and write down what was found."""
    parser = argparse.ArgumentParser(description="Fuzz the readers and the config.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="*", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--work", type=Path, help="keeps what is found; a temporary folder if none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="curate-fuzz-"))
    if options.child:
        fuzz(options.child, work, options.inputs, options.seed)
    found = json.loads(RESULT.read_text())["targets"] if RESULT.exists() else {}
    for name in options.targets:
        inputs = round(options.inputs * SHARES[name])
        found[name] = run_target(name, work / name, inputs, options.seed)
    result = {
        "inputs": sum(one["inputs"] for one in found.values()),
        "findings": sum(one["findings"] for one in found.values()),
        "targets": found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["findings"] else 0)


def run_target(name: str, work: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; returns its row of the results."""
    work.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, __file__, "--child", name, "--work", str(work),
        "--inputs", str(inputs), "--seed", str(seed),
    ]  # fmt: skip
    started = time.monotonic()
    with (work / "fuzzer.txt").open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    counts = work / "counts.json"
    tried = json.loads(counts.read_text()) if counts.exists() else {"inputs": 0, "accepted": 0}
    done = _DONE.findall((work / "fuzzer.txt").read_text(errors="replace"))
    row = {
        **describe_machine("pyarrow", "PyYAML", "atheris"),
        "seed": seed,
        **tried,
        "findings": int(code != 0),
        "seconds": round(time.monotonic() - started),
    }
    if done:
        row |= {"inputs": int(done[-1][0]), "edges": int(done[-1][1]), "corpus": int(done[-1][3])}
    print(f"{name}: {row}", flush=True)
    if code:
        print(f"{name} stopped with {code}: see {work}", file=sys.stderr, flush=True)
    return row


def fuzz(name: str, work: Path, inputs: int, seed: int) -> None:
    """Fuzz one target in this process, which then ends."""
    import atheris  # noqa: PLC0415 (the child alone needs it)

    sys.path.insert(0, str(ROOT / "tests"))
    with atheris.instrument_imports(include=["curate", "yaml"]):
        from fuzz_helpers import TARGETS  # noqa: PLC0415

    target = TARGETS[name]()
    corpus, place = work / "corpus", work / "place"
    for folder in (corpus, place):
        folder.mkdir(exist_ok=True)
    for number, one in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(one)
    flags = [f"-runs={inputs}", f"-seed={seed}", f"-artifact_prefix={work}/", *_LIMITS]
    flags.append(f"-max_len={_LONGEST[name]}")
    if target.words:
        words = work / "words.txt"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        flags.append(f"-dict={words}")
    counts = {"inputs": 0, "accepted": 0}

    def one_input(data: bytes) -> None:
        counts["inputs"] += 1
        counts["accepted"] += target.check(data, place)
        if counts["inputs"] % 1000 == 0:
            (work / "counts.json").write_text(json.dumps(counts))

    atheris.Setup([sys.argv[0], *flags, str(corpus)], one_input)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
