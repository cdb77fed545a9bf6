"""A line for every encoding while `export_tflite` is at work."""

import time

from rich.console import Console


class Progress:
    """Prints to standard output, or nothing.

    Args:
        title: What is made.
        verbose: 0 for silence.
    """

    def __init__(self, title: str, verbose: int):
        self._console = Console(highlight=False) if verbose else None
        self._since = time.monotonic()
        self._print(title)

    def line(self, row: dict | None, encoding: str) -> None:
        """Say what became of an encoding; `row` is the one of the report, or None if there is no such file."""
        seconds = time.monotonic() - self._since
        self._since = time.monotonic()
        if row is None:
            result = "left out"
        else:
            difference = "not run" if row["relative_difference"] is None else f"off by {row['relative_difference']:.1e}"
            result = f"{row['raw_bytes']:,} bytes, {difference}"
        self._print(f"  {encoding}: {result} ({seconds:.1f} s)")

    def _print(self, text):
        if self._console:
            self._console.print(text, markup=False, soft_wrap=True)
