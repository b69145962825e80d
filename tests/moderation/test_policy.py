import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkit.errors import ConfigError
from chatkit.moderation.policy_files import built_in, named
from chatkit.types import CATEGORIES, HARM, LABELS

CALM = {"casual": 1.0}
GRAVITY = ("allow", "annotate", "soften", "refuse", "escalate")
scores = st.fixed_dictionaries({name: st.floats(0, 1) for name in (HARM, *CATEGORIES)})
levels = st.fixed_dictionaries({name: st.floats(0, 1) for name in LABELS})
directions = st.sampled_from(["input", "output", "passage"])
MODELS = ("head-1", "qwen3guard/a", "llama-guard/a", "shieldgemma/a", "granite-guardian/a", "gpt-jt/a")
models = st.sampled_from(MODELS)


def test_harmless_scores_are_casual_and_allowed():
    verdict = named("standard").decide({}, CALM, "input")
    assert (verdict.label, verdict.action, verdict.category) == ("casual", "allow", None)


@pytest.mark.parametrize("direction", ["input", "output"])
def test_harm_is_refused_from_its_threshold_on_and_annotated_just_below(direction):
    policy = named("standard")
    limit = policy.table[direction]["harm"].refuse
    at = policy.decide({"harm": limit}, CALM, direction)
    below = policy.decide({"harm": limit - 1e-6}, CALM, direction)
    assert (at.label, at.action, at.category) == ("needs intervention", "refuse", "harm")
    assert (below.label, below.action, below.category) == ("needs caution", "annotate", "harm")


def test_just_below_the_annotation_threshold_nothing_is_said():
    policy = named("standard")
    limit = policy.table["input"]["harm"].annotate
    assert policy.decide({"harm": limit - 1e-6}, CALM, "input").action == "allow"
    assert policy.decide({"harm": limit}, CALM, "input").action == "annotate"


def test_a_kind_of_harm_refuses_only_where_harm_is_likely():
    policy = named("standard")
    weapons = {"violence": 1.0}
    assert policy.decide({**weapons, "harm": policy.doubt - 0.01}, CALM, "input").action == "annotate"
    verdict = policy.decide({**weapons, "harm": policy.doubt}, CALM, "input")
    assert (verdict.action, verdict.category) == ("refuse", "violence")


def test_swearing_alone_is_noted_but_not_refused_by_standard():
    verdict = named("standard").decide({"profanity": 1.0, "harm": 0.9}, CALM, "output")
    assert (verdict.action, verdict.label) == ("annotate", "needs caution")


def test_the_likeliest_label_stands_and_of_equals_the_graver():
    policy = named("standard")
    assert policy.decide({}, {"probably needs caution": 0.6, "casual": 0.4}, "input").label == "probably needs caution"
    assert policy.decide({}, {"needs caution": 0.5, "casual": 0.5}, "input").label == "needs caution"


def test_raters_labels_alone_never_refuse():
    verdict = named("strict").decide({}, {"needs intervention": 1.0}, "input")
    assert (verdict.label, verdict.action) == ("needs intervention", "annotate")


@given(scores, levels, directions, models)
def test_monitor_never_refuses(scores, levels, direction, model):
    assert named("monitor").of(model).decide(scores, levels, direction).action != "refuse"


@given(scores, levels, directions, models)
def test_strict_is_at_least_as_strict_as_standard(scores, levels, direction, model):
    standard = named("standard").of(model).decide(scores, levels, direction)
    strict = named("strict").of(model).decide(scores, levels, direction)
    assert GRAVITY.index(strict.action) >= GRAVITY.index(standard.action)


@given(scores, levels, directions, st.sampled_from(built_in()), st.sampled_from([HARM, *CATEGORIES]))
def test_a_higher_score_never_makes_the_action_milder(scores, levels, direction, name, category):
    policy = named(name)
    before = policy.decide(scores, levels, direction)
    after = policy.decide({**scores, category: 1.0}, levels, direction)
    assert GRAVITY.index(after.action) >= GRAVITY.index(before.action)
    assert LABELS.index(after.label) >= LABELS.index(before.label)


@given(scores, levels, directions, st.sampled_from(built_in()))
def test_only_casual_is_allowed_and_only_intervention_refused(scores, levels, direction, name):
    verdict = named(name).decide(scores, levels, direction)
    assert (verdict.action == "allow") == (verdict.label == "casual")
    assert verdict.action != "refuse" or verdict.label == "needs intervention"


def test_every_policy_has_thresholds_for_every_category_and_direction():
    for policy in map(named, built_in()):
        for direction, model in itertools.product(("input", "output", "passage"), MODELS):
            assert policy.of(model).table[direction].keys() == {HARM, *CATEGORIES}


@pytest.mark.parametrize("model", MODELS)
def test_whatever_model_scores_orders_in_a_passage_are_left_out_and_personal_data_is_noted(model):
    standard, strict, monitor = (named(name).of(model) for name in ("standard", "strict", "monitor"))
    orders = {"harm": 0.01, "injection": 0.99}
    for policy in (standard, strict):
        verdict = policy.decide(orders, {}, "passage")
        assert (verdict.action, verdict.category) == ("refuse", "injection")
    assert monitor.decide(orders, {}, "passage").action == "annotate"
    assert standard.decide({"harm": 0.01, "personal_data": 0.99}, {}, "output").action == "annotate"
    assert strict.decide({"harm": 0.01, "personal_data": 0.99}, {}, "output").action == "refuse"
    assert standard.decide({"harm": 0.01, "profanity": 0.99}, {}, "input").action == "annotate"
    assert standard.decide({"harm": 0.01, "sexual_minors": 0.99}, {}, "input").action == "refuse"


@pytest.mark.parametrize("model", MODELS)
def test_standard_only_notes_harm_in_a_passage_whatever_model_scores(model):
    wars = {name: 1.0 for name in (HARM, *CATEGORIES) if name not in ("injection", "sexual_minors")}
    assert named("standard").of(model).decide(wars, {}, "passage").action == "annotate"


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'lenient'.*monitor, standard, strict"):
        named("lenient")
