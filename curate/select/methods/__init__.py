"""The selection methods, one file each, by the name `--method` takes."""

from __future__ import annotations

from curate.select.methods.base import Context, Method, RoundStart, Scores
from curate.select.methods.blade import BladeMethod
from curate.select.methods.classifier import ClassifierMethod
from curate.select.methods.dsir import DsirMethod
from curate.select.methods.perplexity import PerplexityMethod
from curate.select.methods.random import RandomMethod
from curate.select.methods.static import ColorMethod, Rho1Method

METHODS: dict[str, type[Method]] = {
    "blade": BladeMethod,
    "color": ColorMethod,
    "rho1": Rho1Method,
    "dsir": DsirMethod,
    "classifier": ClassifierMethod,
    "perplexity": PerplexityMethod,
    "random": RandomMethod,
}
"""Every name that config.method may have."""

__all__ = ["METHODS", "Context", "Method", "RoundStart", "Scores"]
