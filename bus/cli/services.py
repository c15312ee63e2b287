"""`services`: what the app hosts, with every limit, and what nobody handles."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .. import subscriber
from ..app import App
from ..service import Service
from ..topic import matches_any
from . import screen
from .errors import tell_unknown


def services(
    app: App, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """List services, handlers, patterns, policies and limits, and which events nobody handles."""
    tell_unknown()
    rows = [row for service in app.services for row in _rows(app, service)]
    patterns = {pattern for row in rows for pattern in row["patterns"]}
    types = sorted(str(cls.__schema__.type) for cls in app.events)
    unhandled = [kind for kind in types if not matches_any(patterns, kind)]
    if as_json:
        typer.echo(json.dumps({"handlers": rows, "unhandled": unhandled}, indent=2))
    else:
        _show(app, rows, unhandled)


def _rows(app: App, service: Service) -> list[dict[str, Any]]:
    return [
        {
            "service": service.name,
            "handler": handler.name,
            "patterns": list(handler.subscription(app.events).patterns),
            "queues": list(handler.queues),
            "retry": " ".join(str(handler.retry).split()),
            "timeout": handler.timeout,
            "concurrency": handler.concurrency or service.concurrency,
            "rate": None if handler.rate is None else str(handler.rate),
            "ordered_by": handler.ordered_by,
            "idempotent": handler.idempotent,
            "prefetch": subscriber.prefetch(service, handler),
        }
        for handler in service.handlers
    ]


def _show(app: App, rows: list[dict[str, Any]], unhandled: list[str]) -> None:
    from rich.table import Table

    table = Table("handler", "subscribes to", "retry", "timeout", "at once", "prefetch")
    for service in app.services:
        table.add_row(screen.text(service.name, "bold"), *[""] * 3, str(service.concurrency), "")
        own = [row for row in rows if row["service"] == service.name]
        for row in own:
            sources = [*row["patterns"], *(f"queue {name}" for name in row["queues"])]
            retry = row["retry"].replace(" attempts, ", " attempts\n")
            by = f"by {row['ordered_by']}" if row["ordered_by"] else None
            once = "idempotent" if row["idempotent"] else None
            at_once = [str(row["concurrency"]), *filter(None, [row["rate"], by, once])]
            cells = (row["handler"], sources, retry, f"{row['timeout']:g} s", at_once, row["prefetch"])
            table.add_row(*(screen.block(_lines(cell)) for cell in cells), end_section=row is own[-1])
    screen.show(
        screen.text(f"{app.name}: {len(app.services)} services, {len(rows)} handlers", "bold"),
        table,
        screen.text(f"Nobody handles: {', '.join(unhandled)}" if unhandled else "Every event has a handler."),
    )


def _lines(cell: object) -> str:
    return "\n".join(cell) if isinstance(cell, list) else str(cell)
