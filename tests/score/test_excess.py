import numpy as np

from curate.score.excess import excess_loss, penalized_score


def test_a_document_that_the_reference_predicts_better_scores_higher():
    control, reference = np.array([3.0, 3.0, 3.0]), np.array([2.0, 3.0, 4.5])
    assert excess_loss(control, reference).tolist() == [1.0, 0.0, -1.5]
    assert penalized_score(excess_loss(control, reference), 0.5).tolist() == [0.5, 0.0, -0.75]


def test_lambda_zero_is_the_limit_of_the_direction_and_never_flattens_the_scores():
    excess = np.array([1.0, -2.0, 0.25])
    assert penalized_score(excess, 0.0).tolist() == excess.tolist()
    for lambda_ in (1e-6, 0.5, 1.0, 30.0):
        assert np.argsort(penalized_score(excess, lambda_)).tolist() == [1, 2, 0]
