import itertools
import json

import pytest


@pytest.fixture(scope="module")
def loss(benchmark_script):
    return benchmark_script("loss")


def rows_of(loss, *rounds, others=()):
    """Return rows of rounds, each given as the milliseconds a token of every side in their order."""
    sides = [name for name, *_ in loss.SERVICES] + ["bare"]
    rows = []
    for number, costs in enumerate(rounds):
        for side, cost in zip(sides, costs, strict=True):
            told = {"side": side, "clients": 8, "new_tokens": 64, "round": number, "tokens_per_s": 1000 / cost}
            told |= {"first_delta_ms": 1.0, "cpu_ms_per_token": 1.0, "memory_mb": 1.0, "full_answers": 1.0}
            told |= {"others_cores": 0.5 if number in others else 0.0}
            rows.append(told | ({} if side == "chatkit" else {"ratio": costs[0] / cost}))
    return rows


def test_each_side_leaves_out_one_thing_more_than_the_one_before(loss) -> None:
    names = [name for name, *_ in loss.SERVICES]
    assert names == ["chatkit", "memory-store", "no-store", "final-only", "unmoderated"]
    steps = [(settings, tuple(program), body) for _, settings, program, body in loss.SERVICES]
    for (settings, program, body), (next_settings, next_program, next_body) in itertools.pairwise(steps):
        assert settings.items() <= next_settings.items()
        assert (settings != next_settings) + (program != next_program) + (body != next_body) == 1
    assert list(loss.PARTS) == [*names[1:], "bare"]


def test_a_part_costs_the_median_of_what_it_costs_in_each_round(loss) -> None:
    # The machine is half as fast in the second round; medians of each side alone would mix the rounds.
    rows = rows_of(loss, [6, 5, 5, 4, 3, 2], [12, 10, 10, 8, 6, 4], [6.5, 5.5, 5.5, 4.5, 3.5, 2.5])
    figures = loss.loss_figures(rows, 64)
    parts = ["disk", "store", "checks_while_it_grows", "other_checks", "http_and_service"]
    assert [figures[f"{part}_ms_per_token@8"] for part in parts] == pytest.approx([1, 0, 1, 1, 1])
    assert [figures[f"{part}_share@8"] for part in parts] == pytest.approx([0.25, 0, 0.25, 0.25, 0.25])
    assert figures["loss@8"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["quiet_rounds@8"] == 3


def test_disturbed_rounds_are_left_out_and_no_loss_has_no_shares(loss) -> None:
    rows = rows_of(loss, [9, 8, 7, 6, 5, 4], [2, 2, 2, 2, 2, 2], others=(0,))
    figures = loss.loss_figures(rows, 64)
    assert (figures["loss@8"], figures["disk_ms_per_token@8"], figures["quiet_rounds@8"]) == (0.0, 0.0, 1)
    assert not [name for name in figures if "_share" in name]
    assert json.dumps(figures)
