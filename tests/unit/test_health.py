"""The health endpoint: what it answers, to whom, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx
import pytest

from bus import ConfigurationError, Event, Service, breaker, endpoint, immediate
from bus.discovery import named
from bus.endpoint import from_here
from bus.health import Health, served
from bus.transport.memory import MemoryConsumer
from bus.watchdog import Culprit, Watchdog, watching
from bus.worker import Worker
from tests.contract.stage import Log, Stage, staged

from .forked import FORKS, forked


class Placed(Event, type="order.placed"):
    number: int = 0


class Running:
    """A worker that runs, and its endpoint."""

    def __init__(self, stage: Stage, worker: Worker, stop: asyncio.Event, port: int) -> None:
        self.stage = stage
        self.worker = worker
        self.stop = stop
        self.port = port

    async def asks(self, method: str, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as client:
            return await client.request(method, path, **options)

    async def states(self) -> dict[str, Any]:
        answer = await self.asks("GET", "/readyz")
        assert answer.headers["content-type"] == "application/json"
        return {"code": answer.status_code, **answer.json()}

    async def sends(self, *parts: bytes) -> bytes:
        """Send bytes as they are, and return all that comes back until the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def asked(worker: Worker, stop: asyncio.Event | None = None) -> Health:
    return Health(worker, stop or asyncio.Event(), Watchdog(Culprit, 0.0))


@asynccontextmanager
async def running(*services: Service) -> AsyncIterator[Running]:
    async with staged("memory", "memory://") as stage:
        stop, started, port = asyncio.Event(), asyncio.Event(), free_port()
        worker = Worker(
            stage.transport,
            services,
            app="unit",
            events=named(services),
            settings=stage.settings,
            log=lambda _, process: process,
        )
        async with served(asked(worker, stop), f"127.0.0.1:{port}") as bound, asyncio.TaskGroup() as tasks:
            assert bound == port
            tasks.create_task(worker.run(stop, started.set))
            await started.wait()
            try:
                yield Running(stage, worker, stop, port)
            finally:
                stop.set()


def inventory(**options: Any) -> Service:
    service = Service("inventory", **options)

    @service.on(Placed, retry=immediate(1))
    async def reserve_stock(placed: Placed) -> None:
        if placed.number < 0:
            raise OSError("the warehouse is down")

    @service.on(Placed)
    async def note(placed: Placed) -> None: ...

    return service


async def test_a_worker_that_consumes_is_alive_and_ready() -> None:
    async with running(inventory()) as worker:
        alive = await worker.asks("GET", "/livez")
        assert (alive.status_code, alive.text) == (200, "ok\n")
        assert await worker.states() == {
            "code": 200,
            "status": "ready",
            "handlers": {"inventory.reserve_stock": {"state": "consuming"}, "inventory.note": {"state": "consuming"}},
        }


async def test_before_the_worker_consumes_it_is_alive_and_not_ready() -> None:
    async with staged("memory", "memory://") as stage:
        service, port = inventory(), free_port()
        worker = Worker(
            stage.transport,
            [service],
            app="unit",
            events=named([service]),
            settings=stage.settings,
            log=lambda _, process: process,
        )
        async with served(asked(worker), f"127.0.0.1:{port}"):
            asking = Running(stage, worker, asyncio.Event(), port)
            assert (await asking.asks("GET", "/livez")).status_code == 200
            told = await asking.states()
        assert (told["code"], told["status"]) == (503, "not ready")
        assert told["handlers"]["inventory.note"]["state"] == "not consuming"
        assert "starts" in told["handlers"]["inventory.note"]["why"]


async def test_while_it_stops_it_is_alive_and_not_ready() -> None:
    begun: Log[int] = Log()
    go, service = asyncio.Event(), Service("slow")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await go.wait()

    async with running(service) as worker:
        await worker.stage.bus.publish(Placed())
        await begun.reaches(1)
        worker.stop.set()
        told = await worker.states()
        assert (await worker.asks("GET", "/livez")).status_code == 200
        go.set()
    assert (told["code"], told["status"]) == (503, "stopping")


async def test_one_handler_that_does_not_consume_makes_it_unready_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(inventory()) as worker:
        monkeypatch.setattr(
            MemoryConsumer, "consuming", property(lambda self: "note" not in self._queue.subscription.name)
        )
        told = await worker.states()
    assert told["code"] == 503
    assert told["handlers"]["inventory.reserve_stock"] == {"state": "consuming"}
    assert told["handlers"]["inventory.note"]["state"] == "not consuming"
    assert "broker" in told["handlers"]["inventory.note"]["why"]


async def test_an_open_breaker_is_named_and_ready() -> None:
    async with running(inventory(middleware=[breaker(failures=1, cool_down=1000)])) as worker:
        await worker.stage.bus.publish(Placed(number=-1))
        await worker.stage.letters("inventory")
        told = await worker.states()
    assert told["code"] == 200
    assert told["handlers"]["inventory.reserve_stock"]["state"] == "breaker open"
    assert "cool-down" in told["handlers"]["inventory.reserve_stock"]["why"]
    assert told["handlers"]["inventory.note"] == {"state": "consuming"}


async def test_what_was_counted_of_a_handler_is_shown() -> None:
    async with running(inventory()) as worker:
        worker.worker.flows["inventory.note"].counts["stale"] += 3
        told = await worker.states()
    assert told["handlers"]["inventory.note"] == {"state": "consuming", "counts": {"stale": 3}}


async def test_an_operator_pauses_and_resumes_on_the_machine() -> None:
    async with running(inventory()) as worker:
        paused = await worker.asks("POST", "/pause/inventory.note")
        assert (paused.status_code, paused.text) == (200, "paused inventory.note\n")
        told = await worker.states()
        assert (told["code"], told["handlers"]["inventory.note"]) == (200, {"state": "paused"})
        resumed = await worker.asks("POST", "/resume/inventory")
        assert (resumed.status_code, resumed.text) == (200, "resumed inventory\n")
        assert (await worker.states())["handlers"]["inventory.note"] == {"state": "consuming"}


async def test_a_name_that_is_not_there_is_told_with_those_that_are() -> None:
    async with running(inventory()) as worker:
        answer = await worker.asks("POST", "/pause/inventori%0a")
    assert answer.status_code == 404
    assert "'inventori\\n'; there are inventory, inventory.note, inventory.reserve_stock" in answer.text


@pytest.mark.parametrize("header", ["Origin", "Forwarded", "X-Forwarded-For"])
async def test_what_a_browser_or_a_proxy_sent_pauses_nothing(header: str) -> None:
    async with running(inventory()) as worker:
        answer = await worker.asks("POST", "/pause/inventory", headers={header: "x"})
        assert (answer.status_code, answer.text.count("\n")) == (403, 1)
        assert (await worker.states())["handlers"]["inventory.note"] == {"state": "consuming"}


class Peer:
    """The transport of a connection from somewhere."""

    def __init__(self, host: str) -> None:
        self.host = host

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return (self.host, 1)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.7", False),
        ("192.168.1.1", False),
        ("::ffff:10.0.0.7", False),
        ("fe80::1%eth0", False),
    ],
)
def test_only_loopback_is_this_machine(host: str, here: bool) -> None:
    request = h11.Request(method="POST", target="/pause/x", headers=[("host", "x")])
    assert from_here(Peer(host), request) is here  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
        ("GET", "/livez/", 200),
        ("GET", "/livez?verbose", 200),
        ("POST", "/livez", 405),
        ("DELETE", "/readyz", 405),
        ("GET", "/pause/inventory", 405),
        ("POST", "/pause", 404),
        ("POST", "/pause/a/b", 404),
    ],
)
async def test_every_other_request_is_told_what_there_is(method: str, path: str, status: int) -> None:
    async with running(inventory()) as worker:
        answer = await worker.asks(method, path)
    assert answer.status_code == status


async def test_who_asks_for_the_head_alone_gets_no_body() -> None:
    async with running(inventory()) as worker:
        answer = await worker.sends(b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: 3" in head
    assert body == b""


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"hello\r\n\r\n"], b"400"),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], b"400"),
        ([b"GET /livez HTTP/1.1\r\n\r\n"], b"400"),  # no Host
        ([b"GET /livez HTTP/1.0\r\n\r\n"], b"200"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n"], b"400"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000], b"431"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\n" + b"x" * 20_000], b"413"),
        ([b"GET /li", b"vez HTTP/1.1\r\nHo", b"st: a\r\n\r\n"], b"200"),
        ([b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n"], b"200"),
    ],
    ids=["words", "tls", "no-host", "http1.0", "two-lengths", "long-head", "long-body", "in-pieces", "two-requests"],
)
async def test_whatever_is_sent_gets_one_answer_and_the_end(parts: list[bytes], status: bytes) -> None:
    async with running(inventory()) as worker:
        answer = await worker.sends(*parts)
        assert answer.split(b" ")[1] == status
        assert answer.count(b"HTTP/1.1 ") == 1
        assert (await worker.asks("GET", "/livez")).status_code == 200


async def test_a_connection_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST", 0.05)
    async with running(inventory()) as worker:
        assert await worker.sends(b"GET /livez HTTP/1.1\r\n") == b""


async def test_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_CONNECTIONS", 3)
    async with running(inventory()) as worker:
        held = [await asyncio.open_connection("127.0.0.1", worker.port) for _ in range(3)]
        assert await worker.sends(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(10):
            while not await worker.sends(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"):
                await asyncio.sleep(0.01)


async def test_it_ends_with_the_worker_whoever_is_connected() -> None:
    async with running(inventory()) as worker:
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
        await worker.states()
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", worker.port)


async def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="cannot listen there") as raised:
            async with served(None, http):  # type: ignore[arg-type]
                pass
    assert (len(raised.value.problems), str(raised.value).count("\n")) == (1, 0)
    assert http in str(raised.value)


@pytest.mark.parametrize("host", ["0.0.0..0", "tippo", "192.0.2.1"])
async def test_a_host_that_is_not_of_this_machine_is_one_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    ask = socket.getaddrinfo

    def known(host: Any, *place: Any, **options: Any) -> Any:
        if host == "tippo":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(host, *place, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    with pytest.raises(ConfigurationError, match="the host must be a name or an address of this machine") as raised:
        async with served(None, f"{host}:8080"):  # type: ignore[arg-type]
            pass
    assert (len(raised.value.problems), str(raised.value).count("\n")) == (1, 0)
    assert str(raised.value).startswith(f"BUS_HTTP='{host}:8080': cannot listen there: ")


@FORKS
async def test_a_child_that_outlives_a_worker_does_not_keep_its_port() -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        async with served(None, f"127.0.0.1:{port}"):  # type: ignore[arg-type]
            stack.enter_context(forked())
        stack.enter_context(socket.create_server(("127.0.0.1", port)))


async def test_an_ipv6_host_works() -> None:
    async with staged("memory", "memory://") as stage:
        worker = Worker(
            stage.transport, [], app="unit", events=named([]), settings=stage.settings, log=lambda _, process: process
        )
        async with served(asked(worker), f"[::1]:{free_port('::1')}") as port, httpx.AsyncClient() as client:
            assert (await client.get(f"http://[::1]:{port}/livez")).status_code == 200
            assert json.loads((await client.get(f"http://[::1]:{port}/readyz")).text) == {
                "status": "ready",
                "handlers": {},
            }


async def test_while_the_loop_is_blocked_metrics_and_readiness_say_so_and_liveness_waits() -> None:
    heard: list[httpx.Response] = []
    alive: list[httpx.Response] = []
    all_heard = threading.Event()

    def ask(port: int) -> None:
        paths = ("metrics", "readyz", "metrics")
        heard.extend(httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=60) for path in paths)
        all_heard.set()

    def ask_livez(port: int) -> None:
        alive.append(httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60))

    async with staged("memory", "memory://") as stage:
        worker = Worker(
            stage.transport, [], app="unit", events=named([]), settings=stage.settings, log=lambda _, process: process
        )
        with watching(worker.flows, 0.1) as watchdog:
            async with served(Health(worker, asyncio.Event(), watchdog), f"127.0.0.1:{free_port()}") as port:
                asking = [threading.Thread(target=each, args=(port,)) for each in (ask, ask_livez)]
                for thread in asking:
                    thread.start()
                heard_meanwhile = all_heard.wait(10)  # which blocks the loop
                alive_meanwhile = list(alive)
                for thread in asking:
                    await asyncio.to_thread(thread.join)
    assert heard_meanwhile, "nobody answers while the loop is blocked"
    assert alive_meanwhile == []
    _, ready, metrics = heard
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
    assert "test_health.py" in ready.json()["blocked"]["at"]
    assert re.search(r"^tidegate_log_lines_lost_total \d+$", metrics.text, re.MULTILINE)
    found = re.search(r"^tidegate_loop_blocked_seconds{.*} (.+)$", metrics.text, re.MULTILINE)
    assert found is not None and float(found[1]) > 0
    assert [answer.status_code for answer in alive] == [200]


async def test_without_the_setting_nothing_listens() -> None:
    async with served(None, "") as port:  # type: ignore[arg-type]
        assert port is None
