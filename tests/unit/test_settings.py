"""Settings: every wrong value in one go."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("URL", "amqp://host/", "amqp://host/"),
        ("NAMESPACE", "staging_2", "staging_2"),
        ("PUBLISH_TIMEOUT", "0.5", 0.5),
        ("GRACE", " 7 ", 7.0),
        ("MAX_MESSAGE_BYTES", "1024", 1024),
        ("MAX_HOPS", "1", 1),
        ("CRASH_LIMIT", "3", 3),
        ("DEPLOY_GRACE", "1e3", 1000.0),
        ("LOG_LEVEL", "Debug", "debug"),
        ("LOG_FORMAT", "TEXT", "text"),
        ("HTTP", "127.0.0.1:8080", "127.0.0.1:8080"),
        ("HTTP", "[::]:80", "[::]:80"),
        ("HTTP", "worker.local:65535", "worker.local:65535"),
        ("CA_FILE", "/ca.pem", Path("/ca.pem")),
        ("CERT_FILE", "cert.pem", Path("cert.pem")),
        ("KEY_FILE", "key.pem", Path("key.pem")),
        ("PASSWORD_FILE", "/run/secret", Path("/run/secret")),
    ],
)
def test_each_setting_is_read_by_its_name(name: str, text: str, value: Any) -> None:
    settings = read({f"BUS_{name}": text})
    assert getattr(settings, name.lower()) == value
    others = [setting.name for setting in fields(Settings) if setting.name != name.lower()]
    assert all(getattr(settings, other) == getattr(Settings(), other) for other in others)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        *[("GRACE", text, "a number of seconds above 0") for text in ("soon", "0", "-1", "inf", "nan", "1,5", "10s")],
        *[("PUBLISH_TIMEOUT", text, "a number of seconds above 0") for text in ("never", "0")],
        *[("DEPLOY_GRACE", text, "a number of seconds above 0") for text in ("off", "-0.1")],
        *[("MAX_HOPS", text, "a whole number of 1 or more") for text in ("many", "0", "-3", "1.5", "1_000", "²")],
        *[("MAX_MESSAGE_BYTES", text, "a whole number of 1 or more") for text in ("1MiB", "0")],
        *[("CRASH_LIMIT", text, "a whole number of 1 or more") for text in ("off", "0")],
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "one of auto, json, text"),
        *[("NAMESPACE", text, "a name has up to 60") for text in ("a.b", "A", "1a", "x" * 61)],
        ("NAMESPACE", "tidegate", "own queues"),
        *[
            ("HTTP", text, "it must be host:port")
            for text in (
                "8080",
                ":8080",
                "host",
                "host:",
                "host:0",
                "host:65536",
                "host:http",
                "::1:80",
                "[host]:80",
                "on",
            )
        ],
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        read({f"BUS_{name}": text})
    (line,) = raised.value.problems
    assert line.startswith(f"BUS_{name}={text!r}: ")


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert Settings() == Settings(
        url="",
        namespace="",
        publish_timeout=10,
        grace=30,
        max_message_bytes=1_048_576,
        max_hops=32,
        crash_limit=5,
        deploy_grace=600,
        log_level="info",
        log_format="auto",
        http="",
        ca_file=None,
        cert_file=None,
        key_file=None,
        password_file=None,
    )


def test_settings_are_passed_on_and_never_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().grace = 1  # type: ignore[misc]


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUS_MAX_HOPS", "7")
    monkeypatch.setenv("BUS_MAX_HOPES", "7")
    assert read().max_hops == 7
    assert unknown() == ["BUS_MAX_HOPES is no setting of Tidegate; did you mean BUS_MAX_HOPS?"]


def test_a_name_that_is_near_to_nothing_is_told_without_a_guess() -> None:
    assert unknown({"BUS_ZZZ": "1", "BUS_QUIRK": "2"}) == [
        "BUS_QUIRK is no setting of Tidegate",
        "BUS_ZZZ is no setting of Tidegate",
    ]


@pytest.mark.parametrize("name", ["a", "a" * 60, "inventory_2", "dead_letters", "event"])
def test_names_that_queues_can_have_are_taken(name: str) -> None:
    assert check_name("service", name) == name
