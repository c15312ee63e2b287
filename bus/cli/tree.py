"""A survey of the topology as a tree on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ..topology import CASCADE, MOVING_HELD, Part, Survey, Version
from . import screen


if TYPE_CHECKING:
    from rich.tree import Tree


WHAT: Final = {
    "queue": "queue",
    "step": "retry step",
    "exchange": "exchange",
    "letters": "dead letters",
    "suspects": "suspects",
    "delay": "delay",
    "record": "record",
}
WHY: Final = {
    "": "",
    "messages": "it has messages: --with-messages",
    "consumers": "somebody consumes it, such as an old replica: --with-consumers",
    "later": "the newest version of its service declares it; if this code is newer, `topology apply` it first",
    "moving": MOVING_HELD,
    "letters": "it has open dead letters: `dead replay` or `dead discard` them with --service",
    "service": "others of its service stay",
}
LEGEND: Final = (
    "Ready: messages that wait to be taken; what a worker holds is not counted. Consumers are no replicas: "
    "one worker may be several consumers of a queue. A stream (dead letters, suspects, record) counts all its entries, "
    "marks too, and is a few seconds behind."
)


def told(part: Part) -> str:
    """Return a part in words: what it is, its name, and what is in it."""
    if part.kind == "binding":
        return f"binding {part.name} ← {part.exchange} {part.key}"
    return f"{WHAT[part.kind]} {part.name}{_inside(part)}"


def why(part: Part) -> str:
    """Return why a prune leaves it, after a colon; nothing where it does not."""
    return f": {WHY[part.held]}" if part.held else ""


def _inside(part: Part) -> str:
    if part.there is False:
        return ": not there yet"
    if part.there is None or part.kind == "exchange":
        return ""
    if part.kind in ("letters", "suspects", "record"):
        return f": {part.messages} {'open' if part.at is not None and part.kind == 'letters' else 'entries'}"
    consumers = (
        "" if part.kind != "queue" else f", {part.consumers or 'no'} consumer{'' if part.consumers == 1 else 's'}"
    )
    return f": {part.messages} ready{consumers}"


def show(found: Survey) -> None:
    """Print a survey."""
    from rich.tree import Tree

    root = Tree(screen.text(f"{found.app} at {found.broker}", "bold"))
    for service in dict.fromkeys(part.service for part in found.declared if part.service not in ("", CASCADE)):
        _add_service(root, service, found)
    _add_shared(root, found.declared)
    _add_versions(root, found.versions)
    _add_all(root, "left over", (told(part) + by(part) + why(part) for part in found.left), "yellow")
    _add_all(root, "not there yet", (told(part) for part in _not_shown(found)), "red")
    legend = LEGEND if any(part.there for part in found.declared) else ""
    screen.show(root)
    screen.show(*(screen.text(line, "dim") for line in (found.trouble, legend) if line), wrap=False)


def _not_shown(found: Survey) -> list[Part]:
    """Return what is missing and has no place of its own in the tree."""
    return [part for part in found.missing if part.kind == "exchange" and part.service != CASCADE]


def _add_service(root: Tree, service: str, found: Survey) -> None:
    branch = root.add(screen.text(service, "bold"))
    own = [part for part in found.declared if part.service == service and part.kind != "exchange"]
    stale: dict[str, list[Part]] = {}
    for part in found.left:
        if part.kind == "binding":
            stale.setdefault(part.name, []).append(part)
    steps = [part for part in own if part.kind == "step" and part.there is not False]
    if steps:
        first, *others = steps
        names = ", ".join([first.name, *(f"….{part.name.rpartition('.')[2]}" for part in others)])
        branch.add(screen.text(f"retry steps {names}: {sum(part.messages for part in steps)} ready"))
    for part in own:
        if part in steps:
            continue
        leaf = branch.add(screen.text(told(part), "red" if part.there is False else ""))
        if part.kind == "queue":
            for exchange, key in part.bindings:
                leaf.add(screen.text(f"{key} ← {exchange}"))
            for binding in stale.get(part.name, ()):
                leaf.add(screen.text(f"{binding.key} ← {binding.exchange} (left over)", "yellow"))


def _add_shared(root: Tree, declared: Sequence[Part]) -> None:
    cascade = [part for part in declared if part.service == CASCADE]
    if cascade:
        missing = any(part.there is False for part in cascade)
        state = f"{sum(part.messages for part in cascade)} ready"
        told_of = "not there yet, or not all of it" if missing else state
        root.add(screen.text(f"delay cascade: {told_of}", "red" if missing else ""))
    for part in declared:
        if part.kind == "record":
            root.add(screen.text(told(part)))


def _add_versions(root: Tree, versions: Sequence[Version]) -> None:
    lines = (
        f"{version.service}: tidegate {version.version}, {version.worker}, {version.at:%Y-%m-%d %H:%M:%S}"
        f"{', its newest version' if version.newest else ''}"
        for version in versions
        if not version.ours
    )
    _add_all(root, "declared by other versions", lines)


def by(part: Part) -> str:
    """Return who declared it last, in brackets; nothing of what this code declares."""
    return "" if part.at is None else f" (declared {part.at:%Y-%m-%d %H:%M:%S} by {part.worker})"


def _add_all(root: Tree, title: str, lines: Iterable[str], style: str = "") -> None:
    if listed := list(lines):
        branch = root.add(screen.text(title, "bold"))
        for line in listed:
            branch.add(screen.text(line, style))
