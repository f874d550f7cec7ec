"""Any bytes for a config or a shard, any schema and texts for a run: a result or two sentences.

`benchmarks/fuzz.py` tries a million inputs on the same properties.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_helpers import TARGETS, Target
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import Run, curate, run_arguments

NAMES = sorted(TARGETS)


@functools.cache
def target(name: str) -> Target:
    return TARGETS[name]()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_fuzzers_start_from(name: str, tmp_path: Path) -> None:
    assert all(target(name).check(seed, tmp_path) for seed in target(name).sound)
    assert not any(target(name).check(seed, tmp_path) for seed in target(name).refused)


@st.composite
def changed(draw: st.DrawFn, name: str) -> bytes:
    """A sound input with a few bytes changed, taken out or put in."""
    data = bytearray(draw(st.sampled_from(target(name).seeds)))
    words = st.sampled_from([*target(name).words, b"\x00", b"\xff"])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data)))
        end = place + draw(st.sampled_from([0, 1, 1, 1, 4, 30]))
        data[place:end] = draw(st.binary(min_size=1, max_size=1) | words | st.just(b""))
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.getbasetemp() / "fuzz"
    place.mkdir(exist_ok=True)
    target(name).check(data.draw(changed(name)), place)


_TEXTS = st.none() | st.text(max_size=40) | st.sampled_from(["river stone " * 9, "\x00", " \n"])
_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "text"
)
_KINDS = {
    pa.int64(): st.integers(-9, 9),
    pa.string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=3),
    pa.float64(): st.floats(),
    pa.list_(pa.struct([("a", pa.int8()), ("", pa.string())])): st.lists(
        st.none() | st.fixed_dictionaries({"a": st.integers(0, 9), "": st.text(max_size=2)}),
        max_size=2,
    ),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["web", "book"]),
}


@st.composite
def pools(draw: st.DrawFn) -> list[pa.Table]:
    """Shards of one schema, now and then without rows."""
    names = draw(st.lists(_NAMES, unique=True, max_size=3))
    kinds = [draw(st.sampled_from(list(_KINDS))) for _ in names]
    text = draw(st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
    shards = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(0, 8))
        cells = lambda one, rows=rows: draw(  # noqa: E731
            st.lists(st.none() | one, min_size=rows, max_size=rows)
        )
        columns = [pa.array(cells(_KINDS[kind]), kind) for kind in kinds]
        columns.insert(0, pa.array(cells(_TEXTS), text))
        shards.append(pa.table(columns, ["text", *names]))
    return shards


@settings(max_examples=12, deadline=None)
@given(
    shards=pools(),
    keep=st.sampled_from([0.01, 0.5, 1.0]),
    method=st.sampled_from(["random", "dsir"]),
)
def test_runs_over_any_pool(
    shards: list[pa.Table], keep: float, method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every row is accounted for and the output verifies, or the run says why there is none."""
    place = tmp_path_factory.mktemp("pool")
    (place / "pool").mkdir()
    for number, shard in enumerate(shards):
        pq.write_table(shard, place / "pool" / f"{number}.parquet", row_group_size=3)
    pq.write_table(pa.table({"text": ["river stone", "amber"]}), place / "target.parquet")
    done = curate(*run_arguments(place, place / "out", method=method, keep=keep))
    if done.exit_code:
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("Error: ")
        assert "\nTo fix: " in done.stderr
        assert not (place / "out").exists()
        return
    run = Run(place, place / "out")
    rows = sum(shard.num_rows for shard in shards)
    assert run.sql("SELECT count(*), count(reason) FROM document") == [(rows, rows)]
    kept = run.sql("SELECT count(*) FROM document WHERE kept")[0][0]
    assert kept == sum(pq.read_metadata(part).num_rows for part in run.parts())
    assert curate("verify", str(run.out), "--full").exit_code == 0
