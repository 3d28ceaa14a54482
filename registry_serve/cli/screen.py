"""What the commands print: tables and facts for people, JSON for scripts, and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.status import Status
from rich.table import Table
from rich.text import Text

console = Console(emoji=False)
errors = Console(emoji=False, stderr=True, style="red", soft_wrap=True, highlight=False, markup=False)
#: For what is no result: how far it is, and warnings.
notes = Console(emoji=False, stderr=True)

#: Stands in a table where there is nothing to say.
NOTHING = "-"
_GAP = "  "


def _keep_output_for_json(wanted: bool) -> bool:
    console.stderr = wanted  # set each time: several commands may run in one process
    return wanted


#: The option of every command that has a result; whatever else is printed then goes to standard error.
AsJson = Annotated[
    bool,
    typer.Option("--json", callback=_keep_output_for_json, help="Print the result as JSON, and nothing else."),
]


def say(text: str) -> None:
    """Print a line as it is: nothing is coloured, and a command can be copied, however long it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def note(text: str) -> None:
    """Print a line that is no part of the result, to standard error."""
    notes.print(text, soft_wrap=True, highlight=False, markup=False)


def print_json(result: Any) -> None:
    """Print a result for scripts, all of it."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()


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


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their columns' names; where it is no terminal, a line each, however long it is."""
    rows = [[_in_one_line(cell) or NOTHING for cell in row] for row in rows]
    if not console.is_terminal:
        _show_plainly([[name.upper() for name in columns], *rows])
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _show_plainly(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        say(_GAP.join(cells).rstrip())


def _in_one_line(text: str) -> str:
    # What others wrote into the registry must neither break a line nor steer a terminal.
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
