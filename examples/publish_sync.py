"""Code that is not async publishes with `connect_sync()`; threads may share the connection.

    BUS_URL=amqp://guest:guest@localhost/ python examples/publish_sync.py

It prints:
    stored report-1, report-2, report-3
"""

from concurrent.futures import ThreadPoolExecutor

from bus import Event, connect_sync


class ReportAsked(Event, type="report.asked"):
    month: int


def main() -> None:
    with connect_sync() as bus, ThreadPoolExecutor(3) as threads:

        def ask(month: int) -> str:
            [id] = bus.publish(ReportAsked(month=month), id=f"report-{month}")
            return id

        print("stored", ", ".join(threads.map(ask, (1, 2, 3))))


if __name__ == "__main__":
    main()
