"""Two healthy services and a sick one, as users write them: every setting is the default."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from benchmarks.sick import RESOURCE, Report, use, work
from bus import Event, Service


class First(Event, type="containment.first"):
    """For the first healthy service."""

    at: float


class Second(Event, type="containment.second"):
    """For the second healthy service."""

    at: float


class Work(Event, type="containment.work"):
    """For the sick service; the fault is what it does to it."""

    at: float
    fault: str = ""


class Unheard(Event, type="containment.unheard"):
    """For a queue that nobody consumes."""

    at: float


class Echo(Event, type="containment.echo"):
    """What the sick service answers itself with in a storm."""

    at: float


first, second, sick = Service("first"), Service("second"), Service("sick")


class Connected:
    """The sick service's resource."""


@first.resource
async def first_report() -> AsyncIterator[Report]:
    """Open the records of the first service."""
    yield Report("first")


@second.resource
async def second_report() -> AsyncIterator[Report]:
    """Open the records of the second service."""
    yield Report("second")


@sick.resource
async def sick_report() -> AsyncIterator[Report]:
    """Open the records of the sick service."""
    yield Report("sick")


@sick.resource
async def connected() -> AsyncIterator[Connected]:
    """Connect to what the sick service needs."""
    await use(int(os.environ[RESOURCE]))
    yield Connected()


@first.on(First)
async def handle_first(event: First, report: Report) -> None:
    """Be healthy."""
    report.handled(event.at)


@second.on(Second)
async def handle_second(event: Second, report: Report) -> None:
    """Be healthy."""
    report.handled(event.at)


@sick.on(Work)
async def handle(event: Work, report: Report, connected: Connected) -> Echo | None:
    """Be as ill as the event says."""
    if event.fault == "storm":
        return Echo(at=event.at)
    await work(event.fault)
    report.handled(event.at)
    return None


@sick.on(Echo)
async def echo(event: Echo) -> Work:
    """Cause what caused it."""
    return Work(at=event.at, fault="storm")
