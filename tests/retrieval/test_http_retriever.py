"""A search API on loopback as a retriever: what is sent, what is read, and what happens when it misbehaves."""

import asyncio
import json
import logging
import time

import pytest

from chatkit.errors import ConfigError, InvalidRequest, NotFound, Unavailable
from chatkit.retrieval.http import HttpRetriever, HttpSearch, read_search
from tests.retrieval.answering import Answering

HITS = [
    {
        "_id": "a",
        "_score": 2.5,
        "_source": {"name": "Leases", "body": ["A lease lasts 15 s."], "link": "https://x.example/l"},
    },
    {"_id": 7, "_score": 4, "_source": {"name": "Ports", "body": ["Port 8080."], "link": "javascript:alert(1)"}},
    {"_id": "c", "_score": None, "_source": {"body": ["No score."]}},
    {"_id": "d", "_score": 9, "_source": {"body": [""]}},
    {"_id": "e", "_score": 0.5, "_source": {"body": ["Far off."]}},
    "no table",
]
PATHS = {"id": "_id", "title": "_source.name", "text": "_source.body.0", "url": "_source.link", "score": "_score"}


@pytest.fixture
def api():
    with Answering(lambda path, body: (200, {}, json.dumps({"hits": {"hits": HITS}}).encode())) as server:
        yield server


def search_of(api, path="/s?q={query}&n={k}", **options):
    options = {"fields": PATHS, "hits": "hits.hits", "min_score": 1, "private_hosts": [api.netloc], **options}
    return HttpSearch(api.address + path, name="wiki", **options)


def ask(search, query="how long is a lease?", **options):
    return asyncio.run(HttpRetriever(search).search(query, **{"k": 5, **options}))


def test_hits_become_passages_best_first_with_what_a_citation_needs(api) -> None:
    ports, lease = ask(search_of(api))
    assert (lease.id, lease.title, lease.text, lease.source) == (
        "a",
        "Leases",
        HITS[0]["_source"]["body"][0],
        "https://x.example/l",
    )
    assert (lease.score, lease.start, lease.end) == (2.5, 0, len(lease.text))
    assert (ports.id, ports.score, ports.source) == ("7", 4.0, "wiki")
    assert api.seen[0][:2] == ("GET", "/s?q=how%20long%20is%20a%20lease%3F&n=5")
    assert [hit.id for hit in ask(search_of(api), k=1)] == ["7"]


def test_what_is_looked_for_cannot_leave_its_place(api) -> None:
    ask(search_of(api), 'x&n=99#"\r\nHost: y\u20ac\ud800')
    assert api.seen[0][1] == "/s?q=x%26n%3D99%23%22%0D%0AHost%3A%20y%E2%82%AC%3F&n=5"
    ask(
        search_of(api, "/s", body={"query": {"match": {"text": "{query}"}}, "size": "{k}", "tags": ["{k} best"]}), 'a"b'
    )
    method, path, headers, body = api.seen[1]
    assert (method, path, headers["Content-Type"]) == ("POST", "/s", "application/json")
    assert json.loads(body) == {"query": {"match": {"text": 'a"b'}}, "size": 5, "tags": ["5 best"]}


def test_a_key_comes_from_a_variable(api, monkeypatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "s3cret")
    ask(search_of(api, headers={"Authorization": "Bearer {env:SEARCH_KEY}"}))
    assert api.seen[0][2]["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("SEARCH_KEY")
    with pytest.raises(ConfigError, match="variable 'SEARCH_KEY', which a search API needs, is not set"):
        search_of(api, headers={"Authorization": "Bearer {env:SEARCH_KEY}"})


def test_without_scores_the_order_of_the_api_stays_and_ids_are_stable(api) -> None:
    search = search_of(api, fields={"text": "_source.body.0"}, min_score=None)
    found = ask(search)
    assert [hit.text for hit in found] == ["A lease lasts 15 s.", "Port 8080.", "No score.", "Far off."]
    assert [round(hit.score, 2) for hit in found] == [1.0, 0.5, 0.33, 0.2]
    assert [hit.id for hit in found] == [hit.id for hit in ask(search)]
    assert len({hit.id for hit in found}) == 4


def test_a_blank_query_asks_nobody_and_other_names_and_filters_are_refused(api) -> None:
    assert ask(search_of(api), "  ") == ()
    assert ask(search_of(api), index="wiki")
    with pytest.raises(NotFound, match="no index 'docs' here, expected 'wiki'"):
        ask(search_of(api), index="docs")
    with pytest.raises(InvalidRequest, match="takes no filters; ask without 'title'"):
        ask(search_of(api), where={"title": "x"})
    assert len(api.seen) == 1


def test_numbers_without_end_long_names_and_repeats_are_no_trouble(api) -> None:
    def hit(name, score, title="T"):
        return {"_id": name, "_score": score, "_source": {"name": title, "body": [f"Text {score!s:.9}."], "link": ""}}

    hits = [hit("a", 2), hit(10**400, 3), hit("huge", 10**400), hit("a", 5, "x" * 3_000_000), hit("i" * 9_999, 4)]
    api.reply = lambda path, body: (200, {}, json.dumps({"hits": {"hits": hits}}).encode())
    best, long, unnamed = ask(search_of(api))
    assert (best.id, best.score, len(best.title)) == ("a", 5.0, 500)
    assert [(each.score, len(each.id)) for each in (long, unnamed)] == [(4.0, 20), (3.0, 20)]


WRONG = {
    "an error": ((503, {}, b"{}"), "answered with status 503, expected 200"),
    "a redirect to a private host": ((302, {"Location": "http://169.254.169.254/"}, b""), "cannot be asked now"),
    "no JSON": ((200, {}, b"<html>"), "did not answer JSON"),
    "no list": ((200, {}, b'{"hits": {"hits": {}}}'), "has no list at 'hits.hits'"),
    "nothing there": ((200, {}, b"[]"), "has no list at 'hits.hits'"),
    "JSON of no end": ((200, {}, b"[" * 200_000), "did not answer JSON"),
    "not a number": ((200, {}, b'{"hits": {"hits": [{"_score": NaN}]}}'), "did not answer JSON"),
    "too much": ((200, {}, b" " * 5_000_000), "cannot be asked now"),
}


@pytest.mark.parametrize(("answer", "message"), WRONG.values(), ids=WRONG)
def test_an_api_that_misbehaves_is_unavailable(api, answer, message) -> None:
    api.reply = lambda path, body: answer
    with pytest.raises(Unavailable, match=message):
        ask(search_of(api))


def test_an_api_that_is_silent_costs_its_time_out_and_no_more(api, caplog) -> None:
    api.pause = 0.05
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(Unavailable, match="cannot be asked now; the log says why"):
        ask(search_of(api, timeout_s=0.3))
    assert time.monotonic() - began < 1.5
    assert "did not answer to the end within 0.3 s" in caplog.text


BAD = {
    "a private host that is not named": ({"private_hosts": ()}, "name a host that is meant in private_hosts"),
    "a placeholder as host": ({"path": ".{query}/"}, "placeholders only after the host"),
    "no text": ({"fields": {"id": "a"}}, "expected at least `text`"),
    "an unknown field": ({"fields": {"text": "a", "when": "b"}}, "expected only id, title, text"),
    "a header of two lines": ({"headers": {"X": "a\r\nY: b"}}, "headers.X is 'a value'"),
    "no time": ({"timeout_s": 0}, "timeout_s is 0, expected a number above 0"),
    "hosts as one string": ({"private_hosts": "a"}, "private_hosts is 'a', expected a list of hosts"),
    "a body that is none": ({"body": "x"}, "body is 'x', expected a table"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_configuration_that_cannot_work_is_refused_when_it_is_read(api, change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        search_of(api, **change)


def test_a_file_says_everything(api, tmp_path) -> None:
    file = tmp_path / "intranet.toml"
    file.write_text(
        f'url = "{api.address}/s?q={{query}}"\nhits = "hits.hits"\nprivate_hosts = ["{api.netloc}"]\n'
        '[fields]\ntext = "_source.body.0"\nscore = "_score"\n'
    )
    search = read_search(file)
    assert (search.name, [hit.score for hit in ask(search)]) == ("intranet", [4.0, 2.5, 0.5])
    for text, message in (
        ("url = 1", "has no 'fields'"),
        ('url = "x"\nfields = {text = "a"}\nlimit = 3', "has 'limit', expected only url"),
        ("[", "is not valid TOML"),
        ('url = 1\nfields = {text = "a"}', "url is 1, expected an address"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_search(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_search(tmp_path / "none.toml")
