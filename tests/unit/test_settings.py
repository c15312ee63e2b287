"""Settings: every wrong value in one go."""

from __future__ import annotations

import pytest

from bus import ConfigurationError, Settings
from bus.settings import check_name, read, unknown


def test_nothing_set_means_the_defaults() -> None:
    assert read({}) == Settings()
    assert read({"BUS_URL": "  "}) == Settings()


def test_values_are_read() -> None:
    read_values = read(
        {"BUS_GRACE": "2.5", "BUS_MAX_HOPS": "7", "BUS_LOG_LEVEL": "WARNING", "BUS_NAMESPACE": "staging"}
    )
    assert (read_values.grace, read_values.max_hops) == (2.5, 7)
    assert (read_values.log_level, read_values.namespace) == ("warning", "staging")


def test_every_wrong_value_is_told_at_once() -> None:
    wrong = {"BUS_GRACE": "soon", "BUS_MAX_HOPS": "0", "BUS_LOG_FORMAT": "xml", "BUS_NAMESPACE": "Dots.here"}
    with pytest.raises(ConfigurationError) as raised:
        read(wrong)
    assert [line.partition("=")[0] for line in raised.value.problems] == [
        "BUS_NAMESPACE",
        "BUS_GRACE",
        "BUS_MAX_HOPS",
        "BUS_LOG_FORMAT",
    ]


def test_an_unknown_name_is_told_with_the_nearest_known_one() -> None:
    assert unknown({"BUS_GRACES": "1", "BUS_GRACE": "1", "OTHER": "x"}) == [
        "BUS_GRACES is no setting of Tidegate; did you mean BUS_GRACE?"
    ]


def test_no_secret_is_shown() -> None:
    assert "hunter2" not in repr(Settings(url="amqp://user:hunter2@host/"))


@pytest.mark.parametrize(
    "name", ["dead", "retry", "return", "suspects", "delay", "events", "tidegate", "A", "1a", "a-b", "a.b", ""]
)
def test_names_that_queues_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="service"):
        check_name("service", name)
