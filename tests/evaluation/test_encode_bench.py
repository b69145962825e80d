import gzip
import json
import sys

import pytest

from chatkit import cli
from chatkit.errors import InvalidRequest, NotFound
from chatkit.evaluation import encode_bench
from chatkit.evaluation.encode_bench import PEER, EncodeBench, find_peer
from chatkit.evaluation.passages import read_passages
from tests.retrieval.tiny_encoders import make_encoder

# What the script of the peer needs of the library, computed as its definition says.
LIBRARY = """
import json, torch, transformers
from pathlib import Path
from tokenizers import Tokenizer

class SentenceTransformer:
    max_seq_length = 40

    def __init__(self, model, device):
        self.tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self.model = transformers.AutoModel.from_pretrained(model).eval()

    def encode(self, texts, show_progress_bar=True):
        rows = []
        for text in texts:
            with torch.inference_mode():
                ids = torch.tensor([self.tokenizer.encode(text).ids])
                rows.append(self.model(input_ids=ids).last_hidden_state[0].mean(0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()
"""


@pytest.fixture
def peer_home(tmp_path, monkeypatch):
    """A peer in this environment, with a library of its own."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "sentence_transformers.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(library))
    told = {"command": [sys.executable], "versions": {PEER: "0"}}
    (tmp_path / f"{PEER}.json").write_text(json.dumps(told))
    return tmp_path


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.jsonl.gz"
    rows = [{"_id": n, "title": f"w{n}", "text": f"w{n + 1} w{2 * n} w{3 * n}"} for n in range(12)]
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return file


def test_every_side_encodes_the_same_passages_and_the_figures_say_how_fast_and_how_near(
    tmp_path, peer_home, corpus, capsys
):
    make_encoder(tmp_path / "tiny", pooling="mean")
    where = ["--encoder", str(tmp_path / "tiny"), "--models-dir", str(tmp_path / "models")]
    given = ["--passages", str(corpus), "--limit", "9", "--rounds", "2", "--peers-home", str(peer_home)]
    cli.main(["bench", "encode", *given, *where, "--threads", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    figures = report["figures"]
    assert report["command"] == "bench encode"
    assert (report["settings"]["passages"], report["settings"]["tokens_mean"]) == (9, 6.0)
    assert figures["min_cosine"] >= 0.999
    assert figures["int8.mean_cosine"] >= 0.97
    assert [(row["round"], row["side"]) for row in report["rows"]] == [
        *((0, side) for side in ("native", "int8", PEER)),
        *((1, side) for side in ("int8", PEER, "native")),
    ]
    by_side = [{row["side"]: row["seconds"] for row in report["rows"] if row["round"] == n} for n in (0, 1)]
    ratios = sorted(times[PEER] / times["native"] for times in by_side)
    assert ratios[0] <= figures["ratio_to_sentence_transformers"] <= ratios[1]
    assert figures["int8.ratio_to_sentence_transformers"] > 0


def test_a_peer_that_ends_is_reported_with_its_last_words(tmp_path, peer_home, corpus, capsys):
    (peer_home / "library" / "sentence_transformers.py").write_text("raise SystemExit('no such library here')")
    make_encoder(tmp_path / "tiny", pooling="mean")
    theirs = encode_bench._theirs(
        encode_bench.Settings(encoder=str(tmp_path / "tiny"), threads=1), find_peer(peer_home), ["w1"]
    )
    with pytest.raises(encode_bench.EngineFailed, match="code 1, its last words: no such library here"), theirs:
        pass


def test_a_peer_that_is_not_there_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(NotFound, match=r"make\.py sentence-transformers"):
        find_peer(tmp_path)


def test_passages_are_spread_over_the_corpus_and_have_their_titles(corpus):
    assert read_passages(corpus, 3) == ["w0 w1 w0 w0", "w4 w5 w8 w12", "w8 w9 w16 w24"]
    assert len(read_passages(corpus.parent, 100)) == 12


def test_text_files_become_passages_of_some_paragraphs(tmp_path):
    (tmp_path / "a.md").write_text("# Title\n\n" + "word " * 150 + "\n\n" + "other " * 100)
    found = read_passages(tmp_path, 10)
    assert [text.split()[0] for text in found] == ["#", "other"]


def test_the_docs_are_the_passages_where_none_are_named():
    assert len(read_passages(None, 50)) == 50


@pytest.mark.parametrize(
    ("content", "limit", "said"),
    [
        ('{"title": "only"}', 5, "line 1 .* is no passage"),
        ("", 5, "holds no passages"),
        ('{"text": "a"}', 0, "limit is 0"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, content, limit, said):
    (tmp_path / "corpus.jsonl").write_text(content)
    with pytest.raises(InvalidRequest, match=said):
        read_passages(tmp_path, limit)


def test_passages_that_are_not_there_and_no_rounds_are_refused(tmp_path):
    with pytest.raises(NotFound, match="--passages"):
        read_passages(tmp_path / "none", 5)
    with pytest.raises(InvalidRequest, match="--rounds is 0"):
        EncodeBench(rounds=0)
