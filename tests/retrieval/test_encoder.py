import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatkit.errors import BrokenModel, MissingExtra, Unavailable
from chatkit.retrieval import backends
from chatkit.retrieval import encoder as module
from chatkit.retrieval.encoder import open_encoder

WORDS = [
    "port",
    "index",
    "vector",
    "moderation",
    "café",
    "naïve",
    "東京",
    "database",
    ":-)",
    "don't",
    "3.14",
    "e-mail",
    "~~",
    "chunk",
]


def varied_texts():
    """200 texts: blank, one character, other scripts, and longer than the encoder reads."""
    rng = np.random.default_rng(7)
    lengths = rng.choice([1, 2, 5, 12, 30, 80], size=192)
    longest = ["word " * 253, "word " * 254, "port " * 300, "vector. " * 400]
    return ["", " ", "x", "ÿ", *longest, *(" ".join(rng.choice(WORDS, size=length)) for length in lengths)]


def test_agrees_with_the_torch_reference_on_varied_texts(encoder, encoder_folder, encoder_cache):
    reference = open_encoder(encoder_folder, cache=encoder_cache, backend="torch")
    texts = varied_texts()
    ours, theirs = encoder.encode_now(texts), reference.encode_now(texts)
    reference.close()
    assert (ours * theirs).sum(axis=1).min() >= 0.99995
    assert reference.fingerprint == encoder.fingerprint


def test_vectors_are_float32_of_length_one(encoder):
    vectors = encoder.encode_now(["one sentence", "another one"])
    assert vectors.shape == (2, encoder.dim) == (2, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode_now([]).shape == (0, 384)


def test_the_mean_is_over_the_texts_own_tokens_only(encoder):
    alone = encoder.encode_now(["short"])[0]
    padded = encoder.encode_now(["short", "short and then some more words"])[0]
    assert float(alone @ padded) > 0.99999


def test_meaning_decides_the_cosine(encoder):
    query, near, far = encoder.encode_now(
        ["Which port does it listen on?", "The service listens on port 8080.", "Bread needs flour and water."]
    )
    assert query @ near > 0.5 > 0.2 > query @ far


def test_a_text_is_read_up_to_max_tokens(encoder):
    assert encoder.max_tokens == 256
    long = "word " * 254
    assert encoder.count_tokens(long) == 256
    cut, whole = encoder.encode_now([long, long + "entirely different ending about bread " * 20])
    assert float(cut @ whole) > 0.9999


def test_tokens_are_counted_without_a_cut(encoder):
    assert encoder.count_tokens("") == 2
    assert encoder.count_tokens("hello world") == 4
    assert encoder.count_tokens("word " * 1000) == 1002
    assert encoder.count_tokens_of(["hello world", ""]) == [4, 2]


@given(order=st.permutations(range(12)), cut=st.integers(0, 12))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_company_do_not_change_a_vector(encoder, order, cut):
    texts = varied_texts()[8:20]
    expected = encoder.encode_now(texts)
    mixed = [texts[index] for index in order]
    got = np.concatenate([encoder.encode_now(mixed[:cut]), encoder.encode_now(mixed[cut:])])
    assert (got * expected[list(order)]).sum(axis=1).min() > 0.99999


def test_concurrent_callers_each_get_their_own_vectors(encoder):
    texts = varied_texts()[8:48]
    expected = encoder.encode_now(texts)

    async def all_at_once():
        return await asyncio.gather(*(encoder.encode([text, texts[0]]) for text in texts))

    for row, vectors in enumerate(asyncio.run(all_at_once())):
        assert float(vectors[0] @ expected[row]) > 0.99999
        assert float(vectors[1] @ expected[0]) > 0.99999


def test_callers_that_wait_together_share_forward_passes(encoder, monkeypatch):
    rows = []
    run = encoder._backend.run
    monkeypatch.setattr(
        encoder._backend, "run", lambda batches: rows.extend(len(ids) for ids, _ in batches) or run(batches)
    )

    async def all_at_once():
        await asyncio.gather(*(encoder.encode([f"sentence number {n}"]) for n in range(32)))

    asyncio.run(all_at_once())
    assert sum(rows) == 32
    assert len(rows) < 16


def test_a_short_text_alone_has_the_vector_it_has_among_others(encoder_folder, encoder_cache):
    opened = open_encoder(encoder_folder, cache=encoder_cache)
    texts = [" ".join((["port", "index", "vector"] * 12)[:length]) for length in range(36)]
    assert min(map(opened.count_tokens, texts)) < backends._SHORT < max(map(opened.count_tokens, texts))
    expected = opened.encode_now(texts)
    for made in (False, True, True):  # the form for short texts is made on the way, and used from there on
        assert (opened._backend._single is not None) is made
        vectors = np.concatenate([opened.encode_now([text]) for text in texts])
        assert (vectors * expected).sum(axis=1).min() > 0.99999
        assert opened.encode_now(texts) == pytest.approx(expected, abs=1e-6)
    opened.close()


def test_a_graph_without_a_form_for_short_texts_goes_on_without(encoder_folder, encoder_cache, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("this shape is not for it")

    monkeypatch.setattr(backends, "_narrowed", refuse)
    opened = open_encoder(encoder_folder, cache=encoder_cache)
    vectors = np.concatenate([opened.encode_now(["a query"]) for _ in range(2 * backends._FEW)])
    assert vectors @ vectors[0] == pytest.approx(1.0, abs=1e-5)
    assert [record.message for record in caplog.records if "this shape is not for it" in record.message] == [
        "no form of the encoder for short texts alone (this shape is not for it); they take longer"
    ]
    opened.close()


def test_threads_loops_and_jobs_at_once_each_get_their_own_vectors(encoder):
    texts = [" ".join((WORDS * 3)[start : start + 1 + start % 30]) for start in range(40)]
    expected = encoder.encode_now(texts)
    wrong = []

    def ask(first):
        for number in range(first, first + 20):
            at = number % len(texts)
            if float(encoder.encode_now([texts[at]])[0] @ expected[at]) < 0.99999:
                wrong.append(at)

    async def await_all():
        return await asyncio.gather(*(encoder.encode([text]) for text in texts))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, 32, 4)]
    large = encoder._submit(texts * 8)
    for thread in threads:
        thread.start()
    found = np.concatenate(asyncio.run(await_all()))
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (found * expected).sum(axis=1).min() > 0.99999
    assert (large.result() * np.tile(expected, (8, 1))).sum(axis=1).min() > 0.99999
    assert encoder._waiting == 0


def test_a_single_text_is_encoded_by_its_caller_only_where_nobody_waits(encoder, monkeypatch):
    by = []
    run = encoder._backend.run
    monkeypatch.setattr(
        encoder._backend, "run", lambda batches: by.append(threading.current_thread().name) or run(batches)
    )
    encoder.encode_now(["alone"])
    encoder.encode_now(["one", "of two"])
    with encoder._turn:
        waits = encoder._submit(["is first"])
        later = threading.Thread(target=encoder.encode_now, args=(["comes behind it"],))
        later.start()
        while encoder._waiting < 2:
            time.sleep(0.001)
    later.join()
    assert waits.done()
    assert by[0] == threading.main_thread().name
    assert set(by[1:]) == {"encoder"}


def test_a_query_does_not_wait_for_a_whole_large_job(encoder):
    large = encoder._submit(["a sentence of a large job"] * 600)
    encoder.encode_now(["a query"])
    assert not large.done()
    assert large.result().shape == (600, 384)


def test_a_cancelled_call_leaves_the_others_alone(encoder):
    async def cancel_one():
        doomed = asyncio.ensure_future(encoder.encode(["long text " * 10] * 100))
        kept = asyncio.ensure_future(encoder.encode(["kept"]))
        await asyncio.sleep(0)
        doomed.cancel()
        vectors = await kept
        with pytest.raises(asyncio.CancelledError):
            await doomed
        return vectors

    assert float(asyncio.run(cancel_one())[0] @ encoder.encode_now(["kept"])[0]) > 0.99999


def test_a_failed_forward_pass_reaches_its_callers_and_the_next_call_works(encoder, monkeypatch):
    def fail(batches):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(encoder._backend, "run", fail)
        with pytest.raises(Unavailable, match="no memory"):
            encoder.encode_now(["text"])
    assert encoder.encode_now(["text"]).shape == (1, 384)


def test_a_text_that_cannot_be_read_fails_its_own_call_alone(encoder):
    jobs = [module._Job(texts, encoder.dim) for texts in (["kept"], ["fine", "\ud800"], ["too"])]
    assert encoder._round(jobs) == 3
    assert all(job.settle() for job in jobs)
    with pytest.raises(Unavailable, match="the encoder failed"):
        jobs[1].done.result()
    expected = encoder.encode_now(["kept", "too"])
    assert float(jobs[0].done.result()[0] @ expected[0]) > 0.99999
    assert float(jobs[2].done.result()[0] @ expected[1]) > 0.99999


def test_a_closed_encoder_says_so(encoder_folder, encoder_cache):
    opened = open_encoder(encoder_folder, cache=encoder_cache)
    opened.close()
    opened.close()
    with pytest.raises(Unavailable, match="closed"):
        opened.encode_now(["text"])


def test_a_warm_open_imports_neither_torch_nor_transformers(encoder, encoder_folder, encoder_cache):
    script = (
        "import sys; from pathlib import Path; from chatkit.retrieval.encoder import open_encoder\n"
        f"e = open_encoder(Path({str(encoder_folder)!r}), cache=Path({str(encoder_cache)!r}))\n"
        "assert e.encode_now(['text']).shape == (1, 384)\n"
        "print([m for m in ('torch', 'transformers', 'faiss', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.fixture
def own_copy(encoder_folder, tmp_path):
    """The encoder's folder again, its large file linked, so that one can be broken."""
    folder = tmp_path / "encoder"
    shutil.copytree(encoder_folder, folder, ignore=shutil.ignore_patterns("model.safetensors", "converted"))
    weights = encoder_folder / "model.safetensors"
    same = weights.stat().st_dev == tmp_path.stat().st_dev
    (os.link if same else shutil.copy)(weights, folder / weights.name)
    return folder


def replace_file(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_the_next_step(own_copy, tmp_path, name):
    (own_copy / name).unlink()
    with pytest.raises(BrokenModel, match=rf"{name}.*chatkit models pull"):
        open_encoder(own_copy, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(own_copy, tmp_path, encoder_cache, name):
    replace_file(own_copy / name, b"{not json")
    with pytest.raises(BrokenModel, match=rf"{name}.*chatkit models pull"):
        open_encoder(own_copy, cache=encoder_cache)


def test_truncated_weights_are_refused(own_copy, tmp_path):
    content = (own_copy / "model.safetensors").read_bytes()[:1_000_000]
    replace_file(own_copy / "model.safetensors", content)
    with pytest.raises(BrokenModel, match=r"model\.safetensors.*chatkit models pull"):
        open_encoder(own_copy, cache=tmp_path / "cache")


def test_a_damaged_converted_form_is_made_again(encoder, encoder_folder, tmp_path):
    cache = tmp_path / "cache"
    open_encoder(encoder_folder, cache=cache).close()
    graph = next(cache.glob("*/model.xml"))
    shutil.rmtree(graph.parent / "compiled")
    graph.write_text("<net")
    opened = open_encoder(encoder_folder, cache=cache)
    assert float(opened.encode_now(["text"])[0] @ encoder.encode_now(["text"])[0]) > 0.99999
    opened.close()


def test_a_truncated_compiled_form_does_no_harm(encoder, encoder_folder, tmp_path):
    cache = tmp_path / "cache"
    open_encoder(encoder_folder, cache=cache).close()
    blob = next(cache.glob("*/compiled/*"))
    content = blob.read_bytes()
    replace_file(blob, content[: len(content) // 2])
    opened = open_encoder(encoder_folder, cache=cache)
    assert float(opened.encode_now(["text"])[0] @ encoder.encode_now(["text"])[0]) > 0.99999
    opened.close()


def test_conversion_without_torch_names_the_extra(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"chatkit\[torch\]"):
        open_encoder(encoder_folder, cache=tmp_path / "cache")


def test_the_hash_of_the_weights_is_noted_and_a_changed_file_is_hashed_again(own_copy, encoder, tmp_path):
    cache = tmp_path / "cache"
    first = module.read_checkpoint(own_copy, cache)
    assert first.fingerprint == encoder.fingerprint
    note = json.loads((cache / "weights.json").read_text())
    assert note["sha256"] == first.weights_sha256
    replace_file(own_copy / "model.safetensors", b"other weights")
    assert module.read_checkpoint(own_copy, cache).fingerprint != first.fingerprint
