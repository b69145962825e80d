"""Two legs to one order: shares of the best, weights at their ends, and scores that mean the same everywhere."""

import numpy as np
import pytest

from chatkit.retrieval.fusion import cosines, fuse


def places(fused):
    return fused.order.tolist()


def arrays(*rows):
    return [np.array(row, dtype=float) for row in rows]


def test_the_order_is_that_of_the_weighted_shares_of_each_legs_best():
    dense, lexical = arrays([0.8, 0.4, 0.6, 0.0], [0.0, 20.0, 12.0, 5.0])
    shares = 0.5 * dense / 0.8 + 0.5 * lexical / 20
    fused = fuse(dense, lexical, 0.5, ceiling=40.0)
    assert places(fused) == np.argsort(-shares).tolist() == [1, 2, 0, 3]
    best = 0.75 * 0.8 + 0.25 * 20 / 30
    assert fused.scores == pytest.approx(best * shares / shares.max())


def test_at_its_ends_the_weight_leaves_one_leg_alone_with_its_own_scores():
    dense, lexical = arrays([0.3, 0.9, -0.2], [8.0, 0.0, 4.0])
    by_meaning = fuse(dense, lexical, 1.0, ceiling=20.0)
    assert places(by_meaning) == [1, 0, 2]
    assert by_meaning.scores == pytest.approx([0.3, 0.9, 0.0])
    by_words = fuse(dense, lexical, 0.0, ceiling=20.0)
    assert places(by_words) == [0, 2, 1]
    assert by_words.scores == pytest.approx([8 / 15, 0.0, 4 / 15])


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_scores_are_within_0_and_1_and_fall_along_the_order(weight):
    chance = np.random.default_rng(7)
    for _ in range(50):
        count = int(chance.integers(1, 30))
        dense, lexical = chance.uniform(-1, 1, count), chance.exponential(10, count) * chance.integers(0, 2, count)
        fused = fuse(dense, lexical, weight, ceiling=float(lexical.max()) * 1.3, background=chance.uniform(0, 0.9))
        assert fused.scores.min() >= 0
        assert fused.scores.max() <= 1
        assert (np.diff(fused.scores[fused.order]) <= 1e-12).all()
        assert sorted(places(fused)) == list(range(count))


def test_an_off_topic_question_stays_low_though_its_best_passage_is_the_best_there_is():
    on_topic = fuse(*arrays([0.62, 0.3], [14.0, 3.0]), 0.5, ceiling=30.0)
    off_topic = fuse(*arrays([0.12, 0.1], [2.0, 1.0]), 0.5, ceiling=30.0)
    assert on_topic.scores.max() > 0.5
    assert off_topic.scores.max() < 0.15


def test_a_leg_that_sees_no_difference_does_not_decide():
    alike, lexical = arrays([0.90, 0.92, 0.91], [9.0, 1.0, 3.0])
    assert places(fuse(alike, lexical, 0.5, ceiling=20.0)) == [0, 2, 1]


def test_nothing_at_all_is_an_empty_order_or_zeros():
    assert places(fuse(*arrays([], []), 0.5)) == []
    nothing = fuse(*arrays([-0.4, 0.0], [0.0, 0.0]), 0.5, ceiling=3.0)
    assert (places(nothing), nothing.scores.tolist()) == ([0, 1], [0.0, 0.0])


def test_equal_scores_keep_the_order_they_came_in():
    assert places(fuse(*arrays([0.5] * 4, [3.0] * 4), 0.5, ceiling=9.0)) == [0, 1, 2, 3]


def test_inner_products_are_ordered_as_they_are_and_judged_by_the_cosine_of_the_best():
    dense, lexical = arrays([40.0, 10.0], [0.0, 0.0])
    fused = fuse(dense, lexical, 1.0, nearest=0.7)
    assert places(fused) == [0, 1]
    assert fused.scores == pytest.approx([0.7, 0.175])


def test_where_all_texts_are_alike_the_usual_cosine_counts_as_nothing():
    assert cosines(np.array([0.75, 0.8, 1.0]), 0.8) == pytest.approx([0.1 / 0.35, 0.15 / 0.35, 1.0])
    assert cosines(np.array([0.5, -0.5]), 0.1) == pytest.approx([0.5, 0.0])
