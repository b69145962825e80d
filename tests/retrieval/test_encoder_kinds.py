"""Encoders of other kinds than the default one: every pooling, architecture and layout, against plain torch."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from chatkit.errors import BrokenModel, ConfigError, ModelError, Unavailable
from chatkit.retrieval import backends
from chatkit.retrieval.checkpoint import read_checkpoint
from chatkit.retrieval.encoder import open_encoder
from chatkit.retrieval.traits import Told, read_traits
from tests.retrieval.tiny_encoders import configs, make_encoder, reference, write_json

TEXTS = ["w1", "w2 w3 w4 w5 w6", "w7 w8", " ".join(f"w{number}" for number in range(9, 30)), "w40 w41 w42 w43 w44 w45"]


def cosines(left, right):
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def opened(folder, **how):
    how = {"precision": "exact", "threads": 1} | how
    encoder = open_encoder(folder, **how)
    try:
        return encoder, encoder.encode_now(TEXTS)
    finally:
        encoder.close()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_every_pooling_is_what_its_definition_says(tmp_path, pooling):
    model = make_encoder(tmp_path / "tiny", pooling=pooling)
    encoder, vectors = opened(tmp_path / "tiny")
    assert cosines(vectors, reference(model, TEXTS, pooling)).min() > 0.99999
    assert (encoder.pooling, encoder.normalised, encoder.metric) == (pooling, True, "cosine")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("architecture", [name for name in configs() if name != "bert"])
def test_every_architecture_agrees_with_torch_however_texts_are_padded(tmp_path, architecture):
    pooling = "lasttoken" if architecture == "qwen3" else "mean"
    model = make_encoder(tmp_path / "tiny", architecture, pooling=pooling)
    encoder = open_encoder(tmp_path / "tiny", precision="exact", threads=1)
    together = encoder.encode_now(TEXTS)
    for _ in range(backends._FEW):
        encoder.encode_now(TEXTS[:1])
    assert encoder._backend._single is not None
    alone = np.concatenate([encoder.encode_now([text]) for text in TEXTS])
    encoder.close()
    for vectors in (together, alone):
        assert cosines(vectors, reference(model, TEXTS, pooling)).min() > 0.99999


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_vectors_for_the_inner_product_keep_their_length(tmp_path, backend):
    model = make_encoder(tmp_path / "tiny", pooling="mean", normalise=False, said={"similarity_fn_name": "dot"})
    encoder, vectors = opened(tmp_path / "tiny", backend=backend)
    assert vectors == pytest.approx(reference(model, TEXTS, "mean", normalise=False), rel=1e-3, abs=1e-4)
    assert (encoder.normalised, encoder.metric) == (False, "ip")
    assert encoder.fingerprint.startswith("mean-raw-40-")


def test_a_dense_layer_follows_the_pooling(tmp_path):
    dense = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)) / 6
    model = make_encoder(tmp_path / "tiny", pooling="mean", dense=dense)
    encoder, vectors = opened(tmp_path / "tiny")
    assert encoder.dim == vectors.shape[1] == 8
    assert cosines(vectors, reference(model, TEXTS, "mean", dense=dense)).min() > 0.99999


def test_the_layout_of_old_releases_is_read(tmp_path):
    model = make_encoder(tmp_path / "tiny", pooling="cls_token", old=True)
    encoder, vectors = opened(tmp_path / "tiny", backend="torch")
    assert cosines(vectors, reference(model, TEXTS, "cls")).min() > 0.99999
    assert encoder.pooling == "cls"


def test_passes_side_by_side_give_the_same_vectors(tmp_path):
    make_encoder(tmp_path / "tiny", pooling="mean")
    texts = [f"{text} w{number}" for number in range(50) for text in TEXTS]
    one = open_encoder(tmp_path / "tiny", precision="exact")
    many = open_encoder(tmp_path / "tiny", precision="exact", bulk=True, threads=2)
    many._backend.sizes = many._backend.sizes.__class__(slice=1024, tokens=64, waste=64)
    assert cosines(one.encode_now(texts), many.encode_now(texts)).min() > 0.99999
    one.close()
    many.close()


def test_eight_bits_keep_the_direction_of_vectors_and_their_fingerprint(encoder, encoder_folder, encoder_cache):
    rounded = open_encoder(encoder_folder, cache=encoder_cache, precision="int8", bulk=True)
    texts = [
        "The encoder pools token vectors by their mean and normalises them to length one.",
        "A moderate dose of the drug lowered the mean pressure in most of the 412 patients.",
        "Bread needs flour, water and salt.",
        "Which port does the service listen on?",
        "Das Museum ist montags geschlossen.",
    ]
    assert cosines(rounded.encode_now(texts), encoder.encode_now(texts)).min() > 0.97
    assert (rounded.fingerprint, rounded.precision) == (encoder.fingerprint, "int8")
    rounded.close()


def test_eight_bits_on_torch_are_refused(tmp_path):
    make_encoder(tmp_path / "tiny", pooling="mean")
    with pytest.raises(ConfigError, match="--encoder-backend openvino"):
        open_encoder(tmp_path / "tiny", backend="torch", precision="int8")


def test_a_device_that_is_not_there_is_named(tmp_path):
    make_encoder(tmp_path / "tiny", pooling="mean")
    with pytest.raises(ConfigError, match="'cuda:99'"):
        open_encoder(tmp_path / "tiny", backend="torch", device="cuda:99")


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "least"), [("native", 0.9999), ("exact", 0.99999)])
def test_a_gpu_gives_the_same_vectors(encoder_folder, encoder_cache, precision, least):
    texts = [f"{text} number {n}" for n in range(400) for text in ("a port", "the index of a database is built again")]
    on_gpu, on_cpu = (
        open_encoder(encoder_folder, cache=encoder_cache, backend="torch", precision=precision, device=device)
        for device in ("cuda", "cpu")
    )
    assert cosines(on_gpu.encode_now(texts), on_cpu.encode_now(texts)).min() > least
    assert on_gpu.fingerprint == on_cpu.fingerprint
    on_gpu.close()
    on_cpu.close()


@pytest.fixture
def plain(tmp_path):
    """Return a function that writes the configuration of a plain transformer under a name."""

    def write(name, *, said=None, modules=None, pooling=None, **config):
        folder = tmp_path / name
        table = {"model_type": "bert", "hidden_size": 384, "vocab_size": 100, "max_position_embeddings": 512} | config
        write_json(folder / "config.json", table)
        if said is not None:
            write_json(folder / "config_sentence_transformers.json", said)
        if modules is not None:
            rows = [{"path": "" if kind == "Transformer" else kind, "type": f"x.y.{kind}"} for kind in modules]
            (folder / "modules.json").write_text(json.dumps(rows))
        if pooling is not None:
            write_json(folder / "Pooling" / "config.json", pooling)
        return folder

    return write


def test_a_plain_transformer_is_pooled_by_the_mean_and_compared_by_the_cosine(plain):
    traits = read_traits(plain("my-encoder"))
    assert (traits.pooling, traits.metric, traits.normalised) == ("mean", "cosine", True)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("contriever-msmarco", {}),
        ("model", {"architectures": ["Contriever"]}),
        ("multi-qa-mpnet-base-dot-v1", {}),
    ],
)
def test_encoders_known_for_the_inner_product_are_used_with_it(plain, name, config):
    traits = read_traits(plain(name, **config))
    assert (traits.metric, traits.normalised) == ("ip", False)


def test_what_the_files_say_of_the_metric_goes_before_the_name(plain):
    assert read_traits(plain("contriever-x", said={"similarity_fn_name": "cosine"})).metric == "cosine"
    assert read_traits(plain("a-dot-b", modules=["Transformer", "Normalize"])).metric == "cosine"
    assert read_traits(plain("other", said={"similarity_fn_name": "dot"})).metric == "ip"


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("all-MiniLM-L6-v2", "", ""),
        ("contriever-msmarco", "", ""),
        ("gte-small", "", ""),
        ("bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("bge-m3", "", ""),
        ("e5-small-v2", "query: ", "passage: "),
        ("multilingual-e5-base", "query: ", "passage: "),
        (
            "multilingual-e5-large-instruct",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
            "",
        ),
        ("nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("snowflake-arctic-embed-m-v2.0", "query: ", ""),
    ],
)
def test_prefixes_of_known_families(plain, name, query, passage):
    traits = read_traits(plain(name))
    assert (traits.query_prefix, traits.passage_prefix) == (query, passage)


def test_prompts_in_the_files_go_before_the_family_and_empty_ones_say_nothing(plain):
    told = read_traits(plain("e5-small", said={"prompts": {"query": "ask: ", "document": "doc: "}}))
    empty = read_traits(plain("e5-base", said={"prompts": {"query": "", "document": ""}}))
    base = read_traits(plain("model", _name_or_path="/cache/BAAI_bge-small-en/"))
    assert (told.query_prefix, told.passage_prefix) == ("ask: ", "doc: ")
    assert (empty.query_prefix, empty.passage_prefix) == ("query: ", "passage: ")
    assert base.query_prefix.startswith("Represent this sentence")


def test_settings_go_before_everything(plain):
    folder = plain("contriever", said={"prompts": {"query": "ask: "}})
    traits = read_traits(folder, Told(pooling="cls", metric="cosine", query_prefix="", passage_prefix="p: "))
    assert (traits.pooling, traits.metric, traits.query_prefix, traits.passage_prefix) == ("cls", "cosine", "", "p: ")


@pytest.mark.parametrize(
    ("config", "tuned", "expected"),
    [
        ({}, None, 512),
        ({}, 256, 256),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, None, 512),
        ({"max_position_embeddings": None}, None, 512),
        ({"max_position_embeddings": 8192}, 10**30, 8192),
    ],
)
def test_texts_are_cut_where_the_model_was_tuned_to(plain, config, tuned, expected):
    folder = plain("any", **config)
    if tuned is not None:
        write_json(folder / "tokenizer_config.json", {"model_max_length": tuned})
    assert read_traits(folder).max_tokens == expected


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}}, "mean_sqrt_len"),
        ({"pooling": {"pooling_mode": ["mean", "cls"]}}, "'mean', 'cls'"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "without the prompt"),
        ({"modules": ["Transformer", "Pooling", "LSTM"]}, "LSTM"),
        ({"modules": ["LSTM", "Transformer", "Pooling"]}, "LSTM"),
        ({"modules": ["Transformer", "Pooling", "Normalize", "Dense"]}, "in this order"),
        ({"modules": None, "said": {"similarity_fn_name": "euclidean"}}, "euclidean"),
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
    ],
)
def test_a_part_that_is_not_supported_is_named(plain, how, said):
    with pytest.raises(ModelError, match=said):
        read_traits(plain("model", **({"modules": ["Transformer", "Pooling"]} | how)))


def test_a_path_out_of_the_folder_is_refused(plain):
    folder = plain("model")
    (folder / "modules.json").write_text('[{"path": "../other", "type": "x.Transformer"}]')
    with pytest.raises(BrokenModel, match="inside the folder"):
        read_traits(folder)


def test_pickled_weights_are_never_read(plain):
    folder = plain("model")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(BrokenModel, match="pickled weights are not read"):
        read_checkpoint(folder)


def test_pooling_and_length_change_the_fingerprint_and_prefixes_do_not(tmp_path):
    make_encoder(tmp_path / "tiny", pooling="mean")
    told = [Told(), Told(query_prefix="q: "), Told(pooling="cls"), Told(metric="ip")]
    found = [read_checkpoint(tmp_path / "tiny", told=each).fingerprint for each in told]
    assert found[0] == found[1]
    assert len({*found}) == 3


def test_equal_weights_under_another_configuration_or_in_lower_case_are_another_encoder(tmp_path):
    make_encoder(tmp_path / "tiny", pooling="mean")
    file = tmp_path / "tiny" / "config.json"
    config = json.loads(file.read_text())
    found = []
    for change in ({}, {"_name_or_path": "x", "transformers_version": "0"}, {"num_attention_heads": 2}):
        file.write_text(json.dumps(config | change))
        found.append(read_checkpoint(tmp_path / "tiny").fingerprint)
    write_json(tmp_path / "tiny" / "sentence_bert_config.json", {"do_lower_case": True})
    assert found[0] == found[1]
    assert len({*found, read_checkpoint(tmp_path / "tiny").fingerprint}) == 3


def test_other_weights_of_the_same_size_and_time_are_hashed_again(tmp_path):
    make_encoder(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    os.utime(weights, (1, 1))
    first = read_checkpoint(tmp_path / "tiny")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    os.utime(weights, (1, 1))
    again = read_checkpoint(tmp_path / "tiny")
    assert again.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest() != first.weights_sha256
    assert again.fingerprint != first.fingerprint


def test_texts_are_put_in_lower_case_where_the_files_ask_for_it(tmp_path):
    model = make_encoder(tmp_path / "tiny", pooling="mean")
    write_json(tmp_path / "tiny" / "sentence_bert_config.json", {"do_lower_case": True})
    encoder = open_encoder(tmp_path / "tiny", backend="torch", precision="exact")
    assert cosines(encoder.encode_now(["W1 w2 W3"]), reference(model, ["w1 w2 w3"], "mean")).min() > 0.99999
    encoder.close()


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_python_code_beside_the_weights_is_neither_run_nor_asked_about(tmp_path, monkeypatch, backend):
    make_encoder(tmp_path / "tiny", pooling="mean")
    file, ran = tmp_path / "tiny" / "config.json", tmp_path / "ran"
    own = {"model_type": "mystery", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (tmp_path / "tiny" / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import BertConfig as Config, BertModel as Model\n"
    )
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    with pytest.raises(ModelError, match="needs Python code of its own, which is not supported"):
        open_encoder(tmp_path / "tiny", backend=backend)
    assert not ran.exists()


def test_an_architecture_that_is_known_is_loaded_without_the_code_beside_it(tmp_path):
    model = make_encoder(tmp_path / "tiny", pooling="mean")
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "tiny" / "evil.py").write_text("raise SystemExit\n")
    _, vectors = opened(tmp_path / "tiny", backend="torch")
    assert cosines(vectors, reference(model, TEXTS, "mean")).min() > 0.99999


def test_a_failed_pass_among_several_reaches_the_caller_and_the_next_call_works(tmp_path, monkeypatch):
    make_encoder(tmp_path / "tiny", pooling="mean")
    encoder = open_encoder(tmp_path / "tiny", bulk=True, threads=2)
    with monkeypatch.context() as patch:
        patch.setattr("chatkit.retrieval.backends._taken", lambda request: 1 / 0)
        with pytest.raises(Unavailable, match="division by zero"):
            encoder.encode_now(TEXTS * 20)
    assert encoder.encode_now(TEXTS).shape == (5, 32)
    encoder.close()
