"""Tables that print: rich text around plain rows."""

import io

from rich.console import Console
from rich.table import Table


def render(title: str, columns: list[tuple[str, str]], rows: list[list[str]], footnotes: list[str] = (), width: int = 160) -> str:
    """A table as text.

    Args:
        title: Line above the table.
        columns: (heading, `"left"` or `"right"`) of each column.
        rows: The cells, as text.
        footnotes: Lines below the table.
        width: The most columns of the terminal that the table takes; longer cells go on in the next line.

    Returns:
        The text, as wide as its content needs, without a trailing newline.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading, justify in columns:
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    for note in footnotes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return console.file.getvalue().rstrip()
