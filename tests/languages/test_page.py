"""The page for other teams: its programs are taken out, written to files and run, with our service at the other end."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest
from cloudevents.core.bindings import amqp

from bus import Message, Service
from tests.contract.stage import Log, Stage

from . import node
from .clients import bind, found


PAGE = (Path(__file__).parents[2] / "docs" / "other-languages.md").read_text()
PROGRAMS = dict(re.findall(r"^```(?:python|javascript) (\w+\.\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
PUBLISHERS = sorted(name for name in PROGRAMS if name.startswith("publish_"))
CONSUMERS = sorted(name for name in PROGRAMS if name.startswith("consume_"))
OURS = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def command(name: str, folder: Path) -> list[str]:
    """Write a program of the page to a file, and return how its owner runs it."""
    file = folder / name
    file.write_text(PROGRAMS[name])
    if file.suffix == ".py":
        return [sys.executable, str(file)]
    node.install()
    return [node.program(), str(file)]


def environment(stage: Stage) -> dict[str, str]:
    return os.environ | {"RABBITMQ_URL": stage.settings.url, "NODE_PATH": str(node.MODULES)}


def publish(name: str, folder: Path, stage: Stage) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, folder), env=environment(stage), capture_output=True, text=True, check=False, timeout=60
    )


@asynccontextmanager
async def consuming(name: str, folder: Path, stage: Stage) -> AsyncIterator[asyncio.StreamReader]:
    """Run a consumer of the page, and yield what it prints, as soon as the broker has it."""
    process = await asyncio.create_subprocess_exec(
        *await asyncio.to_thread(command, name, folder), env=environment(stage), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not await consumers(stage, "billing.stock"):
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


async def consumers(stage: Stage, queue: str) -> int:
    async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
        try:
            return (await channel.declare_queue(queue, passive=True)).declaration_result.consumer_count or 0
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return 0


def inventory() -> Service:
    """Return the service of the page."""
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(OURS, "other-languages.md", "exec"), names)  # what the page says
    service = names["inventory"]
    assert isinstance(service, Service)
    return service


@pytest.mark.parametrize("client", [name.removeprefix("publish_with_") for name in PUBLISHERS])
async def test_a_publisher_and_a_consumer_of_the_page_meet_our_service(
    rabbitmq: Stage, client: str, tmp_path: Path
) -> None:
    heard: Log[Message] = Log()
    service = Service("hearing")

    @service.on("order.#")
    async def hear(message: Message) -> None:
        heard.append(message)

    await asyncio.to_thread(bind, rabbitmq.settings.url, "others", "order.#")
    async with (
        consuming(f"consume_with_{client}", tmp_path, rabbitmq) as printed,
        rabbitmq.hosting(inventory(), service),
    ):
        done = await asyncio.to_thread(publish, f"publish_with_{client}", tmp_path, rabbitmq)
        assert (done.returncode, done.stderr) == (0, "")
        async with asyncio.timeout(20):
            key, id, order = (await printed.readline()).decode().split()
        await heard.reaches(1)
        async with asyncio.timeout(20):
            while await rabbitmq.ready("billing.stock"):
                await asyncio.sleep(0.05)
    assert (key, order, len(id)) == ("stock.reserved", "4711", 32)
    assert (heard[0].source, heard[0].id_made_up, heard[0].problems) == ("/billing", False, ())
    # and whoever reads CloudEvents finds one
    body, properties, headers = await asyncio.to_thread(found, rabbitmq.settings.url, "others")
    event = amqp.from_amqp_event(amqp.AMQPMessage({"content-type": properties["content_type"]}, headers, body))
    assert (event.get_type(), event.get_id(), event.get_source()) == ("order.placed", heard[0].id, "/billing")
    assert event.get_data() == {"order_id": "4711", "quantity": 2}


@pytest.mark.parametrize("name", PUBLISHERS)
async def test_a_publisher_of_the_page_hears_that_nobody_wants_its_event(
    rabbitmq: Stage, name: str, tmp_path: Path
) -> None:
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_exchange("events", "topic", durable=True)
    done = await asyncio.to_thread(publish, name, tmp_path, rabbitmq)
    assert done.returncode != 0
    assert "nobody wants" in done.stderr or "UnroutableError" in done.stderr


def test_every_program_of_the_page_is_run_by_a_test() -> None:
    assert len(PUBLISHERS) == len(CONSUMERS) == 4
    assert [name.replace("publish", "consume") for name in PUBLISHERS] == CONSUMERS
    fences = re.findall(r"^```(\S.*)$", PAGE, re.MULTILINE)
    named = {fence.partition(" ")[2] for fence in fences if fence != "python"}
    assert named == {*PUBLISHERS, *CONSUMERS, "inventory_updates.py"}


def test_the_script_of_the_page_is_the_one_that_is_tested() -> None:
    script = Path(__file__).with_name("inventory_updates.py").read_text()
    assert script.replace("from __future__ import annotations\n\n", "") == PROGRAMS["inventory_updates.py"]
