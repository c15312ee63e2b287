"""The worker: hosts services, a task group for each; starts, drains, releases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

import anyio

from .delivery import Runtime, build
from .draining import ENDS_WITHIN
from .errors import AccessRefused, ConfigurationError, TopologyMismatch
from .event import Events
from .failure import described, first_leaf, notes, worker_name
from .flow import Flow
from .hosting import Host
from .logs import logger
from .opening import Opened
from .ordered import OrderedSubscriber
from .ordering import keyed
from .pace import Pace, fitted
from .resources import Key
from .runs import Runs
from .service import Handler, Middleware, Service, store_of
from .settings import Settings
from .stopping import until
from .store import OpenStore
from .subscriber import Gate, Subscriber, Turn, prefetch
from .topology import MOVING_HELD
from .transport import Consumer, Subscription, Transport


PAUSED: Final = "paused"
MOVING: Final = "moving"
LONGEST_STOP: Final = 3 * ENDS_WITHIN
"""Seconds that a stop takes after the grace, at most: handlers end, resources close, and end if they do not close."""


class Worker:
    """Hosts services on a transport until it is told to stop.

    `provided` are resources by key that replace declared ones. `middleware` wraps every handler, outside of the
    services' own; `log` is the outermost, and sees outcomes that are settled. `random` decides the jitter of policies.

    By the name of a handler's subscription, `flows` tells how much each takes, `consumers` who takes it, and `refused`
    why nobody does. By the name of a service, `unavailable` is what its resources raised, until they are open again;
    `waits` is called whenever there is more of it. `unclosed` is what did not close in time, in words, since `run`.
    `stubborn` is called where a handler or a resource does not end though it was cancelled, seconds after the grace:
    `run` waits for it all the same. `overdue` tells of a resource that does not, and calls it.
    """

    def __init__(
        self,
        transport: Transport,
        services: Sequence[Service],
        *,
        app: str,
        events: Events,
        settings: Settings,
        log: Middleware,
        middleware: Sequence[Middleware] = (),
        provided: Mapping[Key, Any] | None = None,
        random: Random | None = None,
    ) -> None:
        self._transport = transport
        self._services = services
        self._app = app
        self._events = events
        self._settings = settings
        self._log = log
        self._middleware = tuple(middleware)
        self._provided = dict(provided or {})
        self._random = random or Random()
        self._turn = Turn()
        self._useless = asyncio.Event()
        self._logger = logger()
        self.flows = {handler.subscription_name: Flow() for service in services for handler in service.handlers}
        self.consumers: dict[str, Consumer] = {}
        self.refused: dict[str, str] = {}
        self.unavailable: dict[str, Exception] = {}
        self.unclosed: list[str] = []
        self.waits: Callable[[], None] = lambda: None
        self.stubborn: Callable[[], None] = lambda: None
        self.overdue: Callable[[], None] = self._leave
        self._unclosed: list[Exception] = []
        self._stores: dict[str, AbstractAsyncContextManager[OpenStore]] = {}
        self._hosted: set[str] = set()
        self._until: float | None = None

    def pause(self, name: str) -> None:
        """Let a service, or one handler (`inventory.reserve_stock`), begin nothing in this worker until `resume`.

        What runs finishes; what waits stays in the queue, for replicas too. Raises ConfigurationError for a name that
        this worker does not host. A pause ends with the worker.
        """
        for flow in self._named(name):
            flow.hold(PAUSED)
        self._logger.info("paused", name=name)

    def resume(self, name: str) -> None:
        """End the pause of a service, or of one handler; nothing happens where there is none. Raises as `pause`."""
        for flow in self._named(name):
            flow.release(PAUSED)
        self._logger.info("resumed", name=name)

    def _named(self, name: str) -> list[Flow]:
        services = {each: each.partition(".")[0] for each in self.flows}
        if found := [self.flows[each] for each, service in services.items() if name in (each, service)]:
            return found
        known = ", ".join(sorted({*services, *services.values()}))
        raise ConfigurationError(f"this worker hosts no service or handler {name!r}; there are {known}")

    @property
    def stores(self) -> list[AbstractAsyncContextManager[OpenStore]]:
        """The stores that it has open: who lets it die without a goodbye closes them."""
        return list(self._stores.values())

    @property
    def consuming(self) -> int:
        """How many handlers take deliveries, or will as soon as they are connected: all but those that were refused."""
        return len(self.flows) - len(self.refused)

    async def run(self, stop: asyncio.Event, started: Callable[[], None] = lambda: None) -> None:
        """Host the services until `stop` is set; then finish what runs within `grace` seconds and release the rest.

        `started` is called once every subscription is declared, and consuming unless its resources are unavailable:
        these are tried again, and nobody else waits for them. Raises the ConfigurationError that opening a resource
        raised, what closing one raised, and AccessRefused where the broker refuses the login. Cancel it to stop at
        once: nothing is lost.
        """
        self.unclosed.clear()
        async with AsyncExitStack() as stack:
            stack.callback(self._ended)
            subscriptions = [h.subscription(self._events) for service in self._services for h in service.handlers]
            async with until(stop):
                await self._transport.declare(subscriptions)
            if stop.is_set():
                return
            async with self._noting(subscriptions, started, stop) as consuming, asyncio.TaskGroup() as tasks:
                self._hosted = {service.name for service in self._services}
                for service in self._services:
                    tasks.create_task(self._host(service, stop, consuming), name=service.name)
            if self._unclosed:
                raise self._unclosed[0]

    @asynccontextmanager
    async def _noting(
        self, subscriptions: Sequence[Subscription], started: Callable[[], None], stop: asyncio.Event
    ) -> AsyncIterator[Countdown]:
        """Note what was declared beside the consuming, once that has begun, for as long as it lasts; bound its stop."""
        begun = asyncio.Event()

        def all_consume() -> None:
            begun.set()
            started()

        async def note() -> None:
            await begun.wait()
            for queue in await self._transport.topology.note(self._app, worker_name(), subscriptions):
                pruned = "`python app.py topology prune` removes it where it is left over"
                told = f"no handler has this queue: {MOVING_HELD if queue.held == 'moving' else pruned}"
                self._logger.warning("queue without a handler", queue=queue.name, messages=queue.messages, told=told)

        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(note(), name="note the topology")]
            beside += [tasks.create_task(self._stand_aside(each)) for each in subscriptions]
            beside.append(tasks.create_task(self._overstay(stop)))
            try:
                awaited = [*(each.name for each in self._services), *(each.name for each in subscriptions)]
                yield Countdown(awaited, all_consume)
            finally:
                for task in beside:
                    task.cancel()

    async def _stand_aside(self, subscription: Subscription) -> None:
        """Let nothing of a handler begin while its queue is moved to other arguments."""
        flow = self.flows[subscription.name]
        async for moving in self._transport.topology.moving(subscription):
            if moving:
                flow.hold(MOVING)
            else:
                flow.release(MOVING)

    def _ended(self) -> None:
        self._stores.clear()
        self.refused.clear()
        self.unavailable.clear()
        self._unclosed.clear()
        self._useless.clear()
        self._until = None
        for flow in self.flows.values():
            flow.end()

    async def _host(self, service: Service, stop: asyncio.Event, consuming: Countdown) -> None:
        """Host a service: what fails of it stops nobody else."""

        async def consume(there: Opened) -> None:
            if self.unavailable.pop(service.name, None) is not None:
                self._logger.info("resources available", service=service.name)
            if there.scope is not None:
                self._stores[service.name] = there.scope
            consuming.cross_out(service.name)
            await self._consume(service, there, stop, consuming)

        host = Host(
            service,
            self._provided,
            self._random,
            stop,
            consume=consume,
            failed=partial(self._unavailable, service, consuming),
            unclosed=partial(self._not_closed, service),
            hangs=partial(self._hangs, service),
            left=self._left,
        )
        try:
            await host.run()
        finally:
            self._hosted.discard(service.name)

    def _unavailable(self, service: Service, consuming: Countdown, error: Exception, told: str, delay: float) -> None:
        """Note that a service waits for its resources, and say so; it counts as started, for nobody waits for it."""
        self._logger.error("service unavailable", service=service.name, error=told, again_in=round(delay, 1))
        self.unavailable[service.name] = error
        self._stores.pop(service.name, None)
        names = [handler.subscription_name for handler in service.handlers]
        for name in names:
            self.refused[name] = told
            self.flows[name].end(but=(PAUSED, MOVING))
        for name in (service.name, *names):
            consuming.cross_out(name)
        self.waits()

    def _not_closed(self, service: Service, error: Exception) -> None:
        self._unclosed.append(error)
        told = "; ".join([described(first_leaf(error)), *notes(error)])
        self._logger.error("resource not closed", service=service.name, error=told)

    def _hangs(self, service: Service, what: str, within: float) -> None:
        self.unclosed.append(f"{service.name}: {what} does not close")
        told = f"{what} does not close, and is cancelled: bound its wait, or raise BUS_GRACE"
        self._logger.error("resource does not close", service=service.name, told=told, after=round(within, 1))

    def _left(self) -> float:
        """Return what is left of the grace."""
        now = asyncio.get_running_loop().time()
        return self._settings.grace if self._until is None else self._until - now

    async def _overstay(self, stop: asyncio.Event) -> None:
        """Watch a stop: what neither ends in time nor lets itself be cancelled is told, and not waited for."""
        await stop.wait()
        self._until = asyncio.get_running_loop().time() + self._settings.grace
        await asyncio.sleep(self._settings.grace + LONGEST_STOP)
        self.overdue()

    def _leave(self) -> None:
        told = "a resource, the store or a handler swallows CancelledError: let it pass, or raise it again"
        self._logger.error("worker does not end", services=sorted(self._hosted), told=told)
        self.stubborn()

    async def _consume(self, service: Service, there: Opened, stop: asyncio.Event, consuming: Countdown) -> None:
        slots = asyncio.Semaphore(service.concurrency)
        store = store_of(service, self._provided)
        runtime = Runtime(
            settings=self._settings,
            events=self._events,
            resources=there.resources,
            source=f"/{self._app}/{service.name}",
            threads=anyio.CapacityLimiter(service.concurrency),
            random=self._random,
            store=there.store,
            transaction_type=None if store is None else store.transaction_type,
        )
        async with asyncio.TaskGroup() as tasks:
            for declared in service.handlers:
                handler = replace(declared, flow=self.flows[declared.subscription_name])
                subscriber = self._subscriber(service, handler, slots, runtime)
                tasks.create_task(self._subscribe(subscriber, stop, consuming), name=handler.subscription_name)

    def _subscriber(
        self, service: Service, handler: Handler, slots: asyncio.Semaphore, runtime: Runtime
    ) -> Subscriber | OrderedSubscriber:
        own = None if handler.concurrency is None else asyncio.Semaphore(handler.concurrency)
        gate = Gate(slots, self._turn, own, Pace(handler.rate) if handler.rate is not None else None)
        runs = Runs()
        process = build(handler, runtime, gate, runs, (*self._middleware, *service.middleware), self._log)
        if handler.ordered_by is not None:
            known = handler.known(self._events) if handler.events else None
            key_of = keyed(known, handler.ordered_by, self._settings.max_message_bytes)
            at_once, grace = handler.concurrency or service.concurrency, self._settings.grace
            return OrderedSubscriber(handler, gate, process, at_once, key_of, runs, grace, self.stubborn)
        unsettled = prefetch(service, handler)
        if handler.rate is not None:
            process = fitted(handler.rate, handler.flow, unsettled, process)
        return Subscriber(handler, gate, process, unsettled, runs, self._settings.grace, self.stubborn)

    async def _subscribe(
        self, subscriber: Subscriber | OrderedSubscriber, stop: asyncio.Event, consuming: Countdown
    ) -> None:
        handler, name = subscriber.handler, subscriber.handler.subscription_name
        subscription, mismatch = handler.subscription(self._events), False
        try:
            async with self._transport.consume(subscription, limit=subscriber.limit) as consumer:
                self.consumers[name] = consumer
                self.refused.pop(name, None)
                consuming.cross_out(name)
                await subscriber.run(consumer, stop)
        except* (ConfigurationError, AccessRefused) as refused:
            # one queue that cannot be consumed stops its own handler only
            error = first_leaf(refused)
            mismatch, self.refused[name] = isinstance(error, TopologyMismatch), str(error)
            consuming.cross_out(name)
            self._logger.error("handler stopped", handler=name, error=self.refused[name])
        finally:
            self.consumers.pop(name, None)
        if not self.consuming and not self.unavailable:
            self._useless.set()
        if mismatch and await self._moved(subscription, stop):
            await self._subscribe(subscriber, stop, consuming)

    async def _moved(self, subscription: Subscription, stop: asyncio.Event) -> bool:
        """Wait until a queue with other arguments was moved, and tell whether it was; not where no handler goes on."""
        async with until(stop), until(self._useless):
            seen = False
            async for moving in self._transport.topology.moving(subscription):
                if seen and not moving:
                    await self._transport.declare([subscription])
                    return True
                seen = True
        return False


class Countdown:
    """Calls back once every one of the names was crossed out."""

    def __init__(self, names: Iterable[str], done: Callable[[], None]) -> None:
        self._left = set(names)
        self._done = done
        if not self._left:
            done()

    def cross_out(self, name: str) -> None:
        """Cross out a name; nothing happens where it is crossed out already."""
        if name in self._left:
            self._left.remove(name)
            if not self._left:
                self._done()
