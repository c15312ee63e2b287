"""KeyboardInterrupt and GeneratorExit: a handler's own are failures of its message, the real ones are left alone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bus import DeadLetter, Service, immediate
from bus.cli.signals import stop_on_signals

from .played import Placed, Played, handling, process


OWN = pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])


@pytest.fixture
def _app_py_run() -> Iterator[None]:
    """Signals are handled as in `app.py run`."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    asyncio.run(_signals())
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def _signals() -> None:
    stop_on_signals(asyncio.Event(), None, "worker stopping", None)


def raising(kind: type[BaseException]) -> Service:
    async def work(placed: Placed) -> None:
        raise kind

    return handling(work, retry=immediate(1))


async def failed(service: Service) -> tuple[str, str]:
    delivery = Played()
    try:
        await process(service)(delivery)
    except (KeyboardInterrupt, GeneratorExit) as raised:
        pytest.fail(f"it went on as {raised!r}")
    (outcome,) = delivery.settled
    assert isinstance(outcome, DeadLetter)
    return outcome.failure.error_type, outcome.failure.error


@OWN
async def test_what_a_plain_function_raises_is_its_own(kind: type[BaseException]) -> None:
    def work(placed: Placed) -> None:
        raise kind

    told = await failed(handling(work, retry=immediate(1)))
    assert told == ("HandlerError", f"the handler raised {kind.__name__}")


@OWN
@pytest.mark.usefixtures("_app_py_run")
async def test_what_an_async_function_raises_under_app_py_run_is_its_own(kind: type[BaseException]) -> None:
    assert await failed(raising(kind)) == (kind.__name__, "")


async def test_where_ctrl_c_may_raise_a_keyboard_interrupt_is_left_alone() -> None:
    assert await failed(raising(GeneratorExit)) == ("GeneratorExit", "")
    delivery = Played()
    with pytest.raises(KeyboardInterrupt):
        await process(raising(KeyboardInterrupt))(delivery)
    assert delivery.settled == []


async def test_a_handler_whose_coroutine_is_closed_has_not_failed() -> None:
    async def work(placed: Placed) -> None:
        await asyncio.sleep(86400)

    delivery = Played()
    task = asyncio.ensure_future(process(handling(work, retry=immediate(1)))(delivery))
    await asyncio.sleep(0)
    task.get_coro().close()  # type: ignore[union-attr]
    task.cancel()
    with suppress(RuntimeError):  # nothing is left that could be cancelled
        await task
    assert delivery.settled == []
