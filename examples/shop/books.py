"""Whether it adds up: what the services have, compared with the orders that went in."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from bus import Letter
from events.order import OrderPlaced
from handlers.inventory import ARTICLES
from handlers.order import State

from .stage import Stage
from .watch import Watch


@dataclass(frozen=True, slots=True)
class Books:
    """The orders of one run by how they ended, from the carrier, the order book and the payment provider."""

    placed: frozenset[UUID]
    shipped: frozenset[UUID]
    rejected: frozenset[UUID]
    refunded: frozenset[UUID]
    problems: tuple[str, ...]


def close(orders: Sequence[OrderPlaced], stage: Stage, letters: Sequence[Letter], watch: Watch) -> Books:
    """Return the books of these orders, with a line for whatever does not add up."""
    placed = frozenset(order.order_id for order in orders)
    shipped = placed & stage.carrier.parcels.keys()
    rejected = placed & stage.book.reached(State.REJECTED)
    refunded = placed & stage.provider.refunded.keys()
    sent = [order for order in orders if order.order_id in shipped]
    problems = (
        *_ends(placed, (shipped, rejected, refunded)),
        *_book(placed, stage),
        *_stock(placed, sent, stage),
        *_money(placed, sent, stage),
        *_mail(placed, stage, letters),
        *_letters(letters, watch),
    )
    return Books(placed, shipped, rejected, refunded, problems)


def _ends(placed: Collection[UUID], ends: Iterable[Collection[UUID]]) -> Iterator[str]:
    count = Counter(order_id for end in ends for order_id in end)
    if never := [order_id for order_id in placed if count[order_id] == 0]:
        yield f"{len(never)} of {len(placed)} orders were neither shipped nor rejected nor refunded, such as {never[0]}"
    if twice := [order_id for order_id in placed if count[order_id] > 1]:
        yield f"{len(twice)} orders ended in two ways, such as {twice[0]}"


def _book(placed: frozenset[UUID], stage: Stage) -> Iterator[str]:
    facts = {
        State.PLACED: placed,
        State.PAID: stage.provider.charged.keys(),
        State.SHIPPED: stage.carrier.parcels.keys(),
        State.REFUNDED: stage.provider.refunded.keys(),
    }
    for state, orders in facts.items():
        noted, true = len(placed & stage.book.reached(state)), len(placed & orders)
        if noted != true:
            yield f"the order book has {noted} orders {state.name.lower()}, the service that did it {true}"


def _stock(placed: Collection[UUID], sent: Iterable[OrderPlaced], stage: Stage) -> Iterator[str]:
    gone = Counter[str]()
    for line in (line for order in sent for line in order.lines):
        gone[line.sku] += line.quantity
    # a broker may still hold orders of an earlier run, and theirs is not this run's stock
    for order_id, reserved in stage.warehouse.reserved.items():
        gone += reserved if order_id not in placed else Counter()
    for sku, article in ARTICLES.items():
        if article.stock != stage.warehouse.left[sku] + gone[sku]:
            yield f"{sku}: {article.stock} in stock at first, {stage.warehouse.left[sku]} left, {gone[sku]} shipped"


def _money(placed: Collection[UUID], sent: Iterable[OrderPlaced], stage: Stage) -> Iterator[str]:
    charged = sum(amount for order_id, amount in stage.provider.charged.items() if order_id in placed)
    refunded = sum(amount for order_id, amount in stage.provider.refunded.items() if order_id in placed)
    worth = sum(ARTICLES[line.sku].price * line.quantity for order in sent for line in order.lines)
    if charged - refunded != worth:
        yield f"{charged / 100:.2f} charged, {refunded / 100:.2f} refunded, but {worth / 100:.2f} shipped"


def _mail(placed: Collection[UUID], stage: Stage, letters: Iterable[Letter]) -> Iterator[str]:
    told = Counter(str(mail.order_id) for mail in stage.mailbox.sent.values())
    told.update(str(letter.message.correlation_id) for letter in letters if letter.service == "notification")
    if wrong := [order_id for order_id in placed if told[str(order_id)] != 1]:
        yield f"for {len(wrong)} orders there is not one mail, or one dead letter instead, such as {wrong[0]}"


def _letters(letters: Sequence[Letter], watch: Watch) -> Iterator[str]:
    stored = Counter(f"{letter.service}.{letter.handler}" for letter in letters)
    for name, row in watch.rows.items():
        if row.dead_letters != stored[name]:
            yield f"{name} gave up on {row.dead_letters} messages, but {stored[name]} dead letters are stored"
    undecodable = sum(letter.failure.reason == "undecodable" for letter in letters)
    if undecodable != (takers := len(watch.takers("order.placed"))):
        yield f"the malformed order is the dead letter of {undecodable} handlers, not of {takers}"
