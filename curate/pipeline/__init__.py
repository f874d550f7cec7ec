"""Runs the stages in order; the run folder's manifest is the one place where state lives."""

from curate.pipeline.order import RunSummary, run

__all__ = ["RunSummary", "run"]
