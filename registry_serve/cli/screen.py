"""What the command prints: where it is, what it serves, and what to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.status import Status
from rich.table import Table
from rich.text import Text

console = Console()
errors = Console(stderr=True, style="red", soft_wrap=True, highlight=False, markup=False)


def say(text: str) -> None:
    """Print a line as it is: nothing is coloured, and a command can be copied, however long it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


class Progress:
    """What is being done: one line that changes on a terminal, a line each elsewhere."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __call__(self, doing: str) -> None:
        """Show what is being done now."""
        self._status.update(Text(doing))
        if not console.is_terminal:
            say(f"{doing} ...")


@contextmanager
def progress() -> Iterator[Progress]:
    """Show what is being done in this ``with`` block."""
    with console.status("") as status:
        yield Progress(status)


def show(title: str, facts: Mapping[str, str]) -> None:
    """Print facts in a panel; as plain lines where it is no terminal."""
    if not console.is_terminal:
        say(title)
        for name, value in facts.items():
            say(f"  {name}: {value}")
        return
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    console.print(Panel(table, title=Text(title, style="bold green"), expand=False))
