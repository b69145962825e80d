import asyncio
import json

import numpy as np
import pytest

from chatkit.errors import BadIndex, BrokenIndex, IndexMismatch
from chatkit.retrieval import manifest
from chatkit.retrieval.build import build_index
from chatkit.retrieval.index import SearchOptions, VectorIndex
from chatkit.retrieval.passages import read_table


def find(index, query, k=3):
    return asyncio.run(index.search(query, k=k))


@pytest.fixture
def built(corpus, indexes, encoder):
    return build_index(["corpus"], indexes, name="docs", encoder=encoder)


@pytest.fixture
def opened(built, indexes, encoder):
    index = VectorIndex.open(indexes / "docs", encoder, min_score=0.35)
    yield index
    index.close()


@pytest.fixture
def everything(built, encoder):
    """The dense leg alone, which leaves nothing out."""
    index = VectorIndex.open(built.folder, encoder, options=SearchOptions(min_score=-1.0, dense_weight=1.0))
    yield index
    index.close()


def test_what_was_built_is_found_with_its_place(opened, corpus):
    best = find(opened, "Which port does the service listen on?")[0]
    assert (best.source, best.title, best.section) == ("corpus/network.md", "Network guide", "Ports")
    assert "port 8080" in best.text
    assert (corpus / "network.md").read_text()[best.start : best.end] == best.text
    assert 0.35 <= best.score <= 1.0


def test_every_passage_is_the_text_at_its_offsets(everything, corpus):
    passages = find(everything, "text", k=50)
    assert len(passages) == len(everything) == 5
    for passage in passages:
        assert (corpus.parent / passage.source).read_text()[passage.start : passage.end] == passage.text


@pytest.mark.parametrize("query", ["hello", "thanks!", "Who won the football match?", "", "  \n"])
def test_what_the_corpus_does_not_speak_of_retrieves_nothing(opened, query):
    assert find(opened, query) == ()


def test_scores_and_order_of_the_dense_leg_are_those_of_brute_force(built, everything, encoder):
    table = read_table(built.folder).to_pylist()
    embedded = [
        " > ".join(part for part in (row["title"], row["section"]) if part) + "\n" + row["text"] for row in table
    ]
    for query in ("how are backups made", "silent connections", "vectors"):
        scores = encoder.encode_now(embedded) @ encoder.encode_now([query])[0]
        got = find(everything, query, k=4)
        expected = np.argsort(-scores)[:4]
        assert [passage.id for passage in got] == [table[row]["id"] for row in expected]
        assert [passage.score for passage in got] == pytest.approx(np.maximum(scores[expected], 0).tolist(), abs=1e-4)


def test_k_limits_and_may_exceed_the_index(opened):
    assert len(find(opened, "Which port does the service listen on?", k=1)) == 1
    assert len(find(opened, "Which port does the service listen on?", k=50)) <= 5


def test_searches_run_concurrently_with_the_right_answers(opened):
    async def many():
        queries = ["Which port does the service listen on?", "How do I back up the database?"] * 20
        return await asyncio.gather(*(opened.search(query, k=1) for query in queries))

    answers = asyncio.run(many())
    assert {hit[0].section for hit in answers[::2]} == {"Ports"}
    assert {hit[0].section for hit in answers[1::2]} == {"Backups"}


def test_a_version_folder_opens_as_well(built, encoder):
    index = VectorIndex.open(built.folder, encoder, min_score=0.35)
    assert len(index) == 5
    index.close()


def test_an_index_that_is_not_there_names_the_command(indexes, encoder):
    with pytest.raises(BadIndex, match=r"no index 'docs'.*chatkit prepare-index"):
        VectorIndex.open(indexes / "docs", encoder, min_score=0.0)


class OtherEncoder:
    dim = 384
    fingerprint = "mean-l2-512-other"


def test_another_encoder_is_refused_with_both_names_and_the_command(built, indexes, encoder):
    with pytest.raises(IndexMismatch) as refusal:
        VectorIndex.open(indexes / "docs", OtherEncoder(), min_score=0.0)
    message = str(refusal.value)
    assert encoder.fingerprint in message
    assert "mean-l2-512-other" in message
    assert "chatkit prepare-index" in message


@pytest.mark.parametrize("name", [manifest.VECTORS, manifest.PASSAGES, "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "edited"])
def test_a_damaged_file_is_refused_by_name(built, indexes, encoder, name, damage):
    file = built.folder / name
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "edited":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(BadIndex, match=rf"{name}|no index"):
        VectorIndex.open(indexes / "docs", encoder, min_score=0.0)


def test_a_pointer_to_no_version_is_refused(built, indexes, encoder):
    (indexes / "docs" / "current").write_text("../../elsewhere\n")
    with pytest.raises(BrokenIndex, match="current"):
        VectorIndex.open(indexes / "docs", encoder, min_score=0.0)


def test_a_manifest_of_a_later_format_is_refused(built, indexes, encoder):
    file = built.folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(BrokenIndex, match="format 99, expected 2"):
        VectorIndex.open(indexes / "docs", encoder, min_score=0.0)


def test_an_open_index_goes_on_answering_while_newer_versions_are_built(opened, corpus, indexes, encoder):
    for round_ in range(3):
        (corpus / "network.md").write_text(f"# Other\n\nNothing about listening, round {round_}.\n")
        build_index(["corpus"], indexes, name="docs", encoder=encoder)
    assert find(opened, "Which port does the service listen on?")[0].section == "Ports"
