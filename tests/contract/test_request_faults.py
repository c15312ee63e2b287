"""R4: what happens to a request when links, workers and brokers go, and who has no rights, on RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from bus import BusUnavailable, Fate, PublishRefused, RequestTimeout, Service
from tests.broker.fixtures import Shared
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .answering import Asked, Quoted, answering
from .outages import heal, refuse
from .stage import WITHIN, Log, Stage, staged, told


class Held:
    """A service that answers when it is told to."""

    def __init__(self) -> None:
        self.service = Service("quotes", concurrency=50)
        self.begun: Log[int] = Log()
        self.go = asyncio.Event()
        self.service.on(Asked)(self._quote())

    def _quote(self) -> object:
        async def quote(asked: Asked) -> Quoted:
            self.begun.append(asked.number)
            await self.go.wait()
            return Quoted(number=asked.number)

        return quote


async def outcome(asking: Awaitable[Quoted]) -> Quoted | BusUnavailable:
    try:
        return await asking
    except BusUnavailable as error:
        return error


async def test_r4_a_lost_connection_fails_what_waits_and_the_next_request_works(
    rabbitmq: Stage, proxy: Proxy, vhost_name: str
) -> None:
    held = Held()
    async with rabbitmq.hosting(held.service), staged("rabbitmq", proxy.url(vhost_name)) as far:
        async with asyncio.TaskGroup() as tasks:
            requests = (far.bus.request(Asked(number=n), Quoted, timeout=WITHIN) for n in range(20))
            asking = [tasks.create_task(outcome(request)) for request in requests]
            await held.begun.reaches(20)
            proxy.drop()
        failed = [task.result() for task in asking]
        assert [type(error) for error in failed] == [BusUnavailable] * 20
        assert "the request may be handled yet" in str(failed[0])
        held.go.set()
        assert (await far.bus.request(Asked(number=99), Quoted, timeout=WITHIN)).number == 99
        assert len(far.transport.replies) == 0
    # it is the callers who decide whether to ask again
    assert sorted(held.begun) == [*range(20), 99]


async def test_r4_a_request_waits_for_the_connection_within_its_timeout(
    rabbitmq: Stage, proxy: Proxy, vhost_name: str
) -> None:
    held = Held()
    held.go.set()
    async with rabbitmq.hosting(held.service), staged("rabbitmq", proxy.url(vhost_name)) as far:
        refuse(proxy)
        with pytest.raises(BusUnavailable, match=r"not sent within 0.3 s: ") as raised:
            await far.bus.request(Asked(number=1), Quoted, timeout=0.3)
        assert list(raised.value.fates.values()) == [Fate.UNKNOWN]
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(far.bus.request(Asked(number=2), Quoted, timeout=WITHIN))
            await asyncio.sleep(0.2)
            heal(proxy)
        assert asking.result().number == 2
    assert list(held.begun) == [2]


async def test_r4_a_dead_link_ends_requests_at_their_timeout_and_is_not_believed_for_long(
    rabbitmq: Stage, proxy: Proxy, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    held.go.set()
    async with rabbitmq.hosting(held.service), staged("rabbitmq", proxy.url(vhost_name)) as far:
        await far.bus.request(Asked(number=1), Quoted, timeout=WITHIN)
        proxy.forget()
        with pytest.raises(BusUnavailable, match="sent and not confirmed; it may be handled yet"):
            await far.bus.request(Asked(number=2), Quoted, timeout=0.3)
        # it is asked, though nobody else wants it, and not waited for until the system gives it up
        await told(caplog, "event=connection lost", "no answer within")
        async with asyncio.timeout(WITHIN):
            while 3 not in held.begun:
                with suppress(BusUnavailable):
                    assert (await far.bus.request(Asked(number=3), Quoted, timeout=1)).number == 3
    assert list(held.begun) == [1, 3]


async def test_r4_a_restarted_broker_fails_what_waits_and_answers_again(own_broker: Node) -> None:
    held = Held()
    async with staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage, stage.hosting(held.service):
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(outcome(stage.bus.request(Asked(number=1), Quoted, timeout=60)))
            await held.begun.reaches(1)
            await asyncio.to_thread(own_broker.keep)
            await asyncio.to_thread(own_broker.stop)
        assert isinstance(asking.result(), BusUnavailable)
        held.go.set()
        await asyncio.to_thread(own_broker.start)
        assert (await stage.bus.request(Asked(number=2), Quoted, timeout=60)).number == 2


async def test_r4_a_bus_that_is_closed_fails_what_waits(vhost: str) -> None:
    held = Held()
    async with staged("rabbitmq", vhost) as worker, worker.hosting(held.service):
        async with asyncio.TaskGroup() as tasks, staged("rabbitmq", vhost) as stage:
            asking = tasks.create_task(outcome(stage.bus.request(Asked(number=1), Quoted, timeout=WITHIN)))
            await held.begun.reaches(1)
        assert isinstance(asking.result(), BusUnavailable)
        held.go.set()


async def test_r4_the_first_answer_of_a_worker_that_stops_is_sent(rabbitmq: Stage) -> None:
    held = Held()
    async with (
        asyncio.TaskGroup() as tasks,
        staged("rabbitmq", rabbitmq.settings.url) as worker,
        worker.hosting(held.service) as hosted,
    ):
        asking = tasks.create_task(rabbitmq.bus.request(Asked(number=7), Quoted, timeout=WITHIN))
        await held.begun.reaches(1)
        asyncio.get_running_loop().call_soon(held.go.set)
        await hosted.stop()
    assert asking.result().number == 7


async def test_r4_a_worker_that_is_killed_costs_no_answer(rabbitmq: Stage, tmp_path: Path) -> None:
    died = tmp_path / "died"
    await rabbitmq.declare(answering(died))
    environment = os.environ | {"BUS_URL": rabbitmq.settings.url, "BUS_LOG_LEVEL": "error"}
    command = (sys.executable, "-m", "tests.contract.answering", str(died))
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(rabbitmq.bus.request(Asked(number=7), Quoted, timeout=WITHIN))
        assert await asyncio.wait_for(process.wait(), WITHIN) == -signal.SIGKILL
        assert not asking.done()
        async with rabbitmq.hosting(answering(died)):
            assert (await asking).number == 7


async def test_r1_neither_side_needs_a_right_to_configure_nor_the_caller_one_to_read(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    held = Held()
    held.go.set()
    await rabbitmq.declare(held.service)

    rights = {
        "caller": ("^events$", "^$"),
        "answerer": (r"^(events|amq[.]default)$", r"^quotes[.].*"),
        "mute": ("^events$", r"^quotes[.].*"),
        "nobody": ("^$", "^$"),
    }
    users = {name: f"{name}-{vhost_name}" for name in rights}
    await asyncio.to_thread(broker.node.ctl, "eval", allowing(vhost_name, {users[n]: may for n, may in rights.items()}))
    urls = {name: broker.node.url(vhost_name).replace("guest:guest", f"{user}:secret") for name, user in users.items()}
    async with staged("rabbitmq", urls["caller"]) as far:
        async with staged("rabbitmq", urls["answerer"]) as near, near.hosting(held.service):
            assert (await far.bus.request(Asked(number=1), Quoted, timeout=WITHIN)).number == 1
        # without the right to answer a worker does its work all the same
        async with staged("rabbitmq", urls["mute"]) as near, near.hosting(held.service):
            with pytest.raises(RequestTimeout):
                await far.bus.request(Asked(number=2), Quoted, timeout=1)
            await held.begun.reaches(2)
    assert await rabbitmq.ready("quotes.quote") == 0
    async with staged("rabbitmq", urls["nobody"]) as far:
        with pytest.raises(PublishRefused, match="ACCESS_REFUSED"):
            await far.bus.request(Asked(), Quoted, timeout=WITHIN)


def allowing(vhost: str, rights: Mapping[str, tuple[str, str]]) -> str:
    """Return what makes users who may write and read these, and configure nothing, in one call of rabbitmqctl."""
    made = (
        f'rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"secret">>, <<"tests">>), '
        f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{vhost}">>, <<"^$">>, <<"{write}">>, '
        f'<<"{read}">>, <<"tests">>)'
        for user, (write, read) in rights.items()
    )
    return f"begin {', '.join(made)} end."
