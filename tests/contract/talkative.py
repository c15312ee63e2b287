"""A publisher in a process of its own, which tests kill: it prints each id once its publish has returned.

`python -m tests.contract.talkative TASKS EACH`: so many tasks publish, each so often (0: until it is killed); then the
process leaves at once, without closing anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import count

from bus import BusUnavailable, connect

from .stage import Placed


async def main(tasks: int, each: int) -> None:
    async with connect() as bus, asyncio.TaskGroup() as group:

        async def publish() -> None:
            for number in range(each) if each else count():
                try:
                    (id,) = await bus.publish(Placed(number=number))
                except BusUnavailable:
                    continue
                os.write(1, f"{id}\n".encode())

        publishing = [group.create_task(publish()) for _ in range(tasks)]
        await asyncio.wait(publishing)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
