"""What was written, and what was found out about it."""

import dataclasses
from pathlib import Path

from keras_gibbs.export.advice import Advice
from keras_gibbs.export.encodings import ENCODINGS
from keras_gibbs.tables import render


@dataclasses.dataclass
class ExportReport:
    """What `export_tflite` wrote and what it found out about it; `print(report)` shows tables.

    Attributes:
        path: The file that was written.
        rows: One dict per encoding that was built: `encoding`, `raw_bytes`, `gzip_bytes`, `zeros` (zero weights of the Keras model found
            again in the file), `tensors` (the same by kernel: one dict each with `kernel`, `weights`, `zeros`, `kept`, `file_zeros` and
            `checked`, by `"position"`, by `"count"`, or None), `densify` (DENSIFY operators: sparse weights the runtime may have to unpack),
            `runs` (in LiteRT on XNNPACK; None if not tried), `problem` (what LiteRT said, or ""), `max_difference` (largest absolute
            difference from the Keras model's outputs; None if nothing ran the file), `relative_difference` (the same, by the largest
            absolute value of that output), `accuracy` (None without labels) and `chosen` (True for the one written).
        reason: Why that one, in a sentence.
        notes: What was compared with what, and what was not checked.
        advice: What an ARM64 or WASM CPU makes of the sparse form, as from `advise`. For an encoding in int8, of that. None if that could not be found out.
        accuracy: Accuracy of the Keras model itself on `data`, or None.
    """

    path: Path
    rows: list[dict]
    reason: str
    notes: list[str]
    advice: Advice | None
    accuracy: float | None = None

    @property
    def chosen(self) -> dict:
        """The row of the file that was written."""
        return next(row for row in self.rows if row["chosen"])

    def __str__(self) -> str:
        headings = ("raw bytes", "gzip bytes", "zeros kept", "DENSIFY", "runs", "max difference", "accuracy")
        cells = []
        for row in self.rows:
            name = row["encoding"] + (" (written)" if row["chosen"] else "")
            counts = [f"{row[key]:,}" for key in ("raw_bytes", "gzip_bytes", "zeros", "densify")]
            runs = {True: "yes", False: "NO", None: "not tried"}[row["runs"]]
            difference = "not run" if row["max_difference"] is None else f"{row['max_difference']:.1e}"
            accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
            cells.append([name, *counts, runs, difference, accuracy])
        columns = [("encoding", "left"), *((heading, "right") for heading in headings)]
        accuracy = [] if self.accuracy is None else [f"Accuracy of the Keras model: {self.accuracy:.2%}."]
        table = render(str(self.path), columns, cells, [self.reason, *accuracy, *self.notes, *self._advice()])
        return "\n".join([table, *self._kernels()])

    def _advice(self):
        if self.advice is None:
            return []
        hint = ["`keras_gibbs.advise(model)` tells how much of that encoding='sparse_ready' does by itself."] if self.advice.change else []
        return self.advice.sentences() + ([] if ENCODINGS[self.chosen["encoding"]].rewritten else hint)

    def _kernels(self):
        """The table of zeros in the file that was written, if the model has any."""
        columns = [("kernel", "left"), ("weights", "right"), ("zeros", "right"), ("kept", "right"), ("zeros in the file", "right"), ("compared by", "left")]
        cells = [
            [
                row["kernel"],
                f"{row['weights']:,}",
                f"{row['zeros']:,}",
                f"{row['kept']:,}",
                "-" if row["file_zeros"] is None else f"{row['file_zeros']:,}",
                row["checked"] or "not checked",
            ]
            for row in self.chosen["tensors"]
        ]
        return [render("Zero weights in the file that was written", columns, cells)] if cells else []
