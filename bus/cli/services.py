"""`services`: what the app hosts, with every limit, and what nobody handles."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from ..app import App
from ..topic import matches_any
from ..worker import prefetch


def services(
    app: App, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """List services, handlers, patterns, policies and limits, and which events nobody handles."""
    rows = [row for service in app.services for row in _rows(app, service)]
    patterns = {pattern for row in rows for pattern in row["patterns"]}
    unhandled = sorted(
        kind for cls in app.events if (kind := str(cls.__schema__.type)) and not matches_any(patterns, kind)
    )
    if as_json:
        sys.stdout.write(json.dumps({"handlers": rows, "unhandled": unhandled}, indent=2) + "\n")
    else:
        _print(app, rows, unhandled)


def _rows(app: App, service: Any) -> list[dict[str, Any]]:
    return [
        {
            "service": service.name,
            "handler": handler.name,
            "patterns": list(handler.subscription(app.events).patterns),
            "queues": list(handler.queues),
            "retry": str(handler.retry),
            "timeout": handler.timeout,
            "concurrency": handler.concurrency or service.concurrency,
            "prefetch": prefetch(service, handler),
        }
        for handler in service.handlers
    ]


def _print(app: App, rows: list[dict[str, Any]], unhandled: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{app.name}: {len(app.services)} services, {len(rows)} handlers")
    for column in ("handler", "subscribes to", "retry", "limits"):
        table.add_column(column, overflow="fold")
    for row in rows:
        sources = [*row["patterns"], *(f"queue {name}" for name in row["queues"])]
        limits = f"{row['timeout']:g} s, {row['concurrency']} at once,\n{row['prefetch']} unsettled"
        table.add_row(f"{row['service']}.{row['handler']}", "\n".join(sources), row["retry"], limits)
    console = Console()
    console.print(table)
    console.print(f"Nobody handles: {', '.join(unhandled)}" if unhandled else "Every event has a handler.")
