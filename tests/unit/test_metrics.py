"""Metrics as Prometheus reads them, and those of several processes as one text."""

from __future__ import annotations

from bus.metrics import Metric, merged, text


BLOCKED = Metric("blocked_total", "counter", "Seconds.", [({"service": "kitchen"}, 1.5), ({"service": "bar"}, 0)])
UP = Metric("up", "gauge", "Whether it runs.", [({}, 1.0)])


def test_a_metric_is_its_help_its_kind_and_its_samples() -> None:
    assert text([BLOCKED, UP]).splitlines() == [
        "# HELP blocked_total Seconds.",
        "# TYPE blocked_total counter",
        'blocked_total{service="kitchen"} 1.5',
        'blocked_total{service="bar"} 0',
        "# HELP up Whether it runs.",
        "# TYPE up gauge",
        "up 1",
    ]


def test_a_counter_that_has_come_far_still_counts() -> None:
    lost = Metric("lost_total", "counter", "Lines.", [({}, 1_000_001), ({"of": "all"}, 123_456_789_012)])
    assert text([lost]).splitlines()[2:] == ["lost_total 1000001", 'lost_total{of="all"} 123456789012']


def test_the_samples_of_all_processes_stand_together_and_name_their_process() -> None:
    assert merged(text([UP]), {"a": text([BLOCKED]), "b": text([BLOCKED, UP])}).splitlines() == [
        "# HELP up Whether it runs.",
        "# TYPE up gauge",
        "up 1",
        'up{process="b"} 1',
        "# HELP blocked_total Seconds.",
        "# TYPE blocked_total counter",
        'blocked_total{process="a",service="kitchen"} 1.5',
        'blocked_total{process="a",service="bar"} 0',
        'blocked_total{process="b",service="kitchen"} 1.5',
        'blocked_total{process="b",service="bar"} 0',
    ]
