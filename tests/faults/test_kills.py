"""Nothing that was acknowledged is lost, doubled or reordered over SIGKILLs at random moments."""

import json

import pytest

from chatkit import cli
from tests import ministack
from tests.faults.killed import settings_for

PROMISES = ("lost", "duplicated", "holes", "reordered", "unknown", "unanswered", "damaged")


@pytest.mark.parametrize("store", ["sqlite", "dynamodb"])
def test_no_acknowledged_turn_is_lost_over_25_kills(store, request, capsys) -> None:
    named = settings_for(store, request)
    table = ["--dynamodb-endpoint", named.dynamodb_endpoint, "--dynamodb-table", named.dynamodb_table]
    cli.main(
        ["bench", "sessions", "--kills", "25", "--store", store, *(table if store == "dynamodb" else []), "--json"]
    )
    said = capsys.readouterr()
    report = json.loads(said.out)
    figures = report["figures"]
    assert {name: figures[name] for name in PROMISES} == dict.fromkeys(PROMISES, 0), said.err
    assert (report["command"], figures["kills"], len(report["rows"])) == ("bench sessions", 25, 25)
    assert figures["acknowledged"] >= sum(row["acknowledged"] for row in report["rows"]) > 25
    assert min(figures["blocked"], figures["replacing"]) > 0
    assert 8 <= figures["asked_again"] <= 80
    assert figures["kills_in_flight"] == sum(row["broken"] > 0 for row in report["rows"]) >= 13
    assert all(0.05 <= row["after_s"] <= 0.8 for row in report["rows"])
    assert report["settings"] | {"store": store, "kills": 25, "clients": 8, "seed": 0} == report["settings"]
    assert "25 of 25 kills" in said.err
    if store == "dynamodb":
        assert "bench-" not in ministack.everything_in(named.dynamodb_endpoint, named.dynamodb_table)
