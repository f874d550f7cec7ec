"""Runs the stages in order; the run folder's manifest is the one place where state lives."""

from curate.pipeline.dry_run import estimate
from curate.pipeline.estimated import Estimate
from curate.pipeline.order import RunSummary, run

__all__ = ["Estimate", "RunSummary", "estimate", "run"]
