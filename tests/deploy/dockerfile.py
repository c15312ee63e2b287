"""A Dockerfile taken apart: its stages and their instructions, as far as ours has any; the rest is an error."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


KEYWORDS = frozenset(
    ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "USER", "WORKDIR")
)
NAME = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, its `--flags`, and what follows them."""

    keyword: str
    flags: Mapping[str, str]
    text: str

    @property
    def words(self) -> list[str] | None:
        """The JSON form, which is run without a shell; None for the shell's form."""
        return [str(word) for word in json.loads(self.text)] if self.text.startswith("[") else None


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, keyword: str) -> Instruction:
        """Return the instruction of this kind that counts."""
        return [each for each in self.instructions if each.keyword == keyword][-1]


def parse(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile. Raises ValueError for what it does not know."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in map(_instruction, _lines(text)):
        if instruction.keyword == "FROM":
            base, _, name = filled(instruction.text, arguments).partition(" AS ")
            stages.append(Stage(base.strip(), name.strip()))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.keyword == "ARG":
            name, _, default = instruction.text.partition("=")
            arguments[name] = default
        else:
            raise ValueError(f"{instruction.keyword} stands before the first FROM")
    return stages


def pairs(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the names and values of an ENV."""
    found = {}
    for word in shlex.split(text):
        name, given, value = word.partition("=")
        if not given:
            raise ValueError(f"ENV {text}: name=value is wanted")
        found[name] = filled(value, environment)
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return the text with its `$NAME` and `${NAME}` filled in. Raises KeyError for one that has no value."""
    return NAME.sub(lambda found: values[found[1] or found[2]], text)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines that stand there once continued ones are joined; comments may stand between their parts."""
    parts: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        goes_on = line.rstrip().endswith("\\")
        parts.append(line.rstrip().removesuffix("\\") if goes_on else line)
        if not goes_on:
            yield "".join(parts).strip()
            parts = []
    if parts:
        raise ValueError("the last line goes on, and nothing follows")


def _instruction(line: str) -> Instruction:
    keyword, _, rest = line.partition(" ")
    if keyword.upper() not in KEYWORDS or "<<" in rest:
        raise ValueError(f"this is not read here: {line}")
    flags = {}
    rest = rest.strip()
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        name, _, value = flag[2:].partition("=")
        flags[name], rest = value, rest.strip()
    if keyword.upper() == "HEALTHCHECK":
        kind, _, rest = rest.partition(" ")
        if kind != "CMD":
            raise ValueError(f"this is not read here: {line}")
    return Instruction(keyword.upper(), flags, rest.strip())
