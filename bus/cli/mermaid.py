"""A survey of the topology as a Mermaid flowchart."""

from __future__ import annotations

from collections.abc import Iterator

from ..topology import CASCADE, Part, Survey


STYLES = (
    "classDef left stroke-dasharray: 5 5",
    "classDef missing stroke-dasharray: 2 4,fill:none",
)


def flowchart(found: Survey) -> str:
    """Return the flowchart: exchanges, queues and streams, how they are bound, and where what is given up goes."""
    return "\n".join(["flowchart LR", *(f"  {line}" for line in Chart(found).lines())])


class Chart:
    """Gives each name an id, as names may have what an id must not."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._ids: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        """Yield the lines: a box for each service, then what all share, then what is left over, then the ways."""
        declared = [part for part in self._found.declared if part.service != CASCADE]
        for service in dict.fromkeys(part.service for part in declared if part.service):
            yield f'subgraph {self._id(f"service {service}")}["{_escaped(service)}"]'
            yield from (f"  {self._node(part)}" for part in declared if part.service == service)
            yield "end"
        yield from (self._node(part) for part in declared if not part.service)
        yield from self._cascade()
        yield from (self._node(part, "left") for part in self._found.left if part.kind != "binding")
        for part in (*declared, *self._found.left):
            yield from self._edges(part)
        yield from STYLES

    def _cascade(self) -> Iterator[str]:
        cascade = [part for part in self._found.declared if part.service == CASCADE]
        if cascade:
            style = ":::missing" if any(part.there is False for part in cascade) else ""
            ready = sum(part.messages for part in cascade)
            yield f'{self._id("cascade")}[["delay cascade<br>{ready} ready"]]{style}'

    def _node(self, part: Part, style: str = "") -> str:
        style = style or ("missing" if part.there is False else "")
        id = self._id(f"exchange {part.name}" if part.kind == "exchange" else part.name)
        label = _escaped(part.name)
        if part.kind == "exchange":
            shape = f'(["{label}"])'
        elif part.kind in ("letters", "suspects", "record"):
            shape = f'[("{label}<br>{part.messages} entries")]'
        else:
            consumers = f", {part.consumers} consumers" if part.kind == "queue" else ""
            shape = f'["{label}<br>{part.messages} ready{consumers}"]'
        return f"{id}{shape}" + (f":::{style}" if style else "")

    def _edges(self, part: Part) -> Iterator[str]:
        here = self._id(part.name)
        if part.kind == "binding":
            yield f'{self._id(f"exchange {part.exchange}")} -. "{_escaped(part.key)} (left over)" .-> {here}'
            return
        for exchange, key in part.bindings:
            label = f'-- "{_escaped(key)}" -->' if key else "-->"
            yield f"{self._id(f'exchange {exchange}')} {label} {here}"
        if part.onward:
            label = "after its time" if part.kind == "step" else "given up"
            yield f'{here} -. "{label}" .-> {self._id(f"exchange {part.onward}")}'

    def _id(self, name: str) -> str:
        return self._ids.setdefault(name, f"n{len(self._ids)}")


def _escaped(text: str) -> str:
    """Return text for a label: what has a meaning there, and what is not printable, by its number."""
    return "".join(c if c.isalnum() or c in " .-_*:/←" else f"#{ord(c)};" for c in text)
