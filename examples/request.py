"""A request: publish an event, and wait for the one that it causes; a failure is told at once.

It prints:
    a teapot costs 9.90
    quotes.quote gave up: we sell no unicorns
    nobody answered within a day
"""

import asyncio
from datetime import timedelta

from bus import Event, Reject, RequestFailed, RequestTimeout, Service
from bus.testing import Tester


class QuoteAsked(Event, type="quote.asked"):
    sku: str


class Quote(Event, type="quote.given"):
    cents: int


quotes = Service("quotes")


@quotes.on(QuoteAsked)
async def quote(asked: QuoteAsked) -> Quote | None:
    if asked.sku == "unicorn":
        raise Reject("we sell no unicorns")
    return Quote(cents=990) if asked.sku == "teapot" else None


async def main() -> None:
    async with Tester(quotes) as bus:
        answer = await bus.request(QuoteAsked(sku="teapot"), Quote, timeout=2)
        print(f"a teapot costs {answer.cents / 100:.2f}")
        try:
            await bus.request(QuoteAsked(sku="unicorn"), Quote, timeout=2)
        except RequestFailed as failed:
            print(f"{failed.handler} gave up: {failed.error}")
        try:
            await bus.request(QuoteAsked(sku="kettle"), Quote, timeout=timedelta(days=1))
        except RequestTimeout:
            print("nobody answered within a day")


if __name__ == "__main__":
    asyncio.run(main())
