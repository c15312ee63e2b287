"""S3: a password that is changed while a worker runs is read from its file, whatever is changed first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from pamqp import commands

from bus import AccessRefused, ConfigurationError, Service, connect
from bus.settings import Settings
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.link import Link
from tests.broker.fixtures import Shared
from tests.broker.node import Node

from .roles import Rights, limited
from .stage import WITHIN, Log, Placed, staged


ALL = Rights(".*", ".*", ".*")


class Pool: ...


def listening(log: Log[int]) -> Service:
    service = Service("inventory")

    @service.on(Placed)
    async def reserve(placed: Placed) -> None:
        log.append(placed.number)

    return service


class Rotated:
    """A user whose password stands in a file."""

    def __init__(self, node: Node, vhost: str, file: Path) -> None:
        self.node = node
        self.vhost = vhost
        self.name = f"rotated-{vhost.strip('/')}"
        self.file = file

    async def made(self) -> str:
        """Make the user and return its URL, which has no password."""
        self.write("PASSWORD")
        url = await limited(self.node, self.vhost, self.name, ALL)
        return url.replace(":PASSWORD", "")

    def write(self, password: str) -> None:
        self.file.write_text(f"{password}\n")

    async def change(self, password: str) -> None:
        await asyncio.to_thread(self.node.ctl, "change_password", self.name, password)

    async def close_all(self) -> None:
        await asyncio.to_thread(self.node.ctl, "close_all_connections", "--vhost", self.vhost, "rotation")


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(WITHIN):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {WITHIN} s for {what}") from None


def seen(logs: list[Any], event: str) -> set[str]:
    return {entry["link"] for entry in logs if entry["event"] == event}


BOTH = {"publish", "consume"}


async def test_s3_a_worker_goes_on_with_a_new_password_whichever_place_has_it_first(
    broker: Shared, vhost_name: str, tmp_path: Path
) -> None:
    log: Log[int] = Log()
    user = Rotated(broker.node, vhost_name, tmp_path / "password")
    url = await user.made()
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", url, password_file=user.file) as stage, stage.hosting(listening(log)):
            await stage.bus.publish(Placed(number=0))
            await log.reaches(1)
            await user.change("second")
            await stage.bus.publish(Placed(number=1))  # who is in stays in
            await log.reaches(2)
            await user.close_all()
            await until(lambda: seen(logs, "broker refuses") == BOTH, "the refusals")
            refusals = [entry["error"] for entry in logs if entry["event"] == "broker refuses"]
            assert all("BUS_PASSWORD_FILE" in told and "\n" not in told for told in refusals)
            assert len(refusals) == 2
            user.write("second")
            await until(lambda: seen(logs, "broker reachable") == BOTH, "both links")
            await stage.bus.publish(Placed(number=2))
            await log.reaches(3)
            logs.clear()
            user.write("third")  # before the broker has it
            await user.change("third")
            await user.close_all()
            await until(lambda: seen(logs, "broker reachable") == BOTH, "both links")
            await stage.bus.publish(Placed(number=3))
            await log.reaches(4)


async def test_s3_a_login_that_is_refused_as_the_first_message_is_to_be_consumed_is_waited_for(
    broker: Shared, vhost_name: str, tmp_path: Path
) -> None:
    log: Log[int] = Log()
    user = Rotated(broker.node, vhost_name, tmp_path / "password")
    service = listening(log)

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        user.write("expired")  # what publishes was let in, what consumes was not needed yet
        yield Pool()

    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", await user.made(), password_file=user.file) as stage, stage.hosting(service):
            await until(lambda: "consume" in seen(logs, "broker unreachable"), "the refusal")
            user.write("PASSWORD")
            await stage.bus.publish(Placed(number=1))
            await log.reaches(1)
    assert seen(logs, "broker unreachable") == {"consume"}


async def test_s3_what_is_declared_again_waits_for_the_new_password_too(
    broker: Shared, vhost: str, vhost_name: str, tmp_path: Path
) -> None:
    log: Log[int] = Log()
    user = Rotated(broker.node, vhost_name, tmp_path / "password")
    url = await user.made()
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", url, password_file=user.file) as stage, stage.hosting(listening(log)):
            await stage.bus.publish(Placed(number=0))
            await log.reaches(1)
            await user.change("second")
            link = await Link.connect(addresses(Settings(url=vhost))[0])
            await (await link.channel()).rpc(commands.Queue.Delete(queue="inventory.reserve"))
            await link.aclose()
            await until(lambda: any("cannot be declared now" in entry["event"] for entry in logs), "a refusal")
            user.write("second")
            await until(lambda: any(entry["event"] == "consuming again" for entry in logs), "consuming again")
            await stage.bus.publish(Placed(number=1))
            await stage.bus.publish(Placed(number=2), delay=0.1)
            await log.reaches(3)


async def test_s3_a_broker_that_restarts_in_the_midst_of_it_changes_nothing(own_broker: Node, tmp_path: Path) -> None:
    log: Log[int] = Log()
    user = Rotated(own_broker, "/", tmp_path / "password")
    url = await user.made()
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", url, password_file=user.file) as stage, stage.hosting(listening(log)):
            await stage.bus.publish(Placed(number=1))
            await log.reaches(1)
            await user.change("second")
            await asyncio.to_thread(own_broker.keep)
            await asyncio.to_thread(own_broker.ctl, "stop_app")
            await asyncio.to_thread(own_broker.ctl, "start_app")
            await until(lambda: seen(logs, "broker refuses") == BOTH, "the refusals")
            user.write("second")
            await until(lambda: seen(logs, "broker reachable") == BOTH, "both links")
            await stage.bus.publish(Placed(number=2))
            await log.reaches(2)


async def test_s3_at_the_first_connect_an_old_password_is_an_error_at_once(
    broker: Shared, vhost_name: str, tmp_path: Path
) -> None:
    user = Rotated(broker.node, vhost_name, tmp_path / "password")
    url = await user.made()
    await user.change("second")
    for delay in (0, 0.1):
        with pytest.raises(AccessRefused, match="BUS_PASSWORD_FILE") as raised:
            settings = Settings(url=url, password_file=user.file, publish_timeout=60)
            async with asyncio.timeout(WITHIN), connect(settings=settings) as bus:
                await bus.publish(Placed(), delay=delay)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"BUS_PASSWORD_FILE: .*password cannot be read \(No such file or directory\)"),
        (b"", "BUS_PASSWORD_FILE: .*password is empty; write the password into it"),
        (b"\xff\xfe\n", r"BUS_PASSWORD_FILE: .*password cannot be read \(it is no text\)"),
    ],
)
async def test_s3_a_file_without_a_password_is_one_line(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told):
        async with connect(settings=Settings(url="amqp://localhost/", password_file=file)):
            pass


async def test_s3_a_link_tells_the_broker_what_is_new_in_the_file_and_stays_open(
    broker: Shared, vhost_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Log[str] = Log()
    understood = Link._connection

    def noted(link: Link, command: Any) -> None:
        told.append(type(command).__name__)
        understood(link, command)

    monkeypatch.setattr(Link, "_connection", noted)
    user = Rotated(broker.node, vhost_name, tmp_path / "password")
    url = await user.made()
    (address,) = addresses(Settings(url=f"{url}?heartbeat=1", password_file=user.file))
    link = await Link.connect(address)
    try:
        for password in ("second", "third"):
            user.write("")  # as it is while somebody writes it
            user.write(password)
            before = told.count("UpdateSecretOk")
            await told.holds(lambda seen, before=before: seen.count("UpdateSecretOk") > before, "the broker's answer")
        assert link.error is None
        await (await link.channel()).aclose()
        assert told.count("UpdateSecretOk") == 2
    finally:
        await link.aclose()
