"""Finished runs on the rich pool; tests must not change them."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from run_helpers import STRICT, Fault, Run, shared_run

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what is in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def blade(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="session")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, **STRICT)


@pytest.fixture(scope="session")
def whole_random(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, method="random")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch)


BASELINES = ("random", "color", "rho1", "dsir", "classifier", "perplexity")
RUNS: dict[str, dict[str, Any]] = {
    "blade": {},
    "strict": STRICT,
    "rounds": {"blade__final": "none"},
    **{name: {"method": name} for name in BASELINES},
}


@pytest.fixture(params=RUNS.values(), ids=RUNS.keys(), scope="session")
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Each of the methods in turn, and the default without its final scoring."""
    return shared_run(tmp_path_factory, **request.param)
