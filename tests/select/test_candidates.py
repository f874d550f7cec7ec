"""What a round decides about: its share of a pass, drawn once where rounds follow one another."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import make_planted

from curate.read.cache import TokenCache, draw_blocks
from curate.select.candidates import Candidates
from curate.select.schedule import Schedule


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return make_planted(tmp_path_factory.mktemp("candidates"), partitions=3)


@st.composite
def schedules(draw):
    rounds, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    block_tokens = draw(st.sampled_from([90, 200, 700]))
    part = draw(st.booleans())
    return Schedule(
        passes=draw(st.integers(0, 2)),
        pass_tokens=rounds * blocks * block_tokens if part else None,
        rounds_per_pass=rounds,
        blocks_per_round=blocks,
        block_tokens=block_tokens,
        scoring_block_tokens=500,
        scoring=True,
    )


def defined(schedule, cache, index, done):
    """The ids of a round's blocks by the definition: a pass cut where a share of tokens ends."""
    scoring = index >= schedule.rounds
    pass_index, part = divmod(index, schedule.rounds_per_pass)
    size = schedule.scoring_block_tokens if scoring else schedule.block_tokens
    blocks = list(draw_blocks(cache.stream(7, "pass", pass_index), size))
    begins = np.cumsum([0, *(block.num_tokens for block in blocks)])[:-1]
    first = part * schedule.round_tokens
    last = first + schedule.round_tokens
    if part == schedule.rounds_per_pass - 1:
        last = schedule.pass_tokens or np.inf
    if scoring:
        last = np.inf
    mine = [block for block, begin in zip(blocks, begins, strict=True) if first <= begin < last]
    return [block.ids.tolist() for block in mine[done:]]


def ids(blocks):
    return [block.ids.tolist() for block in blocks]


@given(schedule=schedules(), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_round_from_any_block_on_in_any_order(planted, schedule, data):
    candidates = Candidates(schedule, planted.cache, 7)
    for _ in range(4):
        index = data.draw(st.integers(0, schedule.rounds), "round")
        done = data.draw(st.integers(0, 3), "done")
        wanted = defined(schedule, planted.cache, index, done)
        left = data.draw(st.integers(0, len(wanted)), "left before its end")
        drawn = candidates.blocks(index, done)
        assert ids(next(drawn) for _ in range(len(wanted) - left)) == wanted[: len(wanted) - left]
        if left == 0:
            assert next(drawn, None) is None


def test_every_document_once_in_the_rounds_and_once_in_the_scoring(planted):
    schedule = Schedule(
        rounds_per_pass=4,
        blocks_per_round=2,
        block_tokens=300,
        scoring_block_tokens=900,
        scoring=True,
    )
    candidates = Candidates(schedule, planted.cache, 7)
    rounds = [ids(candidates.blocks(index)) for index in range(5)]
    everything = sorted(id_ for index in range(4) for block in rounds[index] for id_ in block)
    assert everything == sorted(id_ for block in rounds[4] for id_ in block)
    assert len(everything) == len(set(everything)) == planted.cache.documents
    assert candidates.documents == len(everything)
    assert all(rounds)


def test_a_pass_is_read_once_however_many_rounds_it_has(planted, monkeypatch):
    """Rounds that each read their pass from its start would read a large pool many times."""
    read = []
    whole = TokenCache._read

    def counting(self, fragment, partition):
        read.append((fragment.name, partition))
        return whole(self, fragment, partition)

    monkeypatch.setattr(TokenCache, "_read", counting)
    schedule = Schedule(rounds_per_pass=12, blocks_per_round=1, block_tokens=300)
    candidates = Candidates(schedule, planted.cache, 7)
    for index in range(schedule.rounds):
        first = candidates.blocks(index)
        next(first)  # a part of a round, and then the rest of it
        list(candidates.blocks(index, 1))
    assert len(read) == len(set(read)) == 3
