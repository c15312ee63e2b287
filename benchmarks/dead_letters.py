"""100,000 dead letters of 1 kB: how long it takes to list and group them, to replay some, and in how much memory.

`python -m benchmarks.dead_letters [COUNT]` starts a private broker, writes the letters as a worker does, and runs the
command line on them as a process of its own, which is what is measured.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from bus import Failure, Message, Settings, client
from bus.transport.rabbitmq import RabbitMQTransport, copies, envelope
from bus.transport.rabbitmq.channel import Parcel
from tests.broker.node import Node


COUNT: Final = 100_000
BATCH: Final = 500
REPLAYED: Final = 1_000
BODY: Final = b'{"order_id": "%08d", "note": "' + b"x" * 950 + b'"}'
TRACEBACK: Final = "".join(f'  File "/srv/shop/layer{n}.py", line {n}, in step{n}\n    call()\n' for n in range(12))
APP: Final = """
from bus import App, Event, Service

class Placed(Event, type="order.placed"):
    order_id: str
    note: str

shop = Service("shop")

@shop.on(Placed)
async def reserve(placed: Placed) -> None: ...

if __name__ == "__main__":
    App("shop", events="shop_app", services="shop_app").cli()
"""


async def write(url: str, count: int) -> None:
    """Write so many letters into the stream of the shop."""
    at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    async with client.transport(Settings(url=url)) as transport:
        assert isinstance(transport, RabbitMQTransport)
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            await transport._publisher.publish([_letter(number, at + timedelta(seconds=number)) for number in numbers])


def _letter(number: int, at: datetime) -> Parcel:
    body = BODY % number
    message = Message(id=f"{number:032x}", type="order.placed", version=1, source="/shop", time=at, body=body)
    kinds = ("ValueError", "OSError", "TimeoutError", "KeyError")
    failure = Failure(
        service="shop",
        handler="reserve",
        reason="exhausted",
        error_type=kinds[number % 4],
        error=f"order {number} cannot be reserved",
        traceback=TRACEBACK,
        attempts=6,
        first_failed_at=at,
        last_failed_at=at,
        worker="host:1",
    )
    raw = bytes(12) + envelope.FLAGS.to_bytes(2, "big") + envelope.encode(message)
    flags, properties, body = copies.dead_letter(raw, body, message, "order.placed", failure)
    return Parcel(message.id, "shop.dead", "shop.reserve", flags, properties, body, mandatory=True)


def measured(folder: str, url: str, *arguments: str) -> tuple[float, float, float, str]:
    """Run a command of the app; return seconds, seconds of CPU, peak megabytes, and the first line of its output."""
    environment = os.environ | {"BUS_URL": url, "PYTHONPATH": str(Path(__file__).parent.parent)}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "shop_app.py", "dead", *arguments], cwd=folder, env=environment, stdout=out
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        out.seek(0)
        line = out.readline().strip()
    assert status == 0, line
    scale = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 1e6, line


def main() -> None:
    """Write, and measure each command; with a URL write only."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    if len(sys.argv) > 2:
        asyncio.run(write(sys.argv[2], count))
        return
    node = Node()
    with tempfile.TemporaryDirectory() as folder:
        try:
            node.start()
            (Path(folder) / "shop_app.py").write_text(APP)
            subprocess.run(
                [sys.executable, "-c", "import asyncio, shop_app; from bus import App; " + DECLARE],
                cwd=folder,
                env=os.environ | {"BUS_URL": node.url(), "PYTHONPATH": str(Path(__file__).parent.parent)},
                check=True,
                timeout=60,
            )
            began = time.monotonic()
            # a process of its own: the peak of a child is never less than what its parent had when it began
            writer = [sys.executable, "-m", "benchmarks.dead_letters", str(count), node.url()]
            subprocess.run(writer, check=True, timeout=600)
            print(f"{count} letters written in {time.monotonic() - began:.1f} s")
            file = str(Path(folder) / "letters.jsonl")
            replay = ["replay", *(f"shop/0-{number}" for number in range(REPLAYED)), "--yes"]
            commands = (
                ["list"],
                ["list", "--json"],
                ["export", file],
                replay,
                ["compact", "shop", "--yes"],
            )
            for command in commands:
                seconds, cpu, peak, line = measured(folder, node.url(), *command)
                told = " ".join([command[0], *(o for o in command[1:] if o.startswith("--"))])
                print(f"{told:16} {seconds:6.1f} s, {cpu:5.1f} s of CPU  {peak:5.0f} MB  {line[:60]}", flush=True)
        finally:
            node.close()


DECLARE: Final = """
from bus import Settings, client, settings
async def declare():
    app = App("shop", events="shop_app", services="shop_app")
    async with client.transport(settings.read()) as transport:
        await transport.declare([h.subscription(app.events) for s in app.services for h in s.handlers])
asyncio.run(declare())
"""


if __name__ == "__main__":
    main()
