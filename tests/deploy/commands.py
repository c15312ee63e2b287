"""The guide's commands for Docker where there is none: what a container would run is run here, the rest is read."""

from __future__ import annotations

import shlex

from .compose import CLUSTER, COMPOSE, ROOT, clustered, services, workers


OPTIONS = {
    "up": {"--build", "--detach", "--wait", "--scale"},
    "exec": set[str](),
    "logs": {"--follow"},
    "ps": set[str](),
    "down": set[str](),
    "stop": set[str](),
    "start": {"--wait"},
}
"""The verbs of `docker compose` that the guide uses, and their options."""


def contained(line: str) -> str:
    """Return what is run instead of a command for Docker. Fails where it names what is not there."""
    words = shlex.split(line)
    if words[1] == "build":
        first, file, second, _, context = words[2:]
        assert (first, second, context) == ("-f", "-t", "."), line
        assert (ROOT / file).is_file(), line
        return "true"
    assert words[1:3] == ["compose", "-f"], line
    assert (ROOT / words[3]) == COMPOSE, line
    known, rest = services(), words[4:]
    if rest[0] == "-f":
        assert (ROOT / rest[1]) == CLUSTER, line
        known, rest = clustered()["services"], rest[2:]
    verb, rest = rest[0], rest[1:]
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        assert option in OPTIONS[verb], line
        if option == "--scale":
            service, _, count = rest.pop(0).partition("=")
            assert (service in known, count.isdecimal()) == (True, True), line
    if verb != "exec":
        assert set(rest) <= set(known), line
        return "true"
    assert rest[0] in known, line
    return shlex.join(rest[1:]) if rest[0] in workers() else "true"
