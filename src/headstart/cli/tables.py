"""Text and tables on standard output: a terminal folds long values onto more lines, a pipe gets them in one line."""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNCUT = 1_000_000  # columns of output that is not a terminal


def plain_console(**options: Any) -> "Console":
    """Prints text as it is: no markup, and outside a terminal lines of any length. options: of rich's Console."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else UNCUT
    return Console(markup=False, emoji=False, highlight=False, width=width, **options)


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print a table that shows every character of its values. names: of the columns; right: those that are aligned to
    the right, such as numbers. Where the terminal is too narrow, the widest columns are folded."""
    from rich.table import Column, Table

    table = Table(*(Column(name, overflow="fold", justify="right" if name in right else "left") for name in names))
    for row in rows:
        table.add_row(*row)
    plain_console().print(table)
