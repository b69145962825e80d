import json

import pytest

from chatkit.evaluation.report import Report, Spread, describe_machine


def test_a_spread_is_median_least_and_greatest():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(2.5, 1.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no median"):
        Spread.of([])


def test_a_report_is_one_json_object_with_the_agreed_keys():
    report = Report("bench engine", {"gate": "check_first"}, {"ratio_to_bare@1": 0.9}, [{"round": 0}])
    table = json.loads(report.as_json())
    assert set(table) == {"command", "version", "machine", "settings", "figures", "rows"}
    assert table["figures"] == {"ratio_to_bare@1": 0.9}
    assert "\n" not in report.as_json()


def test_a_table_names_every_figure():
    table = Report("bench engine", {"gate": "check_first"}, {"ratio_to_bare@1": 0.912345, "n": 140.0}, []).as_table()
    assert "  ratio_to_bare@1  0.912\n" in table
    assert "  gate  check_first\n" in table
    assert "  n                140.0" in table


def test_the_machine_is_described_by_what_decides_speed():
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["openvino"][0].isdigit()
