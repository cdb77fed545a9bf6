"""What a phone makes of a model, as a table."""

import dataclasses
import re

from keras_gibbs.tables import render

WIDTH = 100  # of the table of reasons, in columns of a terminal
_TITLE = "On an ARM64 or WASM CPU, written sparse"
_READY = "The same network as sparse_ready rewrites it"


@dataclasses.dataclass(frozen=True)
class Advice:
    """A table of what runs sparse on a phone's CPU; `print` it, or read it.

    Attributes:
        rows: One dict per convolution and Dense layer, in the order of execution: `layer`, `kind`, `weights`, `multiply_adds`, `share` (of all
            multiply-adds), `sparsity` (fraction of zeros in its kernel), `sparse` (whether XNNPACK runs it sparse on ARM64 and WASM) and `why` ("" if it does).
        share: Fraction of the multiply-adds in layers that run sparse; 0 where the sparse file does not run at all.
        fails: Why the sparse file does not run on ARM64, or "".
        change: The smallest change to the model that would help, or "". Where there is `ready`, that is what is left to do beyond it.
        promised: What `share` would be then.
        speed: Estimated speed of the sparse file on ARM64, as a multiple of the dense file's.
        full: Whether it prints layer by layer; else layers with one reason share a line, at most 100 columns wide.
        ready: The advice on the network as `sparse_ready` rewrites it, which `export_tflite` does by itself, if more of it runs sparse; else None.
        rewrites: What is rewritten in it, or "".
    """

    rows: list[dict]
    share: float
    fails: str
    change: str
    promised: float
    speed: float
    full: bool = False
    ready: "Advice | None" = None
    rewrites: str = ""

    def __str__(self) -> str:
        tables = [self._table(_TITLE)]
        if self.ready:
            tables.append(dataclasses.replace(self.ready, full=self.full)._table(_READY))
        return "\n".join([*tables, *self.sentences()])

    def _table(self, title):
        return self._layer_by_layer(title) if self.full else self._by_reason(title)

    def _by_reason(self, title):
        columns = [("runs sparse", "left"), ("layers", "left"), ("share", "right"), ("sparsity", "right")]
        groups = {}
        for row in self.rows:
            groups.setdefault("yes" if row["sparse"] else "no: " + _without_names(row["why"]), []).append(row)
        cells = [
            [verdict, _counted([row["layer"] for row in rows]), f"{sum(row['share'] for row in rows):.1%}", f"{_mean_sparsity(rows):.4f}"]
            for verdict, rows in sorted(groups.items(), key=lambda group: (group[0] != "yes", -sum(row["share"] for row in group[1])))
        ]
        return render(title, columns, cells, width=WIDTH)

    def _layer_by_layer(self, title):
        columns = [("layer", "left"), ("kind", "left"), ("multiply-adds", "right"), ("share", "right"), ("sparsity", "right"), ("runs sparse", "left")]
        cells = [
            [
                row["layer"],
                row["kind"],
                f"{row['multiply_adds']:,}",
                f"{row['share']:.1%}",
                f"{row['sparsity']:.4f}",
                "yes" if row["sparse"] else "no: " + row["why"],
            ]
            for row in self.rows
        ]
        return render(title, columns, cells)

    def sentences(self) -> list[str]:
        """The result in words: as it is, what the exporter does by itself, and what is left to do."""
        if self.fails:
            lines = [f"Do not ship the sparse form of the network as it is: {self.fails}."]
        else:
            lines = [f"{self.share:.1%} of the multiply-adds run sparse on an ARM64 or WASM CPU, none on an x86 CPU with AVX."]
        if self.ready:
            lines.append(
                f"The exporter rewrites it by itself (encoding='sparse_ready', or 'auto' where that pays): {self.rewrites}. Then {self.ready.share:.1%} run "
                f"sparse, at {self.ready.speed:.1f} x the speed of the dense file by estimate."
            )
        if self.change:
            left = "Left to you, the smallest change that would help" if self.ready else "The smallest change that would help"
            lines.append(f"{left}: {self.change}. Then {self.promised:.1%} would.")
        return lines


def _without_names(why):
    """A reason without the layer it lies with, so that layers with one reason come together."""
    return re.sub(r"^what comes (before|after) it, [^,]*, ", r"what comes \1 it ", why)


def _counted(names):
    return names[0] if len(names) == 1 else f"{len(names)}, from {names[0]} on"


def _mean_sparsity(rows):
    weights = sum(row["weights"] for row in rows)
    return sum(row["sparsity"] * row["weights"] for row in rows) / max(weights, 1)
