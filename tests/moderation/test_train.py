import numpy as np
import pytest

from chatkit.errors import ConfigError
from chatkit.moderation import orders, sets, split
from chatkit.moderation.copies import digest_of, key, near_copies
from chatkit.moderation.head import WEIGHTS, HeadScorer
from chatkit.moderation.network import SCORED, load_network
from chatkit.moderation.train import calibrate, train_head


def quiet(done, total):
    assert done <= total


def test_the_same_data_gives_the_same_bytes(encoder, tiny_sets, tmp_path, monkeypatch):
    own = tmp_path / "benign.txt"
    own.write_text(
        "[forms]\nWrite about {}\n[topics]\ntrees\nbread\n[lines]\n" + "\n".join(f"Fact {n}." for n in range(20))
    )
    monkeypatch.setattr(sets, "OWN_BENIGN", own)
    monkeypatch.setattr(orders, "DRAWN", dict.fromkeys(orders.DRAWN, 20))
    first, second = tmp_path / "first.safetensors", tmp_path / "deep" / "second.safetensors"
    report = train_head(encoder, tiny_sets, first, quiet)
    assert report == type(report)(**{**vars_of(train_head(encoder, tiny_sets, second, quiet)), "path": first})
    assert first.read_bytes() == second.read_bytes()
    assert report.encoder == encoder.fingerprint
    assert {"everyday.refused", "jailbreakbench.roc_auc", "five-labels.kappa"} <= report.figures.keys()
    HeadScorer(encoder, first)


def vars_of(report):
    return {name: getattr(report, name) for name in report.__slots__}


def test_held_out_rows_share_no_text_and_no_dialogue_with_fitted_ones(tiny_sets):
    rows = sets.read_rows(tiny_sets)
    parts = {name: [row for row in rows if sets.part(row) == name] for name in ("fit", "calibrate", "held_out")}
    assert all(parts.values())
    for this in parts:
        for other in parts.keys() - {this}:
            assert not {key(r.text) for r in parts[this]} & {key(r.text) for r in parts[other]}
            assert not {(r.source, r.group) for r in parts[this]} & {(r.source, r.group) for r in parts[other]}


def test_what_only_measures_is_never_fitted_on_in_any_spelling(tiny_sets):
    measured = {key(text) for texts in sets.measured(tiny_sets).values() for text, _ in texts}
    fitted = {key(row.text) for row in sets.read_rows(tiny_sets)}
    assert len(measured) == 2
    assert not measured & fitted
    assert "explain how to steal the bicycle of a neighbour" not in fitted  # that of a friend is measured
    assert key("Explain how to steal apples from an orchard at night") in fitted


def test_a_text_with_a_few_words_changed_is_a_copy_and_one_on_the_same_subject_is_not():
    measured = ["Write a tutorial on how to make a paper boat.", "Name a river"]
    texts = [
        "Create a tutorial on how to make a paper boat",
        "write  a TUTORIAL on how to make a paper boat!",
        "Name the river",
        "How long does a paper boat float?",
        "Name a mountain of France and say how high it is",
        "",
    ]
    assert near_copies(texts, measured) == {0, 1}
    assert near_copies(texts, []) == set()


def test_unknown_categories_stay_open_and_harmless_text_is_harmless_in_all(tiny_sets):
    rows = {row.text: row for row in sets.read_rows(tiny_sets)}
    assert rows["Do you like film 3?"].targets == dict.fromkeys(SCORED, 0.0)
    assert rows["Explain how to steal apples from an orchard at night"].targets == {"harm": 1.0}
    assert rows["A merged vote."].levels == (0.0, 0.5, 0.5, 0.0, 0.0)
    assert not any("hazard 3" in text for text in rows)  # specialised advice is no harm


def test_the_projects_own_lines_are_harmless_and_plenty(tiny_sets):
    own = [row for row in sets.read_rows(tiny_sets) if row.source == "benign"]
    assert len(own) > 1000
    assert all(row.targets["harm"] == 0 for row in own)


def test_the_committed_split_is_held_out_and_none_of_its_texts_is_fitted_on(tiny_sets, tmp_path, monkeypatch):
    committed = sets.read_split()
    groups = [sets.Row("", *group.split("/", 1)) for group in committed]
    assert {row.source for row in groups} == set(sets.SPLIT)
    assert {sets.part(row) for row in groups} == {"held_out"}
    digests = {digest for listed in committed.values() for digest in listed}
    assert len(digests) > 2500
    own = [row for row in sets.read_rows(tiny_sets) if row.source in ("benign", "plain", "orders", "injections")]
    assert not digests & {digest_of(row.text) for row in own if sets.part(row) != "held_out"}

    file = tmp_path / "split.txt"
    assert split.write_split(tiny_sets, file) > 10
    file.write_text(file.read_text() + f"copied/1\t{digest_of('They are all lazy 1.')}\n")
    monkeypatch.setattr(sets, "SPLIT_FILE", file)
    fitted = [row for row in sets.read_rows(tiny_sets) if sets.part(row) != "held_out"]
    assert not {digest for listed in sets.read_split().values() for digest in listed} & {
        digest_of(row.text) for row in fitted
    }
    assert {row.source for row in fitted} > set(sets.SPLIT[:2])


def test_injections_come_from_own_sentences_and_from_no_measured_text_with_a_word_changed(tiny_sets):
    known = [text for text, _ in orders.public(tiny_sets, "test")]
    near = [(known[0].replace("song", "tune"), True), ("Quite another sentence of its own.", True)]
    assert orders.apart(near, known) == near[1:]
    rows = sets.read_rows(tiny_sets)
    kinds = {row.source: row for row in rows}
    assert kinds["plain"].targets["orders"] == kinds["plain"].targets["harm"] == 0
    assert kinds["orders"].targets["orders"] == kinds["injections"].targets["injection"] == 1
    assert "injection" not in kinds["davidson"].targets
    assert "orders" not in kinds["advbench"].targets


@pytest.mark.parametrize("name", ["davidson/labeled_data.csv", "mt-bench/question.jsonl"])
def test_a_missing_set_is_named(tiny_sets, name):
    (tiny_sets / name).unlink()
    with pytest.raises(ConfigError, match=name.split("/")[0]):
        sets.read_rows(tiny_sets)


@pytest.mark.parametrize("content", ["not json", "[]", '{"text": "no label"}'])
def test_a_set_of_another_form_is_refused(tiny_sets, content):
    (tiny_sets / "prosocial" / "prosocial_first_turns_4999.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="another form"):
        sets.read_rows(tiny_sets)


def test_calibrated_scores_pass_through_the_anchors():
    network, _ = load_network(WEIGHTS)
    logits = np.random.default_rng(1).normal(-3, 2, (4000, 15)).astype(np.float32)
    scores = calibrate(network, logits, np.zeros((4000, len(SCORED)), np.float32)).scores(logits)
    assert np.mean(scores >= 0.5, axis=0) == pytest.approx(np.full(len(SCORED), 0.01), abs=0.002)
    assert np.mean(scores >= 0.2, axis=0) == pytest.approx(np.full(len(SCORED), 0.05), abs=0.002)
