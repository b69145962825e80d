import numpy as np
import pytest

from chatkit.moderation import figures


def test_a_perfect_order_has_every_figure_at_one():
    truth, scores = [1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]
    assert figures.auprc(truth, scores) == figures.roc_auc(truth, scores) == 1
    assert figures.recall_at(0.0, [0.9, 0.8], [0.2, 0.1]) == 1


def test_average_precision_of_a_worked_example():
    # Ranked 1 0 1 0: precision 1/1 at the first positive, 2/3 at the second.
    assert figures.auprc([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)


def test_equal_scores_are_one_threshold():
    assert figures.auprc([1, 0, 0, 1], [1, 1, 1, 1]) == pytest.approx(0.5)
    assert figures.roc_auc([1, 0, 0, 1], [1, 1, 1, 1]) == pytest.approx(0.5)


def test_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(3)
    truth, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    positive, negative = scores[truth == 1], scores[truth == 0]
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert figures.roc_auc(truth, scores) == pytest.approx(np.mean(pairs))


def test_recall_counts_only_what_lies_over_the_allowed_false_positives():
    negative = np.arange(100) / 100
    assert figures.recall_at(0.05, [0.93, 0.94, 0.95, 2.0], negative) == 0.5


def test_agreement_of_equal_ratings_is_one_and_of_chance_about_zero():
    same = figures.agreement([0, 1, 2, 2], [0, 1, 2, 2], 3)
    assert same == {"accuracy": 1.0, "macro_f1": 1.0, "kappa": 1.0}
    rng = np.random.default_rng(5)
    assert abs(figures.agreement(rng.integers(0, 5, 5000), rng.integers(0, 5, 5000), 5)["kappa"]) < 0.05
