"""The roles of docs/security.md as users of the private broker: as the page has them, and with less."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.broker.node import Node


PAGE: Final = Path(__file__).parents[2] / "docs" / "security.md"
LINE: Final = re.compile(r"^rabbitmqctl (?:add_user|set_permissions|set_topic_permissions) .*$", re.MULTILINE)
PASSWORD: Final = "PASSWORD"


@dataclass(frozen=True)
class Rights:
    """What a user may configure, write and read."""

    configure: str
    write: str
    read: str

    def less(self) -> Iterator[tuple[str, Rights]]:
        """Yield what was taken away, and what is left: one alternative of one expression at a time."""
        for kind in ("configure", "write", "read"):
            expression = getattr(self, kind)
            for left in _less(expression):
                yield f"{kind}: {expression} -> {left}", replace(self, **{kind: left})


def _less(expression: str) -> Iterator[str]:
    """Yield the expression without each of its alternatives, and without what may be left out."""
    if expression == "^$":
        return
    groups = list(re.finditer(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)(\??)", expression))
    if not groups:
        yield "^$"
    for group in groups:
        start, end = group.span()
        if group[2]:
            yield expression[:start] + expression[end:]
            yield expression[: end - 1] + expression[end:]
        alternatives = _split(group[1])
        if len(alternatives) > 1:
            for each in alternatives:
                others = "|".join(other for other in alternatives if other != each)
                yield f"{expression[:start]}({others}){expression[end - len(group[2]) :]}"
        for inner in alternatives:
            for shorter in _less(inner) if "(" in inner else ():
                yield expression.replace(inner, shorter)


def _split(text: str) -> list[str]:
    """Return the alternatives of an expression, those in brackets not taken apart."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def lines(role: str) -> list[list[str]]:
    """Return the commands of the page that make a role, as words."""
    found = [words for line in LINE.findall(PAGE.read_text()) if role in (words := shlex.split(line))]
    assert len(found) >= 2, f"{PAGE.name} has no lines for {role}"
    return found


def rights(role: str) -> Rights:
    """Return what the page lets a role do."""
    (permissions,) = [words for words in lines(role) if words[1] == "set_permissions"]
    assert permissions[2:5] == ["-p", "/", role]
    return Rights(*permissions[5:])


async def user(node: Node, vhost: str, role: str) -> str:
    """Make the role's user in a virtual host, by the commands of the page, and return the URL that it uses."""
    name = f"{role}-{vhost}"
    for _, *words in lines(role):
        changed = [{"/": vhost, role: name}.get(word, word) for word in words]
        await asyncio.to_thread(node.ctl, *changed)
    return url(node, vhost, name)


async def limited(node: Node, vhost: str, name: str, to: Rights) -> str:
    """Make a user with these rights, or give them to the one that there is; return the URL that it uses."""
    rights = ", ".join(f'<<"{_erlang(each)}">>' for each in (to.configure, to.write, to.read))
    user, add = f'<<"{name}">>', f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{PASSWORD}">>, <<"tests">>)'
    allow = f'rabbit_auth_backend_internal:set_permissions({user}, <<"{vhost}">>, {rights}, <<"tests">>)'
    exists = f"rabbit_auth_backend_internal:exists({user})"
    await asyncio.to_thread(node.ctl, "eval", f"case {exists} of true -> ok; false -> {add} end, {allow}.")
    return url(node, vhost, name)


def _erlang(text: str) -> str:
    return text.replace("\\", "\\\\")


def url(node: Node, vhost: str, name: str) -> str:
    """Return the URL of a user of these."""
    return node.url(vhost).replace("guest:guest", f"{name}:{PASSWORD}")
