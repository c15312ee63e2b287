"""Publishing: every message confirmed, through outages, within a timeout."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from operator import itemgetter
from typing import Final

from pamqp import commands

from ...errors import AccessRefused, BusUnavailable, Fate, PublishRefused, Unroutable
from .address import Address
from .channel import Batch, Channel, ChannelClosed, LinkLost, Parcel
from .largest import TooLarge, fits, limit_in
from .link import Link
from .patience import patient
from .silence import Silence
from .supervisor import Backoff, Supervisor
from .wire import Malformed


ASK_AFTER: Final = 2.0
"""Seconds without a confirm after which a link is asked for an answer; one that is dead would be believed for long."""
LOOKS: Final = 2
"""Looks, as far apart, between which a link confirmed nothing, before another host is tried."""
SILENT: Final = "it answers, but confirms nothing: is it cut off from its cluster?"
OPEN_WITHIN: Final = 4.0
"""Seconds after which a link is given up that does not open a channel, though it takes bytes."""
ELECTION: Final = 5.0
"""Seconds for which what was refused is published again: a queue that has lost its leader refuses until it has one."""

TOPIC: Final = re.compile(r"access to topic '(.*)' in exchange '(.*?)' in vhost")
"""How the broker names what a user may not publish to a topic exchange that it may write to."""
EXCHANGE: Final = re.compile(r"exchange '(.*?)' in vhost")
"""How the broker names an exchange; the names of the virtual host and of the user follow."""


class WriteRefused(PublishRefused, AccessRefused):
    """The broker refused to store, and waiting will not help: the user may not write there."""

    def __init__(self, why: str, fates: Mapping[str, Fate]) -> None:
        super().__init__(f"{why}; give the user of BUS_URL the permission to write there", fates)


class Publisher:
    """Publishes parcels on one confirm channel of a supervised link; many tasks may publish at once.

    A message whose fate is unknown, because the link was lost before its confirm, is published again with the same id
    on the next link, until the timeout. `keep` runs for as long as anyone publishes. `cut_off` is told of a host that
    confirmed nothing, where the next one did. A `whole` publisher believes no confirm where another of the same publish
    is missing, and leaves it to others to find out whether the host is cut off.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        exchange: str,
        timeout: float,
        cut_off: Callable[[Address, str], None] = lambda _, __: None,
        *,
        whole: bool = False,
    ) -> None:
        self._supervisor = supervisor
        self._whole = whole
        self._cut_off = cut_off
        self._left: Address | None = None
        self._exchange = exchange
        self._timeout = timeout
        self._channel: Channel | None = None
        self._retired: list[Channel] = []
        self._wanted = asyncio.Event()
        self._opened: asyncio.Future[None] | None = None
        self._deadlines: deque[tuple[float, Batch]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes = inf

    async def keep(self) -> None:
        """Open channels, and watch over confirms; ends by being cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_open(), name="publish channel")
            tasks.create_task(self._watch(), name="publish watch")

    async def _watch(self) -> None:
        """Ask the link for an answer where no confirm came for long; where it answers, another host may confirm."""
        oldest: Batch | None = None
        silence, looks = Silence(), 0
        while True:
            await asyncio.sleep(ASK_AFTER)
            sent = [batch for _, batch in self._deadlines]
            waiting = next((batch for batch in sent if not batch.future.done()), None)
            stuck, oldest = waiting is oldest is not None, waiting
            looks = silence.look(sent, looks)
            if (channel := self._channel) is None or not (stuck or looks >= LOOKS):
                continue
            answers = await self._ask(channel.link)
            if answers and looks >= LOOKS and self._supervisor.hosts > 1 and not self._whole:
                self._left, looks = channel.link.address, 0
                self._give_up(channel.link, SILENT)

    def _confirmed_by(self, address: Address) -> None:
        """Tell of the host that was left for silence, where another confirms; the same one is not cut off any more."""
        left, self._left = self._left, None
        if left not in (None, address):
            self._cut_off(left, SILENT)

    async def _ask(self, link: Link) -> bool:
        """Tell whether the link answers; one that does not is given up, unless it is blocked, which says why."""
        if link.blocked:
            return False
        try:
            async with patient(OPEN_WITHIN):
                (await link.channel()).leave()
        except TimeoutError:
            self._give_up(link)
            return False
        except ConnectionError:
            return False
        return True

    def _give_up(self, link: Link, why: str = f"no answer within {OPEN_WITHIN:g} s") -> None:
        if not link.blocked:
            link.give_up(why)

    async def _keep_open(self) -> None:
        """Open a channel whenever one is wanted.

        It is nobody's publish that opens the channel: those whose time is over would begin anew again and again.
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                self._channel = await self._open()
            except (ConnectionError, AccessRefused) as error:
                self._tell(error)
            else:
                self._tell(None)

    def _tell(self, error: Exception | None) -> None:
        opened, self._opened = self._opened, None
        if opened is None or opened.done():
            return
        if error is None:
            opened.set_result(None)
        else:
            opened.set_exception(error)
            opened.exception()  # whoever waited may have left

    async def publish(self, parcels: Sequence[Parcel], deadline: float | None = None) -> None:
        """Return when every parcel is stored. Raises Unroutable, PublishRefused or BusUnavailable with all fates.

        `deadline` is on the loop's clock; without one it is the publish timeout from now.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._timeout
        channel = self._channel
        if (
            channel is not None
            and channel.error is None
            and (link := channel.link).open_for_writing
            and (link.largest is None or fits(parcels, link.largest))
        ):
            told = await self._send(channel, parcels, deadline).future
            if told.count(Fate.STORED) == len(told):
                if self._left is not None:
                    self._confirmed_by(channel.link.address)
                return
            await self._insist(parcels, deadline, channel, told)
        else:
            await self._insist(parcels, deadline)

    async def _insist(
        self, parcels: Sequence[Parcel], deadline: float, channel: Channel | None = None, told: list[Fate] | None = None
    ) -> None:
        """Publish what is unknown again and again, until every fate is known or the timeout is over."""
        loop = asyncio.get_running_loop()
        fates = dict.fromkeys((parcel.id for parcel in parcels), Fate.UNKNOWN)
        why, allowed, asked_until, limit = "", True, 0.0, None
        # where one queue refuses, others do not, and get another copy with each try
        backoff, hesitation = Backoff(), Backoff(first=0.5, limit=2)
        left = parcels
        while left:
            if channel is None or told is None:
                try:
                    channel = await self._writable(deadline)
                except TimeoutError:
                    why = self._supervisor.trouble or why
                    break
                except ConnectionError as error:
                    why = str(error)
                    await asyncio.sleep(min(backoff(), max(deadline - loop.time(), 0)))
                    continue
                if (limit := channel.link.largest or limit) is not None:
                    fates |= {parcel.id: Fate.REFUSED for parcel in left if len(parcel.body) > limit}
                    left = [parcel for parcel in left if len(parcel.body) <= limit]
                told = await self._send(channel, left, deadline).future
                if Fate.STORED in told:
                    self._confirmed_by(channel.link.address)
            if self._whole and Fate.UNKNOWN in told:
                told = [Fate.UNKNOWN] * len(told)
            if isinstance(channel.error, ChannelClosed):
                why, allowed = channel.error.text, channel.error.code != 403
                limit = channel.link.largest = limit_in(why) or channel.link.largest
                told = [_blamed(parcel, fate, channel.error) for parcel, fate in zip(left, told, strict=True)]
            elif Fate.REFUSED in told:
                self._retire(channel)
                asked_until = asked_until or loop.time() + ELECTION
            elif Fate.UNKNOWN in told and channel.link.open_for_writing:
                self._retire(channel)
            fates |= {parcel.id: fate for parcel, fate in zip(left, told, strict=True)}
            again = {Fate.UNKNOWN, Fate.REFUSED} if loop.time() < asked_until else {Fate.UNKNOWN}
            left = [parcel for parcel in left if fates[parcel.id] in again]
            channel = told = None
            if left and loop.time() >= deadline:
                why = self._supervisor.trouble or why
                break
            if left:
                pause = hesitation if any(fates[parcel.id] is Fate.REFUSED for parcel in left) else backoff
                await asyncio.sleep(min(pause(), max(deadline - loop.time(), 0)))
        self._raise_for(parcels, fates, why, limit, allowed=allowed)

    def renew(self) -> None:
        """Use another channel from now on."""
        if self._channel is not None:
            self._retire(self._channel)

    def _retire(self, channel: Channel) -> None:
        """Use another channel from now on: what refused a channel once, or kept silent to it, may do so for ever."""
        if self._channel is channel:
            self._channel = None
            self._retired.append(channel)

    def _send(self, channel: Channel, parcels: Sequence[Parcel], deadline: float) -> Batch:
        try:
            batch = channel.publish(parcels)
        except Malformed as error:
            fates = {parcel.id: Fate.REFUSED for parcel in parcels}
            raise PublishRefused(f"the headers do not fit into a frame: {error}", fates) from error
        deadlines = self._deadlines
        while deadlines and deadlines[0][1].future.done():
            deadlines.popleft()
        late = bool(deadlines) and deadlines[-1][0] > deadline
        deadlines.append((deadline, batch))
        if late:  # published again after an outage, among others that began later
            self._deadlines = deque(sorted(deadlines, key=itemgetter(0)))
        if deadline < self._wakes:
            self._wake_at(deadline)
        return batch

    def _wake_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes = asyncio.get_running_loop().call_at(deadline, self._sweep), deadline

    def _sweep(self) -> None:
        """End the batches that are overdue. One timer for all: a timeout for each message costs too much."""
        self._timer, self._wakes = None, inf
        now = asyncio.get_running_loop().time()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1].future.done()):
            self._deadlines.popleft()[1].end()
        if self._deadlines:
            self._wake_at(self._deadlines[0][0])

    async def _writable(self, deadline: float) -> Channel:
        """Return the channel, ready to take more. Raises TimeoutError at the deadline."""
        channel = self._channel
        async with asyncio.timeout_at(deadline):
            while channel is None or channel.error is not None:
                await self._supervisor.link()
                if self._opened is None:
                    self._opened = asyncio.get_running_loop().create_future()
                    self._wanted.set()
                await asyncio.shield(self._opened)
                channel = self._channel
            await channel.link.writable()
        return channel

    async def _open(self) -> Channel:
        link = await self._supervisor.link()
        await link.writable()  # a blocked broker does not answer either
        try:
            async with patient(OPEN_WITHIN):
                for retired in [retired for retired in self._retired if retired.idle]:
                    self._retired.remove(retired)
                    retired.leave()
                scratch = await link.channel()
                try:
                    await scratch.rpc(
                        commands.Exchange.Declare(exchange=self._exchange, exchange_type="topic", durable=True)
                    )
                except ChannelClosed:
                    # no right to configure, or declared otherwise: what is there may do, and publishing tells
                    pass
                finally:
                    scratch.leave()
                return await link.channel(confirm=True)
        except TimeoutError as error:
            self._give_up(link)
            raise LinkLost(f"no answer within {OPEN_WITHIN:g} s") from error

    def _raise_for(
        self, parcels: Sequence[Parcel], fates: dict[str, Fate], why: str, limit: int | None, *, allowed: bool
    ) -> None:
        told = set(fates.values())
        if Fate.UNKNOWN in told:
            because = f": {why}" if why else ""
            raise BusUnavailable(
                f"not confirmed within {self._timeout:g} s{because}; publish again with id= to be safe", fates
            )
        refused = max((len(parcel.body) for parcel in parcels if fates[parcel.id] is Fate.REFUSED), default=0)
        if limit is not None and refused > limit:
            raise TooLarge(refused, limit, fates)
        if Fate.UNROUTABLE in told:
            raise Unroutable("no queue wants the message", fates)
        if Fate.REFUSED in told:
            if not allowed:
                raise WriteRefused(why, fates)
            raise PublishRefused(f"the broker refused to store the message{': ' + why if why else ''}", fates)

    async def aclose(self) -> None:
        """Stop the timer. Whoever still publishes gets its answer from the link."""
        if self._timer is not None:
            self._timer.cancel()


def _blamed(parcel: Parcel, fate: Fate, error: ChannelClosed) -> Fate:
    """Return refused for a parcel that the broker means as it closes the channel; the others go again."""
    if (limit := limit_in(error.text)) is not None:
        meant = not fits([parcel], limit)
    elif (topic := TOPIC.search(error.text)) is not None:
        meant = (parcel.key, parcel.exchange) == topic.groups()
    else:
        exchange = EXCHANGE.search(error.text)
        meant = exchange is not None and exchange[1] == (parcel.exchange or "amq.default")
    return Fate.REFUSED if fate is Fate.UNKNOWN and meant else fate
