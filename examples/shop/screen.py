"""What the demo shows: a line for each retry and dead letter, a progress bar, and the table at the end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bus import DeadLetter, Delivery, Handler, Outcome, Retry

from .books import Books
from .watch import Row


class Screen:
    """The terminal of one run."""

    def __init__(self, total: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("orders"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._console
        )
        self._task: TaskID = self._progress.add_task("orders", total=total)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show the progress bar meanwhile."""
        with self._progress:
            yield

    def advance(self) -> None:
        """Count an order that ended."""
        self._progress.advance(self._task)

    def say(self, line: str, style: str = "") -> None:
        """Print a line as it is, above the bar."""
        self._console.print(Text(line, style))

    def tell(self, handler: Handler, delivery: Delivery, outcome: Outcome) -> None:
        """Print what came to no good end: that it is tried again, or that it is given up."""
        match outcome:
            case Retry(delay=delay, failure=failure):
                why = f"attempt {delivery.attempt}: {failure.error_type}: {failure.error}"
                line = f"retry        {handler.subscription_name:<25} {why}; again in {delay.total_seconds():g} s"
                self.say(line, "yellow")
            case DeadLetter(failure=failure):
                error = failure.error.partition("\n")[0]
                self.say(f"dead letter  {handler.subscription_name:<25} {failure.reason}: {error}", "red")
            case _:
                pass

    def table(self, books: Books, rows: Mapping[str, Row]) -> None:
        """Print how the orders ended, and what each handler came to."""
        ends = Table("orders", "shipped", "rejected", "refunded", "retries", "dead letters")
        retries, dead = sum(row.retries for row in rows.values()), sum(row.dead_letters for row in rows.values())
        counts = (books.placed, books.shipped, books.rejected, books.refunded)
        ends.add_row(*(str(len(orders)) for orders in counts), str(retries), str(dead))
        handlers = Table("handler", "handled", "retries", "dead letters")
        for name, row in rows.items():
            handlers.add_row(name, *(str(count or "") for count in (row.handled, row.retries, row.dead_letters)))
        self._console.print(ends, handlers)
