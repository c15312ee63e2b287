"""Tester: services on the in-memory bus in virtual time, with what a test wants to know of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from ..client import Bus
from ..clock import Seconds, span
from ..errors import ConfigurationError
from ..event import Event, decode
from ..failure import described, first_leaf
from ..idempotency import Unit
from ..message import Message, Outgoing
from ..middleware.logging import logging
from ..outcome import Ack, DeadLetter, Letter, Outcome, Retry
from ..resources import Key
from ..service import Handler, Middleware, Process, Service, check, wraps
from ..settings import Settings
from ..transport import Delivery
from ..transport.memory import MemoryTransport
from ..worker import Worker
from . import asked
from .ending import CLOSING, ended, holds, kept_by, left_by, left_open, never_open, raised_by
from .generation import Generation, generations, in_a_worker
from .known import Known, classes_of
from .ran import Run, told_of
from .unsettled import NotSettled, busiest, busy, not_come
from .virtual_time import VirtualTime


E = TypeVar("E", bound=Event)

MOST_DELIVERIES: Final = 10_000
WITHIN: Final = 5.0


class Tester(Bus):
    """Runs services in this process: `async with Tester(inventory, resources={Pool: FakePool()}) as bus`.

    The production delivery code runs on the memory transport; the event loop's clock jumps while `settled()`,
    `advance()` or `request()` is awaited, so no test waits. `resources` replace the services' own, by the type that
    they yield; a Bus that they declare, to publish or request by, is this one.
    """

    __test__ = False  # pytest would take the name for a class of tests

    def __init__(
        self,
        *services: Service,
        resources: Mapping[Key, Any] | None = None,
        middleware: Sequence[Middleware] = (),
        settings: Settings | None = None,
    ) -> None:
        asked.check_services(services)
        check(services, resources or {})
        self.transport = MemoryTransport()
        self.settings = settings or Settings()
        super().__init__(self.transport, self.settings, "/test")
        self.services = services
        self.resources: dict[Key, Any] = {Bus: self, **(resources or {})}
        self.middleware = wraps("Tester()", middleware)
        self._events = Known(services)
        self._outside: asked.Outside = "before"
        self._random = Random(0)
        self._scope = ExitStack()
        self._running: Counter[Handler] = Counter()
        self._at_work = 0
        self._runs: list[Run] = []
        self._came_to: dict[int, Run] = {}
        self._sent: list[Outgoing] = []
        self._happened: list[str] = []
        self._generation: Generation | None = None
        self._gone: list[Generation] = []
        self._owner: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._news = asyncio.Event()
        self._stands = False
        self._told = False
        self._log = logging()
        self._at_step: Callable[[], asyncio.Future[None] | None] = lambda: None

    async def __aenter__(self) -> Self:
        if self._outside != "before":
            raise ConfigurationError("a Tester is entered once: make another by Tester(…)")
        self._time = VirtualTime(lambda: self._at_work > 0)
        self._time.stands = self._clock_stands
        self._scope.enter_context(self._time.installed())
        self._scope.enter_context(generations())
        self.transport.on_sent = self._note_sent
        self.transport.on_settled = self._news.set
        self._outside, self._home = None, asyncio.get_running_loop()
        try:
            await self._start()
        except BaseException:
            try:
                await self._close()
            finally:
                self._outside = "after"
                self._scope.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            stuck = await self._close()
        finally:
            self._outside = "after"
            self._scope.close()
        if error is not None:
            error.add_note(self.story())
        if stuck is not None:
            raise NotSettled(stuck)
        unclosed = None if self._owner is None or self._told else raised_by(self._owner)
        if unclosed is not None and error is None:
            raise unclosed
        if unclosed is not None and error is not None:
            error.add_note(f"Besides, the worker raised as it ended: {described(unclosed)}")

    async def _close(self) -> str | None:
        """End the worker, and all that it left, abandoning what does not end: return what that is, in words."""
        self._stop.set()
        stuck: str | None = None
        # time jumps here as well, but not over what a resource does as it closes
        with self._time.jumping():
            if self._owner is not None and self._generation is not None:
                at_once = bool(self._at_work) or self._generation.abandoned or holds(self.transport)
                with self._working_on():
                    if await ended(self._owner, self.settings.grace, at_once=at_once):
                        stuck = self._left_open()
                    else:
                        self._generation.abandon()
                        stuck = kept_by(busy(self._running))
            # the last of them may have crashed, with no other started yet
            for generation in (*self._gone, self._generation):
                if generation is not None and (left := await generation.dispose(CLOSING)):
                    stuck = stuck or left_by(left)
        await self.transport.aclose()
        return stuck

    async def request(self, event: Event, reply: type[E], *, timeout: Seconds, within: Seconds = WITHIN) -> E:
        """Publish an event and return the first event of the class `reply` that it causes; time jumps meanwhile.

        As `Bus.request`: a RequestTimeout comes without a wait. Raises NotSettled after `within` real seconds: it names
        the handlers that are busy, and why the clock stands.
        """
        self._check("request(…)")
        if in_a_worker():
            # a handler's own lets no time jump: who tests the handler does, and nothing is left of a crashed one
            return await super().request(event, reply, timeout=timeout)
        try:
            async with asyncio.timeout(None) as scope:
                with self._time.jumping(within=span(within).total_seconds(), late=lambda: scope.reschedule(0)):
                    return await super().request(event, reply, timeout=timeout)
        except TimeoutError:
            if not scope.expired():
                raise
            what = f"request({type(event).__name__}) has not come to its end:"
            raise not_come(what, [self._time.why()], self._running) from None

    def _check(self, call: str) -> None:
        asked.check_inside(call, self._outside)
        asked.check_loop(call, self._home)

    def _away(self) -> ConfigurationError:
        return asked.elsewhere("publish(…)")

    async def settled(self, *, within: Seconds = WITHIN, deliveries: int = MOST_DELIVERIES) -> None:
        """Return when every delivery, retry and delay has run; time jumps meanwhile.

        Raises NotSettled after `within` real seconds, after so many `deliveries`, or when the clock stands: it names
        the handlers that are busy, and why.
        """
        self._check("settled()")
        most = len(self._runs) + deliveries
        self._stands = False
        with self._time.jumping(within=span(within).total_seconds()):
            # what lost its delivery runs on all the same
            while (left := self._left()) or self._at_work:
                self._require_owner()
                self._require_resources()
                too_many = len(self._runs) > most
                if self._stands or too_many:
                    waiting = [f"{count} {what}" for what, count in left.items()]
                    why = busiest(self._runs) if too_many else self._time.why()
                    raise not_come("the bus did not settle:", [*waiting, why], self._running)
                self._news.clear()
                await self._news.wait()

    async def advance(self, by: Seconds, *, within: Seconds = WITHIN) -> None:
        """Let `by` seconds pass, exactly: what is due meanwhile happens, and nothing later.

        What a thread or a socket still has to do then is not waited for. Raises NotSettled after `within` real seconds:
        it names the handlers that are busy, and why the clock stands.
        """
        self._check("advance(…)")
        until = asyncio.get_running_loop().time() + span(by).total_seconds()
        arrived = False

        def arrive() -> None:
            nonlocal arrived
            arrived = True
            self._news.set()

        self._stands = False
        with self._time.jumping(until=until, within=span(within).total_seconds(), arrived=arrive):
            while not arrived:
                if self._stands:
                    raise not_come(f"advance({by!r}) has not come to its end:", [self._time.why()], self._running)
                self._news.clear()
                await self._news.wait()
        self._require_resources()

    async def crash(self) -> None:
        """Let the worker die without a goodbye, and start another: what was unsettled comes again.

        No code of the old one runs any more inside of this block, not even a `finally`: see what it left there, as what
        is left of the old one is closed at the end of the block. Resources of the services are opened anew.
        """
        self._check("crash()")
        assert self._generation is not None
        self._generation.abandon()
        self.transport.crash()
        self._running.clear()
        self._at_work = 0
        with self._working_on():
            for store in self.worker.stores:
                # what the end of its process would do: what is not committed is rolled back, and locks are free
                await store.__aexit__(None, None, None)
        self._gone.append(self._generation)
        for flow in self.worker.flows.values():
            flow.end()
        await self._start()

    def pause(self, name: str) -> None:
        """Pause a service, or one handler of it (`inventory.reserve_stock`): its backlog stays, and settles nothing.

        Raises ConfigurationError for a name that is not there. A pause ends with `resume` or `crash`.
        """
        self._check("pause(…)")
        self.worker.pause(name)
        self._news.set()

    def resume(self, name: str) -> None:
        """End the pause of a service, or of one handler of it. Raises as `pause`."""
        self._check("resume(…)")
        self.worker.resume(name)

    def published(self, kind: type[E]) -> list[E]:
        """Return the events of a class, or of a base's subclasses, that were published so far, in order.

        Also those that nobody subscribes to: `published(Event)` is all of them.
        """
        asked.check_event_class(kind, self._events)
        asked.check_begun("published(…)", self._outside)
        classes = classes_of(kind, self._events, self.services, (sent.message.type for sent in self._sent))
        return [
            decode(classes[sent.message.type], sent.message.body, sent.message.version)  # type: ignore[misc]
            for sent in self._sent
            if sent.message.type in classes
        ]

    def handled(self, handler: Callable[..., Any]) -> list[Message]:
        """Return the messages that the handler is done with, in the order in which it finished.

        A duplicate that was not run, because it was completed before, is not among them. Raises ConfigurationError
        for what is no handler of the services here.
        """
        asked.check_handler(handler, self.services)
        asked.check_begun("handled(…)", self._outside)
        done = (run for run in self._runs if isinstance(run.outcome, Ack) and not run.known)
        return [run.message for run in done if run.handler.function == handler]

    def dead_letters(self) -> list[Letter]:
        """Return the open dead letters of all services, oldest first."""
        asked.check_begun("dead_letters()", self._outside)
        return self.transport.dead_letters.open()

    def message(self, event: Event, *, id: str | None = None, headers: Mapping[str, str] | None = None) -> Message:
        """Return the event as the message that `publish` would send; raises MessageTooLarge."""
        asked.check_inside("publish(…)", self._outside)
        message = super().message(event, id=id, headers=headers)
        self._events.check(type(event))
        return message

    def story(self) -> str:
        """Return what was published, handled and raised so far, a line each, in its order."""
        lines, most = self._happened, 40
        cut = [f"… {len(lines) - most} lines before"] if len(lines) > most else []
        return "\n".join(["What happened on the bus:", *(f"  {line}" for line in cut + lines[-most:])])

    def _note_sent(self, sent: Outgoing) -> None:
        self._sent.append(sent)
        message = sent.message
        self._happened.append(f"published {message.type} {message.id[:8]} {message.body.decode(errors='replace')}")

    async def _start(self) -> None:
        self.worker = Worker(
            self.transport,
            self.services,
            app="test",
            events=self._events,
            settings=self.settings,
            log=self._working,
            middleware=(self._watch, *self.middleware),
            provided=self.resources,
            random=self._random,
        )
        self.worker.waits = self._news.set
        # it is told as the Tester ends
        self.worker.overdue = lambda: None
        started, stands = asyncio.Event(), False

        def never() -> None:
            nonlocal stands
            stands = True
            started.set()

        self._generation = Generation(self._at_step)
        # one owner enters and leaves the worker's task groups: a fixture's set-up and tear-down are other tasks
        self._owner = self._generation.start(self.worker.run(self._stop, started.set))
        self._owner.add_done_callback(lambda _: started.set())
        self._owner.add_done_callback(lambda _: self._news.set())
        with self._working_on(), self._time.watched(never):
            await started.wait()
        if stands:
            raise NotSettled(never_open(self.worker, self.services))
        self._require_owner()
        await self._available()

    async def _available(self) -> None:
        """Raise what a resource raised as it opened: a worker would try again, but a test is told."""
        assert self._owner is not None
        for error in self.worker.unavailable.values():
            self._owner.cancel()
            await asyncio.wait([self._owner])
            raise error

    @contextmanager
    def _working_on(self) -> Iterator[None]:
        """Let time go on as it does for as long as this lasts, if a thread may end it: a store's, say."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    def _working(self, handler: Handler, process: Process) -> Process:
        logged = self._log(handler, process)

        async def worked(delivery: Delivery) -> Outcome:
            try:
                with self._working_on():
                    outcome = await logged(delivery)
            finally:
                self._news.set()
            seen = self._came_to.get(id(outcome))
            known = seen is not None and seen.known
            run = Run(handler, delivery.message, delivery.attempt, outcome, known)
            self._runs.append(run)
            if seen is None and isinstance(outcome, Retry | DeadLetter):
                # the store did not commit, say: what the handler came to is not what its delivery came to
                self._happened.append(told_of(run))
            return outcome

        return worked

    def _watch(self, handler: Handler, process: Process) -> Process:
        async def watched(delivery: Delivery) -> Outcome:
            self._running[handler] += 1
            try:
                outcome = await process(delivery)
            finally:
                self._running[handler] -= 1
            known = isinstance(delivery, Unit) and delivery.known
            run = Run(handler, delivery.message, delivery.attempt, outcome, known)
            self._came_to[id(outcome)] = run
            self._happened.append(told_of(run))
            return outcome

        return watched

    def _left(self) -> dict[str, int]:
        """Return what is not settled: the backlog of a breaker counts, as its time will come, and a paused one not."""
        left = self.transport.waiting()
        for name, flow in self.worker.flows.items():
            queue, what = self.transport.queues[name], f"ready for {name}"
            left.pop(what, None)
            # whose resources failed is refused too, until they are there again
            refused = name in self.worker.refused and name.partition(".")[0] not in self.worker.unavailable
            if queue.ready and not refused and (flow.waits or not flow.stopped):
                left[what] = len(queue.ready)
        return left

    def _require_owner(self) -> None:
        owner = self._owner
        if owner is not None and owner.done() and not owner.cancelled() and (error := owner.exception()) is not None:
            self._told = True
            raise first_leaf(error)

    def _left_open(self) -> str | None:
        """Return in words what the worker did not close in time."""
        return left_open(self.worker.unclosed)

    def _require_resources(self) -> None:
        """Raise what a resource raised in use: a worker tries again, but a test that waits for its service is told."""
        for error in self.worker.unavailable.values():
            raise error

    def _clock_stands(self) -> None:
        self._stands = True
        self._news.set()
