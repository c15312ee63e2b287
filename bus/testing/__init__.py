"""Testing: the production code on the in-memory bus, in virtual time. See `Tester`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final


if TYPE_CHECKING:
    from .direct import context
    from .simulation import SimulationFailed, simulate
    from .tester import Tester
    from .unsettled import NotSettled
    from .virtual_time import NoVirtualTime


__all__ = ["NoVirtualTime", "NotSettled", "SimulationFailed", "Tester", "context", "simulate"]

_HOMES: Final = {
    "context": "direct",
    "NotSettled": "unsettled",
    "NoVirtualTime": "virtual_time",
    "SimulationFailed": "simulation",
    "Tester": "tester",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    # as in `bus`: the plugin is loaded in every session, what it offers only when a test wants it
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
