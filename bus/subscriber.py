"""Subscriber: takes one handler's deliveries and runs them, as many at once as its slots and its flow allow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from .draining import drain
from .outcome import Release
from .pace import Pace
from .runs import Runs
from .service import Handler, Process, Service
from .strays import Ending, outlived
from .transport import Consumer, Delivery
from .watchdog import HANDLING


LONGEST_WAIT: Final = 15 * 60.0
"""Seconds that a delivery may wait unstarted: half of what the broker allows before it takes the message back."""
SETTLES_WITHIN: Final = 1.0
"""Seconds after which a suspect that is still being settled lets its neighbours through."""


def _nothing() -> None: ...


class Turn:
    """The right to run a suspect, one in the whole process: none dies beside another and takes its blame.

    Whoever has it waits for nothing but his mark and his run, and gives it back before the outcome is settled.
    """

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()
        self._holder: asyncio.Task[Any] | None = None
        self._over: Callable[[], None] = _nothing

    @property
    def taken(self) -> bool:
        """Whether somebody has it."""
        return self._holder is not None

    def take_now(self, over: Callable[[], None] = _nothing) -> bool:
        """Take it for this task if nobody has it; tell whether that was so. `over` is called as it is given back."""
        if self.taken:
            return False
        self._holder, self._over = asyncio.current_task(), over
        self._free.clear()
        return True

    def give(self) -> None:
        """Give it back if this task has it."""
        if self._holder is not None and self._holder is asyncio.current_task():
            self._holder = None
            self._free.set()
            self._over()

    async def given(self) -> None:
        """Wait until nobody has it; of all who wait, one will take it next."""
        await self._free.wait()


class Gate:
    """The right to run a delivery: a slot of the service, one of the handler where it has a limit, and its pace.

    A suspect needs the turn too. All but the pace is given back when the run is over: settling may take long.
    """

    def __init__(
        self, service: asyncio.Semaphore, turn: Turn, own: asyncio.Semaphore | None = None, pace: Pace | None = None
    ) -> None:
        self.turn = turn
        self.over: Callable[[], None] = _nothing
        """Called in the task of a run as that is over, or does not begin after all; whoever runs it sets it."""
        self._service = service
        self._own = own
        self._pace = pace

    async def reserve(self) -> None:
        """Wait for the slots of one run, and until its pace lets it begin; what waits for its pace holds no slot."""
        await self.paced()
        await self._slots()
        while not self.due():
            # it was its turn before the slots were there, and now it is another's
            self.give()
            await self.paced()
            await self._slots()

    def begin(self) -> None:
        """Let a run begin whose slots are reserved: only this counts for its pace."""
        if self._pace is not None:
            self._pace.take()

    async def take_now(self) -> bool:
        """Take the right to run one delivery if there is nothing to wait for; tell whether that was so."""
        if not self.free():
            return False
        self.begin()
        await self._slots()
        return True

    async def paced(self) -> None:
        """Wait until the handler's pace lets a run begin."""
        if self._pace is not None:
            await self._pace.wait()

    def due(self) -> bool:
        """Tell whether the handler's pace lets a run begin now."""
        return self._pace is None or self._pace.free()

    async def _slots(self) -> None:
        if self._own is not None:
            await self._own.acquire()
        try:
            await self._service.acquire()
        except BaseException:
            if self._own is not None:
                self._own.release()
            raise

    def free(self) -> bool:
        """Tell whether a run may begin at once."""
        return self.due() and not (self._service.locked() or (self._own is not None and self._own.locked()))

    def give(self) -> None:
        """Give the slots back, and the turn where this task has it."""
        self._service.release()
        if self._own is not None:
            self._own.release()
        self.turn.give()
        self.over()


def prefetch(service: Service, handler: Handler) -> int:
    """Return how many deliveries of the handler may be unsettled: its share of twice the service's concurrency.

    Of an ordered handler it is the window, as what waits for its key is unsettled too.
    """
    if handler.ordered_by is not None:
        return handler.ordered_window
    share = max(1, 2 * service.concurrency // len(service.handlers))
    if handler.rate is not None:
        share = min(share, max(1, int(handler.rate.per_second * LONGEST_WAIT / 2)))
    return share if handler.concurrency is None else min(share, 2 * handler.concurrency)


class Subscriber:
    """The tasks that take one handler's deliveries, as many as may be unsettled at once.

    `runs` tells which run of its messages is not over yet.
    """

    def __init__(
        self,
        handler: Handler,
        gate: Gate,
        process: Process,
        unsettled: int,
        runs: Runs,
        grace: float,
        stubborn: Callable[[], None],
    ) -> None:
        self.handler = handler
        self._name = handler.subscription_name
        self.unsettled = unsettled
        self.limit = handler.flow.most(unsettled)
        self._gate = gate
        self._process = process
        self._turn = gate.turn
        self._runs = runs
        self._grace = grace
        self._stubborn = stubborn
        self._busy: set[asyncio.Task[None]] = set()
        self._left_over: set[asyncio.Task[None]] = set()
        self._again: dict[asyncio.Task[None], Delivery] = {}
        self._waits: set[asyncio.Timeout] = set()
        self._idle = 0
        self._held_up = False
        runs.here = self._again.values

    async def run(self, consumer: Consumer, stop: asyncio.Event) -> None:
        """Take deliveries until `stop` is set; then let what runs finish within the grace, and leave the rest."""
        working: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as tasks:
            with Ending() as ending:

                def another() -> None:
                    if len(working) < self.unsettled:
                        self._idle += 1
                        working.append(tasks.create_task(self._work(consumer, stop, another), name=self._name))

                another()
                following = tasks.create_task(self._follow(consumer))
                await stop.wait()
                ending.begun = True
                for task in (following, *working):
                    if task not in self._busy:
                        task.cancel()
                await drain(self._name, working, self._grace, self._stubborn, consumer.limit(0))

    async def _follow(self, consumer: Consumer) -> None:
        """Carry every change of the handler's flow to the broker."""
        flow = self.handler.flow
        while True:
            wanted = self._allowed()
            if wanted == self.limit and not self._held_up:
                await flow.changed()
            elif wanted >= self.limit:
                self.limit, self._held_up = wanted, False
                await consumer.limit(wanted)
            else:
                await consumer.limit(wanted)
                # what runs now is not counted by the broker any more
                self._left_over = set(self._busy)
                self.limit = wanted
                flow.tell()
                # only now: what goes back to a queue that is still consumed comes again at once
                for wait in () if wanted else self._waits:
                    if not wait.expired():
                        wait.reschedule(0)

    def _allowed(self) -> int:
        """Return how many deliveries may be unsettled at the broker, beside those that it counts no more."""
        return min(self.handler.flow.most(self.unsettled), self.unsettled - len(self._left_over))

    async def _work(self, consumer: Consumer, stop: asyncio.Event, another: Callable[[], None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        HANDLING.set(self._name)
        while not stop.is_set():
            try:
                delivery = await anext(consumer)
                self._idle -= 1
                try:
                    if not self._idle and not stop.is_set():
                        another()
                    await self._run(delivery, consumer, stop, task)
                finally:
                    self._idle += 1
                    self._again.pop(task, None)
                # a full buffer never suspends, and neither may a handler: the loop has others to serve
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not await outlived(task, self._name):
                    raise

    async def _run(self, delivery: Delivery, consumer: Consumer, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        """Run a delivery; a suspect beside no other suspect of the process, while what is none goes on."""
        alone = delivery.suspect
        fresh = not (alone or delivery.redelivered or delivery.lost)
        if delivery.redelivered:
            self._again[task] = delivery
        at_once = fresh and self._may_begin() and await self._gate.take_now()
        if not at_once and not await self._waited(self._right(delivery, consumer), delivery):
            return
        self._busy.add(task)
        try:
            outcome = await self._process(delivery)
        finally:
            self._busy.discard(task)
            flow = self.handler.flow
            if task in self._left_over or flow.held:
                self._left_over.discard(task)
                flow.tell()
        if alone and isinstance(outcome, Release) and not (delivery.lost or stop.is_set()):
            # what nothing else can keep is held for long
            await self._let_pass(consumer)

    async def _right(self, delivery: Delivery, consumer: Consumer) -> bool:
        """Wait for the right to run one delivery, a suspect for its turn too; False where it is lost by then.

        Its earlier run is over then. Who waits for one thing keeps nobody from another.
        """
        while not delivery.lost:
            if delivery.suspect and (self._turn.taken or self._runs.under_way(delivery)):
                await self._let_pass(consumer)
                await self._turn.given()
            await self._runs.over(delivery)
            while not self._may_begin():
                await self.handler.flow.changed()
            await self._gate.reserve()
            over = partial(self._over, delivery)
            if self._may_begin() and not delivery.lost and (not delivery.suspect or self._turn.take_now(over)):
                self._gate.begin()
                return True
            self._gate.give()
        return False

    def _over(self, delivery: Delivery) -> None:
        """See that a suspect whose run is over does not hold up its neighbours while it is settled."""
        asyncio.get_running_loop().call_later(SETTLES_WITHIN, self._look, delivery)

    def _look(self, delivery: Delivery) -> None:
        if any(delivery is each for each in self._again.values()):
            self._held_up = True
            self.handler.flow.tell()

    async def _let_pass(self, consumer: Consumer) -> None:
        """Take more beside a suspect that does not run: nothing can die with it, and its neighbours go on."""
        await consumer.limit(self._allowed())

    def _may_begin(self) -> bool:
        """Tell whether the flow lets one more begin: several queues hand out as many as it allows, each."""
        most = self.handler.flow.most(self.unsettled)
        return most == self.unsettled or len(self._busy - self._left_over) < most

    async def _waited(self, right: Awaitable[bool], delivery: Delivery) -> bool:
        """Wait for the right to run; give it back where that takes too long, or nothing may begin any more."""
        try:
            async with asyncio.timeout(LONGEST_WAIT if self.limit else 0) as wait:
                self._waits.add(wait)
                try:
                    return await right
                finally:
                    self._waits.discard(wait)
        except (TimeoutError, asyncio.CancelledError) as error:
            # nobody has seen it yet: another replica may have it, also while a stop waits for what runs here
            await delivery.settle(Release())
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
