"""Entrance: how copies come into the streams of a service, where a confirm is believed only of a whole lot.

When a stream gets another leader, RabbitMQ 3.10 sends what still waits for its confirm again, but numbered as the
channel counts and not as the stream does (`resend_all` of rabbit_stream_queue). From then on the stream takes what
comes by that channel for duplicates: each is confirmed, and dropped. What was sent again is never confirmed. So a
channel has one lot under way at a time, is used no more after one that was not confirmed whole, and nothing of such a
lot is believed to be stored. 4.0 has mended it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from ...errors import Fate, PublishError
from ...lots import Lots
from .channel import Parcel
from .publisher import Publisher
from .wire import Malformed


class Entrance:
    """Stores parcels that go to streams, many at a time; `begin` is called before the publisher is first used."""

    def __init__(self, publisher: Publisher, begin: Callable[[], None]) -> None:
        self._publisher = publisher
        self._begin = begin
        self._lots = Lots(self._stored, asyncio.Lock())

    async def store(self, parcels: Sequence[Parcel]) -> None:
        """Return when every parcel is stored; raises as a publisher does."""
        self._begin()
        if (error := await self._lots(parcels)) is not None:
            raise error

    async def _stored(self, asked: Sequence[Sequence[Parcel]]) -> Sequence[PublishError | None]:
        failed: dict[str, PublishError] = {}
        lots = deque(_without_twins(parcel for parcels in asked for parcel in parcels))
        while lots:
            lot = lots.popleft()
            try:
                await self._publisher.publish(lot)
            except PublishError as error:
                malformed = isinstance(error.__cause__, Malformed)
                if malformed and len(lot) > 1:
                    lots.extendleft([parcel] for parcel in reversed(lot))  # only one of them may be it
                    continue
                if not malformed:
                    self._publisher.renew()
                failed |= {id: error for id, fate in error.fates.items() if fate is not Fate.STORED}
            except BaseException:
                self._publisher.renew()
                raise
        return [next((failed[parcel.id] for parcel in parcels if parcel.id in failed), None) for parcels in asked]


def _without_twins(parcels: Iterable[Parcel]) -> Iterator[list[Parcel]]:
    """Yield the parcels in lots in which no two have the same id, by which a publisher tells their fates."""
    left = list(parcels)
    while left:
        lot: dict[str, Parcel] = {}
        twins = [parcel for parcel in left if lot.setdefault(parcel.id, parcel) is not parcel]
        yield [*lot.values()]
        left = twins
