"""Policy files: what they say is what is decided, and what is wrong in them is named with its place."""

import pytest

from chatkit.errors import ConfigError
from chatkit.moderation import policy_files
from chatkit.moderation.policy import Thresholds
from chatkit.moderation.policy_files import built_in, named, read_policy

CALM = {"casual": 1.0}


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.toml"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_a_file_is_named_in_the_place_of_a_policy(write) -> None:
    file = write('base = "standard"\n[thresholds]\nhate = {annotate = 0.1, refuse = 0.2}\n')
    policy = named(str(file))
    assert policy.name == "mine"
    assert policy.table["output"]["hate"] == Thresholds(annotate=0.1, refuse=0.2)
    assert policy.table["output"]["harm"] == named("standard").table["output"]["harm"]


def test_a_direction_has_thresholds_of_its_own(write) -> None:
    policy = read_policy(write("[thresholds]\nhate = {refuse = 0.9}\n[output.thresholds]\nhate = {escalate = 0.5}\n"))
    assert policy.decide({"hate": 0.6}, CALM, "output").action == "escalate"
    assert policy.decide({"hate": 0.6}, CALM, "input").action == "allow"
    assert policy.decide({"hate": 0.9}, CALM, "input").action == "refuse"


def test_all_five_actions_follow_from_one_row(write) -> None:
    row = "illicit = {annotate = 0.2, soften = 0.4, refuse = 0.6, escalate = 0.8}"
    policy = read_policy(write(f"[thresholds]\n{row}\n"))
    actions = [policy.decide({"illicit": score}, CALM, "input").action for score in (0.1, 0.2, 0.4, 0.6, 0.8)]
    assert actions == ["allow", "annotate", "soften", "refuse", "escalate"]


def test_a_model_has_thresholds_of_its_own_by_the_beginning_of_its_name(write) -> None:
    policy = read_policy(
        write('base = "standard"\n[models.guard.thresholds]\nharm = {refuse = 0.5}\n[models.guard-b]\ndoubt = 0.1\n')
    )
    assert policy.of("guard-a-8b").decide({"harm": 0.6}, {}, "input").action == "refuse"
    assert policy.of("guard-b").decide({"harm": 0.4}, {}, "input").action == "allow"
    assert policy.of("guard-b").decide({"harm": 0.6}, {}, "input").action == "refuse"  # as other names in "guard"
    assert (policy.of("guard-b").doubt, policy.of("guard-a").doubt) == (0.1, policy.doubt)
    assert policy.of("head-1234").decide({"harm": 0.6}, {}, "input").action == "annotate"


def test_a_models_table_changes_the_rows_it_has_and_leaves_the_others_of_file_and_base(write) -> None:
    text = """base = "strict"
        [thresholds]
        hate = {refuse = 0.01}
        injection = {escalate = 0.9, doubt = 0}
        [models."qwen3guard/"]
        thresholds.harm = {refuse = 0.7}
        [models."qwen3guard/large"]
        thresholds.illicit = {soften = 0.3}"""
    policy, strict = read_policy(write(text)), named("strict").of("qwen3guard/x")
    of_model = policy.of("qwen3guard/x")
    assert of_model.table["input"]["harm"] == Thresholds(refuse=0.7)
    assert of_model.table["input"]["hate"] == strict.table["input"]["hate"] != policy.table["input"]["hate"]
    assert of_model.doubt == strict.doubt != policy.doubt
    assert of_model.table["passage"]["injection"] == Thresholds(escalate=0.9, doubt=0)
    assert of_model.table["input"]["personal_data"] == policy.table["input"]["personal_data"]
    longer = policy.of("qwen3guard/large-1")
    assert longer.table["input"] == {**of_model.table["input"], "illicit": Thresholds(soften=0.3)}


def test_a_label_refuses_only_where_the_file_says_so(write) -> None:
    policy = read_policy(write('[labels]\n"needs intervention" = {refuse = 0.7}\n'))
    assert policy.decide({}, {"needs intervention": 0.8}, "input").action == "refuse"
    assert policy.decide({}, {"needs intervention": 0.6}, "input").action == "annotate"


def test_what_a_model_without_an_overall_score_says_is_not_doubted() -> None:
    assert named("standard").decide({"hate": 0.95}, {}, "input").action == "refuse"
    assert named("standard").decide({"hate": 0.95, "harm": 0.1}, {}, "input").action == "annotate"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("thresholds = 3", r"line 1: thresholds is 3, expected a table"),
        ("\n\n[treshold]\n", r"line 3: treshold .*did you mean 'thresholds'"),
        (
            "[thresholds]\nhate = {refuse = 0.5}\nhats = {refuse = 0.5}",
            r"line 3: thresholds\.hats .*did you mean 'hate'",
        ),
        (
            "[input.thresholds]\nhate = {refuse = 1.5}",
            r"line 2: input\.thresholds\.hate\.refuse is 1\.5, .*from 0 to 1",
        ),
        ("[input.thresholds.hate]\nannotate = 0.1\nrefuse = true", r"line 3: .*refuse is True, .*from 0 to 1"),
        ("[thresholds]\nhate = {refuse = nan}", r"line 2: .*refuse is nan"),
        ("[thresholds]\nhate = {annotate = 0.9, refuse = 0.5}", r"annotate is 0\.9, expected at most refuse.* 0\.5"),
        ("[thresholds]\nhate = {block = 0.5}", r"hate\.block .*annotate, soften, refuse, escalate, doubt"),
        ('[labels]\n"harmless" = {refuse = 0.5}', r"line 2: labels\.harmless .*casual"),
        ('base = "lenient"', r"line 1: base is 'lenient', expected one of monitor, standard, strict"),
        ("doubt = -0.1", r"doubt is -0\.1"),
        ("[[block]]\nphrases = []", r"line 1: block .*expected phrases, or a file"),
        ('[[block]]\nphrases = ["?!"]', r"line 2: block\.phrases is '\?!', expected 1 to 32 words"),
        ('[[block]]\nphrases = ["x"]\naction = "explode"', r"line 3: block\.action is 'explode'"),
        ('[[block]]\nphrases = ["x"]\ndirections = ["sideways"]', r"line 3: .*'sideways', expected one of input"),
        ('[[block]]\nfile = "nowhere.txt"', r"line 2: block\.file is 'nowhere\.txt', .*No such file"),
        ('[[allow]]\nphrases = ["x"]\naction = "allow"', r"line 3: allow\.action"),
        ("block = 3", r"\[\[block\]\]"),
        ('[domain]\nabout = ["bread"]', r"domain\.threshold is None, expected a number"),
        ("[domain]\nthreshold = 0.3", r"domain\.about is \[\], expected at least one"),
        ('[domain]\nabout = ["bread"]\nthreshold = 0.3\nshort = 1.5', r"line 4: domain\.short"),
        ("[texts.english.refuse]", r"texts\.english .*such as en"),
        ('[texts.en.refuse]\nhurt = "No."', r"line 2: texts\.en\.refuse\.hurt"),
        ('[texts.en.refuse]\nhate = " "', r"line 2: .*hate is ' ', expected a text"),
        ('[texts.en.annotate]\nhate = "x"', r"texts\.en\.annotate"),
        ('language = "English"', r"line 1: language"),
        ('country = "XX"', r"line 1: country is 'XX', expected one of help_lines"),
        ('[help_lines]\nusa = "988"', r"line 2: help_lines\.usa"),
        ('[models.""]', r"beginning of a model's name"),
        ("[models.guard]\nblock = []", r"line 2: models\.guard\.block"),
        ("doubt = = 1", r"not valid TOML: .*line 1"),
        ("doubt = " + "[" * 5000 + "]" * 5000, "nests lists or tables too deep"),
        ('[[block]]\nfile = "a\\u0000b"', r"line 2: block\.file is .*no such name"),
    ],
)
def test_a_fault_is_named_with_its_file_line_key_and_what_was_expected(write, text, told) -> None:
    file = write(text)
    with pytest.raises(ConfigError, match=told) as caught:
        read_policy(file)
    assert repr(str(file)) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere/mine\.toml' cannot be read \(No such file.*--policy"):
        named("nowhere/mine.toml")


def test_a_list_of_phrases_may_stand_in_a_file_beside_the_policy(write) -> None:
    write("# names\nfoo bar\n\n  baz \n", "names.txt")
    (rule,) = read_policy(write('[[block]]\nfile = "names.txt"\nphrases = ["qux"]\n')).block
    assert rule.phrases.phrases == ("qux", "foo bar", "baz")
    assert (rule.action, rule.directions) == ("refuse", ("input", "output", "passage"))


def test_the_bound_on_phrases_is_for_all_lists_of_a_policy_together(write, monkeypatch) -> None:
    monkeypatch.setattr(policy_files, "_MOST_PHRASES", 3)
    assert read_policy(write('[[block]]\nphrases = ["a", "b"]\n[[allow]]\nphrases = ["c"]\n'))
    with pytest.raises(ConfigError, match=r"phrases is 4, expected at most 3 phrases in all lists together"):
        read_policy(write('[[block]]\nphrases = ["a", "b"]\n[[allow]]\nphrases = ["c", "d"]\n'))


def test_the_policies_that_are_shipped_are_these() -> None:
    assert {"standard", "strict", "monitor"} <= set(built_in())


def test_a_policy_on_a_base_keeps_its_texts_and_adds_its_own(write) -> None:
    file = write('base = "standard"\ncountry = "GB"\nlanguage = "en"\n[texts.en.refuse]\nhate = "Not here."\n')
    texts = read_policy(file).texts
    assert texts.notice("refuse", "hate", "") == "Not here."
    assert texts.notice("refuse", "violence", "") == "I cannot help with that."
    assert "116 123" in texts.notice("refuse", "self_harm", "")
    assert "988" not in texts.notice("refuse", "self_harm", "")
