"""Wrapped: a delivery around another one, which it passes on to."""

from __future__ import annotations

from .transport import Delivery


class WrappedDelivery:
    """What every wrapper has of its delivery; how far that has come, and how it is settled, is the wrapper's own."""

    __slots__ = ("_delivery", "message")

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.message = delivery.message

    @property
    def redelivered(self) -> int:
        """How often it came before without an outcome."""
        return self._delivery.redelivered

    @property
    def routed_by(self) -> str | None:
        """The key by which it was sent here."""
        return self._delivery.routed_by

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills workers."""
        return self._delivery.suspect

    @property
    def lost(self) -> bool:
        """Whether it cannot be settled any more."""
        return self._delivery.lost

    async def begin(self) -> int:
        """Note that a run begins; return how many never ended."""
        return await self._delivery.begin()

    async def end(self) -> None:
        """Note that the run is over."""
        await self._delivery.end()
