"""Testing: the production code on the in-memory bus, in virtual time. See `Tester`."""

from .direct import context
from .tester import NotSettled, Tester
from .virtual_time import NoVirtualTime


__all__ = ["NoVirtualTime", "NotSettled", "Tester", "context"]
