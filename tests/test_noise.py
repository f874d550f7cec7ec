import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.noise import gumbel, make_key, random_uint64, shuffled_order, uniform

IDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50)
KEYS = st.integers(0, 2**64 - 1)


@given(KEYS, IDS, st.randoms())
def test_noise_of_an_id_does_not_depend_on_its_company(key, ids, random):
    values = dict(zip(ids, uniform(key, ids).tolist(), strict=True))
    random.shuffle(ids)
    for one, value in zip(ids, uniform(key, ids).tolist(), strict=True):
        assert value == values[one] == float(uniform(key, [one])[0])
        assert 0 <= value < 1


@given(KEYS, IDS, st.randoms())
def test_shuffled_order_is_of_the_ids_not_of_their_positions(key, ids, random):
    order = [ids[position] for position in shuffled_order(key, ids)]
    assert sorted(order) == sorted(ids)
    random.shuffle(ids)
    assert [ids[position] for position in shuffled_order(key, ids)] == order


def test_values_are_spread_evenly_and_neighbours_are_unrelated():
    for key in (0, 1, 2**64 - 1, make_key(0, "a")):
        values = uniform(key, np.arange(100_000))
        assert abs(values.mean() - 1 / 2) < 0.005
        assert abs(values.var() - 1 / 12) < 0.002
        assert np.ptp(np.histogram(values, 20, (0, 1))[0]) < 800
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
        assert len(np.unique(random_uint64(key, np.arange(100_000)))) == 100_000


def test_streams_of_two_keys_are_unrelated():
    ids = np.arange(100_000)
    for one, other in ((make_key(0, "a"), make_key(0, "b")), (7, 8), (0, 1)):
        assert abs(np.corrcoef(uniform(one, ids), uniform(other, ids))[0, 1]) < 0.02
        assert not np.array_equal(shuffled_order(one, ids[:50]), shuffled_order(other, ids[:50]))


def test_documents_of_different_shards_differ():
    rows = np.arange(1000)
    ids = np.concatenate([rows + (shard << 40) for shard in range(20)])
    assert len(np.unique(random_uint64(make_key(3, "ties"), ids))) == len(ids)


def test_every_purpose_has_its_own_key():
    purposes = list(
        itertools.chain(
            itertools.product(("order", "ties", "sync"), range(30)),
            itertools.product(("order",), ("pass", "sync"), range(20), range(20)),
            [("order",), ("partition",), ("final ties",), ()],
        )
    )
    keys = [make_key(seed, *purpose) for seed in (0, 1, 11) for purpose in purposes]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_noise_is_the_same_in_every_version():
    """Frozen values: a change would silently change every selection made with a seed."""
    key = make_key(5, "ties", 2)
    assert key == 0x22CB84A9CD2F2164
    assert [int(one) for one in random_uint64(9, [0, 1, 2**40])] == [
        0x8619E4E65323D5BB,
        0x4C7AAC9E6A962B23,
        0x02DF7527090892A0,
    ]


def test_gumbel_noise_is_standard():
    noise = gumbel(7, np.arange(200_000))
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.01)
    for value in (-1.0, 0.0, 2.0):
        assert (noise < value).mean() == pytest.approx(math.exp(-math.exp(-value)), abs=0.005)


@given(key=st.integers(0, 2**64 - 1), document=st.integers(0, 2**62))
def test_gumbel_noise_is_a_function_of_the_document(key, document):
    alone = gumbel(key, np.array([document]))
    among = gumbel(key, np.array([5, document, 9]))
    assert alone[0] == among[1]
    assert np.isfinite(alone).all()


def test_gumbel_noise_is_finite_at_both_ends(monkeypatch):
    ends = np.array([0.0, 1 - 2.0**-53])
    monkeypatch.setattr("curate.noise.uniform", lambda key, ids: ends)
    assert np.isfinite(gumbel(0, np.arange(2))).all()


def test_gumbel_top_k_is_sampling_without_replacement_in_proportion_to_the_weights():
    """First draws go by weight, and second draws by weight among what is left."""
    weights = np.array([0.5, 0.3, 0.2])
    draws = 40_000
    noise = gumbel(11, np.arange(3 * draws)).reshape(draws, 3)
    order = np.argsort(-(np.log(weights) + noise), axis=1)
    for first in range(3):
        begins = order[:, 0] == first
        assert begins.mean() == pytest.approx(weights[first], abs=0.01)
        for second in set(range(3)) - {first}:
            share = weights[second] / (1 - weights[first])
            assert (order[begins, 1] == second).mean() == pytest.approx(share, abs=0.02)
