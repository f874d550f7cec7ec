"""The selection methods, one file each, by the name `--method` takes."""

from __future__ import annotations

from curate.select.methods.base import Context, Method, RoundStart, Scores
from curate.select.methods.blade import BladeMethod
from curate.select.methods.random import RandomMethod

METHODS: dict[str, type[BladeMethod] | type[RandomMethod]] = {
    "blade": BladeMethod,
    "random": RandomMethod,
}
"""Every name that config.method may have."""

__all__ = ["METHODS", "Context", "Method", "RoundStart", "Scores"]
