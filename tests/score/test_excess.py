import numpy as np
import pytest

from curate.read.documents import Documents
from curate.score.excess import excess_loss, penalized_score, per_byte, spread


def test_a_document_that_the_reference_predicts_better_scores_higher():
    control, reference = np.array([3.0, 3.0, 3.0]), np.array([2.0, 3.0, 4.5])
    assert excess_loss(control, reference).tolist() == [1.0, 0.0, -1.5]
    assert penalized_score(excess_loss(control, reference), 0.5).tolist() == [0.5, 0.0, -0.75]


def test_lambda_zero_is_the_limit_of_the_direction_and_never_flattens_the_scores():
    excess = np.array([1.0, -2.0, 0.25])
    assert penalized_score(excess, 0.0).tolist() == excess.tolist()
    for lambda_ in (1e-6, 0.5, 1.0, 30.0):
        assert np.argsort(penalized_score(excess, lambda_)).tolist() == [1, 2, 0]


def test_per_byte_weighs_the_mean_by_the_tokens_of_a_byte():
    """Three tokens in six bytes, one in four; an empty document has no loss, and none per byte."""
    documents = Documents(
        ids=np.arange(3),
        bytes=np.array([6, 4, 0]),
        offsets=np.array([0, 3, 4, 4]),
        input_ids=np.zeros(4, dtype=np.int32),
    )
    found = per_byte(np.array([-2.0, 0.8, np.nan]), documents)
    assert found[:2].tolist() == [-1.0, 0.2]
    assert np.isnan(found[2])


def test_log_odds_that_differ_by_rounding_alone_have_no_spread():
    """Of texts that share no word with what the classifier saw."""
    values = 0.3 + 1e-16 * np.arange(10)
    assert 0 < values.std() < 1e-15
    assert spread(values) == 1.0
    assert spread(np.array([1.0, 1.0])) == spread(np.zeros(3)) == 1.0
    assert spread(np.array([-1e-7, 1e-7])) == pytest.approx(1e-7)
