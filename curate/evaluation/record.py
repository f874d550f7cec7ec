"""Results on disk: one small file a trained model, and what a finished evaluation leaves.

A result's name is a hash of everything that determines it, so that an interrupted evaluation goes
on, a wider one (more seeds; one more run to compare with, at the same tokens) trains only what is
new, and evaluations that share a folder share what is the same: over one pool and at the same
tokens, the random and the pool arms.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from curate.config import config_to_tree
from curate.errors import InvalidInput
from curate.evaluation.plan import Plan
from curate.evaluation.prepare import Inputs
from curate.evaluation.runs import FinishedRun
from curate.evaluation.settings import RANDOM
from curate.evaluation.tokens import FOLDER
from curate.evaluation.train import Measure, ModelSettings
from curate.files import sha256_file, write_text
from curate.log.evaluation import write_evaluation
from curate.log.query import LOG_NAME

FORMAT_VERSION = 1
REPORT_NAME = "evaluation.json"

Facts = dict[str, Any]


class Results:
    """Measures by what determines them, one JSON file each in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, facts: Mapping[str, Any]) -> list[Measure] | None:
        """The measures recorded under these facts, or None.

        Raises:
            InvalidInput: the file is not as `add` wrote it.
        """
        path = self._path(facts)
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["facts"] == json.loads(json.dumps(facts)):
                return [Measure(**one) for one in found["measures"]]
        except (ValueError, LookupError, TypeError):
            pass
        raise InvalidInput(
            f"The result {path} is damaged.", "Remove the file: the model is then trained again."
        )

    def add(self, facts: Mapping[str, Any], measures: list[Measure]) -> None:
        """Record the measures of one trained model."""
        tree = {"facts": facts, "measures": [dataclasses.asdict(one) for one in measures]}
        write_text(self._path(facts), json.dumps(tree, indent=1) + "\n")

    def _path(self, facts: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(facts)}.json"


def results_folder(inputs: Inputs) -> Path:
    """Where results of this evaluation are kept."""
    return inputs.settings.results or inputs.run.out / FOLDER / "results"


def digest(facts: Mapping[str, Any]) -> str:
    """A name for plain values: the start of a SHA-256 over them."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def model_facts(model: ModelSettings) -> Facts:
    """What determines a model and its training, besides data and seed."""
    return {
        "format": FORMAT_VERSION,
        "curate": version("curate"),
        "torch": str(torch.__version__),
        "name": model.name,
        "shape": model.shape.llama or _weights(Path(model.name)),
        "vocabulary_size": model.vocabulary_size,
        "window": model.window,
        "overlap": model.overlap,
        "batch_tokens": model.batch_tokens,
        "learning_rate": model.learning_rate,
        "train": config_to_tree(model.train),
        "device": model.compute.device.type,
        "dtype": str(model.compute.dtype).removeprefix("torch."),
    }


def _weights(folder: Path) -> list[list[Any]]:
    """What tells a folder's pretrained weights from others; nothing for an id of the Hub."""
    files = sorted(folder.glob("*.safetensors"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def result_facts(inputs: Inputs, plan: Plan, arm: str, seed: int) -> Facts:
    """Everything that determines the measures of one arm and seed; not how the arm is called."""
    if arm in plan.stores:
        trained_on: Facts = {"dataset": inputs.datasets[arm].fingerprint}
    elif arm == RANDOM:
        trained_on = {"random_tokens": plan.sample_tokens}
    else:  # in an order that follows from the partitions of the run's tokens
        parts = plan.cache.partitions
        trained_on = {"partitions": [parts, inputs.run.config.seed if parts > 1 else 0]}
    return {
        **model_facts(plan.model),
        "tokenizer": inputs.tokenizer.fingerprint,
        "pool": list(inputs.run.pool),
        "test": list(inputs.test.fingerprints),
        "test_tokens": inputs.test.documents.num_tokens,
        "held_out": [plan.held_out.key, plan.held_out.cutoff],
        **trained_on,
        "budgets": plan.arm_budgets(arm),
        "seed": seed,
    }


def request_digest(inputs: Inputs, model: ModelSettings) -> str:
    """A name for what was asked for, known before anything is tokenized."""
    settings = inputs.settings
    return digest(
        {
            **model_facts(model),
            "tokenizer": inputs.tokenizer.fingerprint,
            "datasets": {name: run.fingerprint for name, run in inputs.datasets.items()},
            "pool": list(inputs.run.pool),
            "test": list(inputs.test.fingerprints),
            "test_tokens": inputs.test.documents.num_tokens,
            "seeds": [settings.first_seed, settings.seeds],
            "tokens": settings.tokens,
            "multiples": sorted(set(settings.multiples)),
        }
    )


def find_report(run: FinishedRun, request: str) -> Facts | None:
    """The report of a finished evaluation of exactly this request, whole in the run's folder."""
    files, path = run.folder.files, run.out / REPORT_NAME
    if not path.is_file() or files.get(REPORT_NAME) != sha256_file(path) or LOG_NAME not in files:
        return None
    report: Facts = json.loads(path.read_text(encoding="utf-8"))
    return report if report.get("request") == request else None


def write_report(run: FinishedRun, report: Mapping[str, Any]) -> None:
    """Put a report into the run's folder: its log, `evaluation.json`, and last the manifest.

    In between the manifest says nothing of either. So a log that is not the recorded one was
    changed by somebody else, and its hash is never recorded anew.
    """
    log, path = run.out / LOG_NAME, run.out / REPORT_NAME
    run.folder.forget_files([LOG_NAME, REPORT_NAME])
    write_evaluation(log, log_rows(report))
    write_text(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    run.folder.record_files([log, path])


def log_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the log's table `evaluation`."""
    return [
        {
            "arm": one["arm"],
            "seed": one["seed"],
            "tokens": one["tokens"],
            "target_bits_per_byte": one["bits_per_byte"]["target"],
            "general_bits_per_byte": one["bits_per_byte"]["general"],
            "target_loss": one["loss"]["target"],
            "general_loss": one["loss"]["general"],
            "seconds": one["seconds"],
        }
        for one in report["results"]
    ]
