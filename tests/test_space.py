"""How many bytes a run still needs."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from run_helpers import Run

from curate.pipeline.space import Work, bytes_left, evaluation_bytes
from curate.train.model import count_parameters, find_shape

STAGES = ["tokenizer", "tokens", "config", "warm-up", "scoring", "select", "data", "log"]


@st.composite
def works(draw: st.DrawFn) -> dict[str, Any]:
    sizes = st.integers(0, 10**12)
    return {
        **{name: draw(sizes) for name in ("pool_bytes", "tokens", "documents", "model_bytes")},
        "vocabulary_size": draw(st.sampled_from([300, 150_000])),
        "keep": draw(st.floats(0.01, 0.9)),
        "visits": draw(st.integers(1, 5)),
        "by_token": draw(st.booleans()),
    }


@given(works(), st.integers(0, len(STAGES) - 1), st.integers(0, 10**12))
def test_what_is_left_shrinks_with_what_is_done_and_grows_with_the_work(
    work: dict[str, Any], done: int, written: int
) -> None:
    left = bytes_left(Work(**work), STAGES[:done], {})
    assert left >= 1_000_000
    assert bytes_left(Work(**work), STAGES[: done + 1], {}) <= left
    assert bytes_left(Work(**work), STAGES[:done], {"tokens": written}) <= left
    for name in ("pool_bytes", "tokens", "documents", "model_bytes", "visits"):
        assert bytes_left(Work(**{**work, name: 2 * work[name]}), STAGES[:done], {}) >= left
    assert bytes_left(Work(**{**work, "keep": work["keep"] + 0.1}), STAGES[:done], {}) >= left


def test_the_parts_of_what_is_left() -> None:
    work = Work(
        pool_bytes=10**9, tokens=10**9, documents=10**6, vocabulary_size=32768, keep=0.2,
        visits=2, by_token=False, model_bytes=10**9,
    )  # fmt: skip
    cache, rounds, select = 2_040_000_000, 2_080_000_000, 20_000_000
    data, log = 203_200_000, 142_000_000
    before = ["tokenizer"]
    assert bytes_left(work, before, {}) == cache + rounds + select + data + log
    assert bytes_left(work, before, {"tokens": 10**9}) == (
        cache - 10**9 + rounds + select + data + log
    )
    assert bytes_left(work, STAGES[:4], {"tokens": 9}) == rounds + select + data + log
    assert bytes_left(work, STAGES[:6], {}) == data + log
    assert bytes_left(work, STAGES[:7], {}) == log
    assert bytes_left(work, STAGES, {}) == 1_000_000
    assert evaluation_bytes([10**9, 10**8], 7, 5, 32768) == 2 * (2 * 10**9 + 10**8) + 12


def test_an_estimate_of_a_real_run(blade: Run) -> None:
    """Within a factor of two of what is on disk, the checkpoints taken off: none is left."""
    done = json.loads((blade.out / "manifest.json").read_text())["stages"]
    shape = find_shape("nano")
    parameters = count_parameters("nano", shape, done["tokenizer"]["entries"])
    pool = blade.inputs / "pool"
    work = Work(
        pool_bytes=sum(path.stat().st_size for path in pool.iterdir()),
        tokens=done["complete"]["pool_tokens"], documents=done["complete"]["pool_documents"],
        vocabulary_size=300, keep=0.2, visits=2, by_token=False, model_bytes=24 * parameters,
    )  # fmt: skip
    on_disk = sum(path.stat().st_size for path in blade.out.rglob("*") if path.is_file())
    estimate = bytes_left(work, [], {}) - 2 * 24 * parameters
    assert on_disk / 2 < estimate < 2 * on_disk
