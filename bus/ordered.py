"""OrderedSubscriber: takes an ordered handler's deliveries in the order in which they arrive, and runs its lanes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from math import inf
from typing import Final

from .draining import drain
from .lanes import Held, Lane, Lanes
from .ordering import KeyOf
from .runs import Runs
from .service import Handler, Process
from .strays import Ending, outlived
from .subscriber import Gate
from .transport import Consumer
from .watchdog import HANDLING


TAKEN_BACK: Final = 28 * 60.0
"""Seconds after which a message must be settled or on its way back: after 30 minutes the broker takes it by itself."""
OLDEST: Final = 20 * 60.0
"""Seconds that a message is held at most before everything is given back, and taken anew."""
SELDOM: Final = 5 * 60.0
"""Seconds in which a breaker gives everything back once: each time is a delivery more, of 1,000 that there may be."""
READ_AT_ONCE: Final = 16


class OrderedSubscriber:
    """The tasks of one ordered handler: one reads into the lanes, the others run them, as many as there are slots.

    Nothing is ever given back singly, as it would lose its place: all goes back together, when nothing runs. That
    happens when the handler's flow changes, when the oldest was held for too long, and in the end by leaving the
    consumer. A suspect runs alone in its handler too, as those behind the first are judged late, and it must not take
    their blame.
    """

    def __init__(
        self,
        handler: Handler,
        gate: Gate,
        process: Process,
        at_once: int,
        key_of: KeyOf,
        runs: Runs,
        grace: float,
        stubborn: Callable[[], None],
    ) -> None:
        self.handler = handler
        self._name = handler.subscription_name
        self.unsettled = handler.ordered_window
        self.limit = 0 if handler.flow.stopped else self.unsettled
        self._gate = gate
        gate.over = self._over
        self._process = process
        self._tasks = min(2 * at_once, self.unsettled)
        self._turn = gate.turn
        self._grace = grace
        self._stubborn = stubborn
        self._lanes = Lanes(handler.subscription_name, key_of, self.unsettled, self._wake_one)
        runs.here = self._lanes.held
        self._idle: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._standing = False
        self._running: set[asyncio.Task[None] | None] = set()
        self._still = asyncio.Event()
        self._exclusive = asyncio.Lock()
        self._alone = asyncio.Lock()
        # what begins now may run until its timeout
        self._oldest = min(OLDEST, TAKEN_BACK - handler.timeout)
        self._timer: asyncio.TimerHandle | None = None
        self._aged = asyncio.Event()
        self._gave_way = -inf
        self._loop = asyncio.get_running_loop()

    async def run(self, consumer: Consumer, stop: asyncio.Event) -> None:
        """Run lanes until `stop` is set; then let what runs finish within the grace, and leave the rest unsettled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                with Ending() as ending:
                    working = [tasks.create_task(self._work(stop), name=self._name) for _ in range(self._tasks)]
                    beside = (self._read(consumer), self._follow(consumer), self._renew(consumer))
                    others = [tasks.create_task(each) for each in beside]
                    await stop.wait()
                    ending.begun = True
                    for task in (*others, *self._idle):
                        task.cancel()
                    await drain(self._name, working, self._grace, self._stubborn)
        finally:
            self._lanes.close()
            if self._timer is not None:
                self._timer.cancel()

    async def _read(self, consumer: Consumer) -> None:
        while True:
            for _ in range(READ_AT_ONCE):
                self._lanes.put(await anext(consumer))
                if self._timer is None:
                    self._timer = self._loop.call_later(self._oldest, self._look)
            # a full buffer never suspends: the loop has others to serve
            await asyncio.sleep(0)

    async def _follow(self, consumer: Consumer) -> None:
        """Carry every change of the handler's flow to the broker, when nothing runs."""
        flow = self.handler.flow
        while True:
            if self._wanted() != self.limit:
                async with self._stand_still():
                    await self._take_anew(consumer)
            else:
                self._wake_all()
                await flow.changed()

    async def _renew(self, consumer: Consumer) -> None:
        """Give everything back before the broker takes it, and take it anew in the same order."""
        while True:
            await self._aged.wait()
            self._aged.clear()
            async with self._stand_still():
                await self._take_anew(consumer)

    async def _take_anew(self, consumer: Consumer) -> None:
        self.limit = self._wanted()
        if not self.limit and self.handler.flow.waits:
            self._gave_way = self._loop.time()
        await consumer.limit(self.limit)
        self._lanes.sweep()

    def _wanted(self) -> int:
        """Return how many may be unsettled at the broker: all or none, whatever may begin here.

        Who takes fewer than went back before, and gives those back again, puts them behind all the others.
        """
        flow = self.handler.flow
        if not flow.stopped:
            return self.unsettled
        # a try that failed is no reason to deliver all anew; a replica may have it now and then
        return self.limit if flow.waits and self._loop.time() - self._gave_way < SELDOM else 0

    def _look(self) -> None:
        """Look how old the oldest is: one timer for all."""
        self._timer = None
        if (oldest := self._lanes.oldest) is None:
            return
        if (due := oldest.arrived + self._oldest) <= self._loop.time():
            self._aged.set()
        else:
            self._timer = self._loop.call_at(due, self._look)

    async def _work(self, stop: asyncio.Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        HANDLING.set(self._name)
        while not stop.is_set():
            lane: Lane | None = None
            try:
                self._idle.add(task)
                lane = await self._next()
                if lane.waiting and lane.waiting[0].suspect:
                    await self._run_alone(lane, task)
                else:
                    await self._run(lane, task)
                lane = None
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not await outlived(task, self._name):
                    raise
                if lane is not None and task in self._idle:
                    self._lanes.put_back(lane)

    async def _next(self) -> Lane:
        while not (self._lanes.ready and self._may_begin()):
            waiter = self._loop.create_future()
            self._waiting.append(waiter)
            await waiter
        return self._lanes.ready.popleft()

    def _may_begin(self, *, alone: bool = False) -> bool:
        # several queues hand out as many as the flow allows, each
        most = self.handler.flow.most(self.unsettled)
        return (alone or not self._standing) and (most == self.unsettled or self._lanes.running < most)

    async def _run_alone(self, lane: Lane, task: asyncio.Task[None]) -> None:
        """Run a suspect beside no other of its handler, nor beside a suspect of another, until its run is over.

        Of those that wait for their turn one at a time has a slot, and only while what runs beside it ends.
        """
        with ExitStack() as alone:
            await self._alone.acquire()
            alone.callback(self._alone.release)
            while True:
                await self._turn.given()
                await self._gate.reserve()
                held: Held | None = None
                try:
                    async with self._stand_still(settled=False) as still:
                        alone.callback(still.close)
                        if self._gate.due() and self._turn.take_now(alone.close):
                            if (held := self._begin(lane, task, alone=True)) is not None:
                                await self._run_held(held)
                            return
                finally:
                    if held is None:
                        self._gate.give()

    async def _run(self, lane: Lane, task: asyncio.Task[None]) -> None:
        await self._gate.reserve()
        if (held := self._begin(lane, task)) is not None:
            await self._run_held(held)
        else:
            self._gate.give()

    def _begin(self, lane: Lane, task: asyncio.Task[None], *, alone: bool = False) -> Held | None:
        """Let the head of a lane begin, with slots that are reserved; None where it may not, and costs no pace."""
        # what is first by now may have come while the slots were waited for
        suspect = bool(lane.waiting) and lane.waiting[0].suspect
        if not self._may_begin(alone=alone) or (suspect and not alone):
            self._lanes.put_back(lane)
            return None
        if (held := self._lanes.begin(lane)) is not None:
            self._gate.begin()
            self._running.add(task)
            self._idle.discard(task)
        return held

    async def _run_held(self, held: Held) -> None:
        try:
            await self._process(held)
        finally:
            self._lanes.end(held)
            if not self._lanes.running:
                self._still.set()

    @asynccontextmanager
    async def _stand_still(self, *, settled: bool = True) -> AsyncIterator[ExitStack]:
        """Let nothing begin meanwhile, and wait until nothing runs; no longer than the oldest may still be held.

        For what ran to be `settled` too, or not. What it yields ends it before its time.
        """
        with ExitStack() as still:
            await self._exclusive.acquire()
            still.callback(self._go_on)
            self._standing = True
            try:
                async with asyncio.timeout(TAKEN_BACK - self._oldest):
                    while self._lanes.running if settled else self._running:
                        self._still.clear()
                        await self._still.wait()
            except TimeoutError:
                pass  # a thread cannot be cancelled: its run goes on, and finds its message when that comes again
            yield still

    def _over(self) -> None:
        self._running.discard(asyncio.current_task())
        if not self._running:
            self._still.set()

    def _go_on(self) -> None:
        self._standing = False
        self._exclusive.release()
        self._wake_all()

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_all(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
