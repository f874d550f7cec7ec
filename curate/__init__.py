"""curate: offline dataset curation for language-model training.

The verbs of the command line are functions here (`curate log` is `summary`, `run_sql` and `why`):

    config = curate.load_config(flags={"pool": "shards/", "target": "t.parquet", "out": "out"})
    print(curate.estimate(config).text)    # curate run --dry-run
    curate.run(config)
    curate.run_sql("out", "FROM keep_rate_by_source")
    curate.compare(["out", "out-random"])
    curate.evaluate(curate.EvaluateSettings(out=pathlib.Path("out"), test="test.parquet"))
    curate.verify("out", full=True)
    curate.export("out", to="hf", dest="curated")

Names are imported when first used, so that asking a log for something does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.config import Config, config_from_tree, load_config
    from curate.errors import CurateError, InvalidInput, OutputFailed
    from curate.evaluation import EvaluateSettings, Evaluation, evaluate
    from curate.log.compare import compare
    from curate.log.query import run_sql, summary, why
    from curate.pipeline import Estimate, RunSummary, estimate, run
    from curate.verification import Verification, verify
    from curate.write.export import export_dataset as export

__all__ = [
    "Config",
    "CurateError",
    "Estimate",
    "EvaluateSettings",
    "Evaluation",
    "InvalidInput",
    "OutputFailed",
    "RunSummary",
    "Verification",
    "compare",
    "config_from_tree",
    "estimate",
    "evaluate",
    "export",
    "load_config",
    "run",
    "run_sql",
    "summary",
    "verify",
    "why",
]

_HOMES = {
    "Config": ("curate.config", "Config"),
    "CurateError": ("curate.errors", "CurateError"),
    "Estimate": ("curate.pipeline", "Estimate"),
    "EvaluateSettings": ("curate.evaluation", "EvaluateSettings"),
    "Evaluation": ("curate.evaluation", "Evaluation"),
    "InvalidInput": ("curate.errors", "InvalidInput"),
    "OutputFailed": ("curate.errors", "OutputFailed"),
    "RunSummary": ("curate.pipeline", "RunSummary"),
    "Verification": ("curate.verification", "Verification"),
    "compare": ("curate.log.compare", "compare"),
    "config_from_tree": ("curate.config", "config_from_tree"),
    "estimate": ("curate.pipeline", "estimate"),
    "evaluate": ("curate.evaluation", "evaluate"),
    "export": ("curate.write.export", "export_dataset"),
    "load_config": ("curate.config", "load_config"),
    "run": ("curate.pipeline", "run"),
    "run_sql": ("curate.log.query", "run_sql"),
    "summary": ("curate.log.query", "summary"),
    "verify": ("curate.verification", "verify"),
    "why": ("curate.log.query", "why"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'curate' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
