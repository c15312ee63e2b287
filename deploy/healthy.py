"""Ask the worker in this container: `python healthy.py /livez` exits 0 where it answers 200, else 1 with the answer."""

import os
import sys
from http.client import HTTPConnection, HTTPException


ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens on every address, this machine's is asked


def main(path: str) -> int:
    """Return the exit code."""
    asked = os.environ.get("BUS_HTTP", "")
    if not asked:
        print("BUS_HTTP is not set, so the worker answers nobody")
        return 1
    host, _, port = asked.rpartition(":")
    bare = host.strip("[]")
    connection = HTTPConnection(ANY.get(bare, bare), int(port), timeout=4)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        print(answer.status, answer.read().decode())
    except (OSError, HTTPException) as error:
        print(f"no answer at {asked}: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
