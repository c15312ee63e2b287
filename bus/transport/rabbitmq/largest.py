"""What the broker finds too large: it closes the channel, with the size and its limit in the text, and names nobody.

Who else published on the channel is found out by size. A link remembers the limit, so that what is over it does not
close the channel again, for everybody who shares it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from ...errors import Fate, MessageTooLarge, PublishRefused
from .channel import Parcel


TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


class TooLarge(PublishRefused, MessageTooLarge):
    """The body is over the broker's own limit, whatever `BUS_MAX_MESSAGE_BYTES` allows."""

    def __init__(self, size: int, limit: int, fates: Mapping[str, Fate]) -> None:
        super().__init__(
            f"{size:,} bytes of body, and the broker's max_message_size is {limit:,}: publish a reference to the data "
            "instead, or raise the broker's limit",
            fates,
        )


def limit_in(text: str) -> int | None:
    """Return the limit that the broker closed a channel for, in bytes of body; None where it was for something else."""
    return int(found[1]) if (found := TOO_LARGE.search(text)) is not None else None


def fits(parcels: Sequence[Parcel], limit: int) -> bool:
    """Tell whether none of them is over the limit."""
    return all(len(parcel.body) <= limit for parcel in parcels)
