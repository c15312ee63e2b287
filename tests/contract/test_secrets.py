"""S4: a password is in nothing that is written, shown or listed, whatever went wrong with it or beside it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from rich.console import Console
from rich.traceback import Traceback

from bus import App, Settings, TidegateError, connect, connect_sync
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.link import Link
from bus.transport.rabbitmq.transport import RabbitMQTransport
from tests.broker.fixtures import Shared

from .roles import Rights, limited
from .stage import Placed


ROOT = Path(__file__).parents[2]
NEEDLE = "hunter"
"""A part of every password here, that stays what it is when it is encoded or cut."""
PASSWORD = "Hunter-1@Hunter-2/Hunter-3#Hunter-4%Hunter-5?Hunter-6:Hunter-7&ü'$"
ENCODED = quote(PASSWORD, safe="")
UNREADABLE = [
    "amqp://user:Hunter/Hunter@127.0.0.1:1/",
    "amqp://user:Hunter?Hunter@127.0.0.1:1/",
    "amqp://user:Hunter#Hunter@127.0.0.1:1/",
    "amqp://user:Hunter#Hunter",
    "amqp://user:Hunter[Hunter@127.0.0.1:1/",
    "amqp://user:Hunter]Hunter@127.0.0.1:1/",
    "amqp://user:Hunter\u2100@127.0.0.1:1/",
    "amqp://user:Hunter@127.0.0.1:port/",
    "amqp://user:Hunter@127.0.0.1:99999/",
    "amqp://user:Hunter@127.0.0.1:1,127.0.0.1:Hunter/",
    "amqp://user:Hunter",
    "amqp://user:Hunter@127.0.0.1:1/?heartbeat=Hunter",
    "amqp://user:p@127.0.0.1:1/?Hunter=1",
    "amqp://user:p@127.0.0.1:1/?Hunter",
    "amqp:/user:Hunter@127.0.0.1:1/",
    "user:Hunter@127.0.0.1:1/",
    "http://user:Hunter@127.0.0.1:1/",
]
READABLE = [
    "amqp://user:Hunter@Hunter@127.0.0.1:1/",
    "amqp://user:Hunter%zz@127.0.0.1:1/",
    f"amqp://user:{ENCODED}@[::1]:1/",
]
ORDER = (
    '{"order_id": "6e0c2a4b-8f4e-4c39-9a5d-0b1f2c3d4e5f", "customer_id": "c", "placed_at": "2026-01-01T00:00:00Z", '
    '"lines": [{"sku": "s", "quantity": 1}]}'
)
PROGRAM = """
import logging
import rich.logging
import rich.traceback

rich.traceback.install(show_locals=True)
logging.basicConfig(level=logging.DEBUG, handlers=[rich.logging.RichHandler(tracebacks_show_locals=True)])

from app import app

app.cli()
"""


def shown(error: BaseException) -> str:
    """Return the error as those see it who have locals in their tracebacks; the test's own frame left out."""
    told = io.StringIO()
    assert error.__traceback__ is not None
    traceback = Traceback.from_exception(
        type(error),
        error,
        error.__traceback__.tb_next,
        show_locals=True,
        locals_max_string=None,
        locals_max_length=None,
    )
    Console(file=told, width=1000).print(traceback)
    return f"{told.getvalue()}\n{error}\n{error!r}"


@pytest.mark.parametrize("url", UNREADABLE)
async def test_s4_a_url_that_cannot_be_read_is_told_without_its_password(url: str) -> None:
    for opened in (connect(url), connect(settings=Settings(url=url))):
        with pytest.raises(TidegateError) as raised:
            async with opened:
                pass
        assert NEEDLE not in shown(raised.value).lower()
        assert "\n" not in str(raised.value)
    with pytest.raises(TidegateError) as raised, connect_sync(url):
        pass
    assert NEEDLE not in shown(raised.value).lower()


@pytest.mark.parametrize("url", READABLE)
async def test_s4_a_broker_that_is_not_there_is_told_without_the_password(url: str) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(TidegateError) as raised:
        async with connect(url, settings=Settings(publish_timeout=0.2)) as bus:
            await bus.publish(Placed())
    assert NEEDLE not in shown(raised.value).lower()
    assert NEEDLE not in str(logs).lower()


async def test_s4_a_refused_login_is_told_without_the_password(vhost: str) -> None:
    for wrong in (PASSWORD, "Hunter"):
        url = vhost.replace(":guest@", f":{quote(wrong, safe='')}@")
        with structlog.testing.capture_logs() as logs, pytest.raises(TidegateError) as raised:
            async with connect(url) as bus:
                await bus.publish(Placed())
        assert NEEDLE not in shown(raised.value).lower()
        assert NEEDLE not in str(logs).lower()


async def test_s4_no_object_shows_it(vhost: str) -> None:
    url = vhost.replace(":guest@", f":{ENCODED}@")
    settings = Settings(url=url)
    for thing in (settings, addresses(settings), addresses(settings)[0], Link(addresses(settings)[0])):
        assert NEEDLE not in f"{thing} {thing!r}".lower()
    transport = RabbitMQTransport(settings, addresses(settings))
    for other in (transport, transport.dead_letters, App("shop", events="events", services="handlers")):
        assert NEEDLE not in f"{other} {other!r}".lower()


def environment(url: str, **more: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    return bare | {"PYTHONPATH": str(ROOT), "BUS_URL": url, "BUS_LOG_LEVEL": "debug", "PYTHONASYNCIODEBUG": "1"} | more


async def started(program: Path, *arguments: str, **environ: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, str(program), *arguments, cwd=ROOT, env=environ, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )


async def output(program: Path, *arguments: str, **environ: str) -> str:
    """Run a command to its end and return all that it wrote."""
    process = await started(program, *arguments, **environ)
    async with asyncio.timeout(60):
        told, _ = await process.communicate()
    return told.decode()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The shop's command line, in a process that logs and shows whatever there is."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


async def test_s4_no_command_writes_it(program: Path, vhost: str) -> None:
    refused = vhost.replace(":guest@", f":{ENCODED}@")
    runs = [
        (refused, ["run"]),
        (refused, ["publish", "order.placed", ORDER]),
        (refused, ["dead", "list"]),
        (refused, ["dead", "compact", "inventory"]),
        (f"amqp://user:{ENCODED}@127.0.0.1:1/", ["publish", "order.placed", ORDER]),
        (UNREADABLE[0], ["run"]),
        (UNREADABLE[4], ["publish", "order.placed", ORDER]),
        (UNREADABLE[6], ["dead", "list"]),
        (refused, ["services"]),
    ]
    told = await asyncio.gather(
        *(output(program, *arguments, **environment(url, BUS_PUBLISH_TIMEOUT="0.5")) for url, arguments in runs)
    )
    for (url, arguments), written in zip(runs, told, strict=True):
        assert written.strip(), (url, arguments)
        assert NEEDLE not in written.lower(), (url, arguments, written)
        assert "Traceback" not in written, (url, arguments, written)


async def test_s4_a_worker_shows_it_nowhere_while_it_works_and_while_it_is_refused(
    program: Path, broker: Shared, vhost_name: str
) -> None:
    name = f"secret-{vhost_name}"
    await limited(broker.node, vhost_name, name, Rights(".*", ".*", ".*"))
    await asyncio.to_thread(broker.node.ctl, "change_password", name, PASSWORD)
    url = broker.node.url(vhost_name).replace("guest:guest", f"{name}:{ENCODED}")
    process = await started(program, "run", "--service", "inventory", **environment(url))
    assert process.stdout is not None
    written = b""
    try:
        async with asyncio.timeout(60):
            while b"worker started" not in written:
                written += await process.stdout.readline()
            shown = await asyncio.to_thread(broker.node.ctl, "list_connections", "user", "name", "client_properties")
            assert name in shown and "tidegate" in shown
            assert NEEDLE not in shown.lower()
            assert NEEDLE not in _command_lines(process.pid)
            await asyncio.to_thread(broker.node.ctl, "change_password", name, "another")
            await asyncio.to_thread(broker.node.ctl, "close_all_connections", "--vhost", vhost_name, "rotation")
            while b"broker refuses" not in written:
                written += await process.stdout.readline()
    finally:
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        rest, _ = await process.communicate()
    assert NEEDLE not in (written + rest).decode().lower()


def _command_lines(pid: int) -> str:
    """Return the arguments of a process and of its children, as `ps` shows them to everybody."""
    proc = Path("/proc")
    if not proc.exists():
        shown = subprocess.run(["ps", "-ww", "-o", "args=", str(pid)], capture_output=True, text=True, check=True)
        return shown.stdout.lower()
    children = " ".join(path.read_text() for path in proc.glob(f"{pid}/task/*/children"))
    found = [(proc / each / "cmdline").read_bytes().decode() for each in (str(pid), *children.split())]
    assert "program.py" in found[0]
    return "\n".join(found).lower()
