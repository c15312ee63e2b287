"""The pure parts of benchmarks/containment.py: what its table and its picture say."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from benchmarks.figures import Row, Run, Window, percentile, rows, run_of, table, window
from benchmarks.picture import LONGEST, PANEL, p99_at, picture, throughput_at


def one(fault: str, handled: int, p99: float, contender: str = "Tidegate") -> Run:
    return Run(fault, contender, Window(100, 100, 1, 2), Window(200, handled, 1, p99))


def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile(list(range(1, 101)), 50) == 50
    assert percentile([7], 99) == 7


def test_a_window_counts_what_is_published_and_what_is_handled_in_it() -> None:
    sent = [0.5, 1.0, 1.5, 2.0]
    handled = {0.5: 1.1, 1.0: 1.25, 1.5: 2.5}
    assert window([(sent, handled)], 1, 2, 10) == Window(2, 2, 250, 1000)


def test_what_is_never_handled_has_waited_until_the_end() -> None:
    assert window([([1.0], {})], 1, 2, 6) == Window(1, 0, 5000, 5000)


def test_a_run_is_told_against_itself_without_the_fault() -> None:
    run = one("flood", handled=150, p99=6)
    assert (run.throughput, run.p99) == (0.75, 3)
    assert run_of(run.as_json()) == run


def test_a_row_is_the_median_of_its_rounds() -> None:
    found = rows([one("flood", 200, 2), one("flood", 100, 40), one("flood", 198, 2.2)])
    assert found == {("flood", "Tidegate"): Row(0.99, 1.1, 2, 2.2)}
    assert found["flood", "Tidegate"].contained


@pytest.mark.parametrize(("handled", "p99"), [(189, 2), (200, 2.5)])
def test_either_half_of_the_goal_can_be_missed(handled: int, p99: float) -> None:
    (row,) = rows([one("flood", handled, p99)]).values()
    assert not row.contained


def test_the_table_has_a_line_for_each_fault_that_ran_and_a_gap_for_who_did_not() -> None:
    found = rows([one("flood", 200, 2), one("hangs", 100, 400, "FastStream")])
    lines = table(found, {"none": "no fault", "flood": "a flood", "hangs": "hangs"}, ["Tidegate", "FastStream"])
    assert lines.splitlines()[2:] == [
        "| a flood | 100.0% | × 1.00 | 2.00 → 2.00 |  | |  |",
        "| hangs |  | |  | 50.0% | × 200 | 2.00 → 400 |",
    ]


def test_bars_grow_with_what_they_tell_and_end_with_their_panel() -> None:
    assert [throughput_at(share) for share in (0, 0.5, 1.2)] == [0, PANEL / 2, PANEL]
    assert [p99_at(times) for times in (0.5, 1, 100, LONGEST, 1e9)] == [0, 0, pytest.approx(PANEL / 2), PANEL, PANEL]


def test_the_picture_is_whole_and_names_what_it_shows() -> None:
    found = rows([one("flood", 200, 2), one("flood", 100, 400, "FastStream")])
    drawn = ET.fromstring(picture(found, {"none": "no fault", "flood": "a <flood>"}, ["Tidegate", "FastStream"]))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <flood>", "Tidegate", "FastStream", "× 1.0", "× 200.0"} <= set(texts)
    assert "no fault" not in texts
