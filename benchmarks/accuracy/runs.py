"""One training of a comparison, and lists of them as data."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from benchmarks.accuracy.suites import SUITES, Suite, Variant


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a variant of a suite and a seed, and where its files are in a folder `out` of results.

    Attributes:
        name: The suite's name, with that of the budget or of the data set behind it where one of these changes the suite.
        suite: The suite.
        variant: One of its variants.
        seed: The seed.
    """

    name: str
    suite: Suite
    variant: Variant
    seed: int

    def file(self, out):
        """The file of results, of all runs of the suite."""
        return Path(out) / f"{self.name}.jsonl"

    def unfinished(self, out):
        """The folder that holds the last epoch while the run lasts."""
        return Path(out) / "unfinished" / f"{self.name}-{self.variant.name}-seed{self.seed}"

    def start(self, out):
        """The file of the trained weights that a run of this suite and seed starts from."""
        return _weights(out, self.suite.start, self.seed)

    def weights(self, out):
        """The file where the trained weights of a dense network are kept for suites that start from them; None where none does."""
        wanted = self.variant.method is None and any(suite.start == self.name for suite in SUITES.values())
        return _weights(out, self.name, self.seed) if wanted else None


def _weights(out, name, seed):
    return Path(out) / "weights" / f"{name}-seed{seed}.npz"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some runs of one suite: every variant, for every seed.

    Attributes:
        suite: Name in `SUITES`.
        variants: Names.
        seeds: One after the other.
    """

    suite: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Budget:
    """A list of parts, run in this order.

    Attributes:
        parts: The most telling first.
        name: What is put behind the name of a suite in the names of its files, where the budget changes the suite.
        changes: Fields of `Suite` and their values in this budget.
    """

    parts: tuple[Part, ...]
    name: str = ""
    changes: dict = dataclasses.field(default_factory=dict)

    def runs(self) -> Iterator[Run]:
        """Every run in turn."""
        for part in self.parts:
            suite = dataclasses.replace(SUITES[part.suite], **self.changes)
            suite_name = f"{part.suite}-{self.name}" if self.name else part.suite
            for seed in part.seeds:
                for name in part.variants:
                    yield Run(suite_name, suite, suite.variant(name), seed)

    def plan(self) -> list[dict]:
        """A table of the parts, for `compare.py --list`: what is run, about how long a run takes on one core, and how long all of them."""
        table, total = [], 0
        for part in self.parts:
            runs, minutes = len(part.variants) * len(part.seeds), SUITES[part.suite].minutes
            total += runs * (minutes or 0)
            row = {"suite": part.suite, "variants": ", ".join(part.variants), "seeds": ", ".join(map(str, part.seeds)), "runs": str(runs)}
            table.append(row | ({"minutes a run": f"{minutes:g}", "minutes": f"{runs * minutes:g}"} if minutes else {}))
        return table + ([{"suite": "in all", "minutes": f"{total:g}"}] if total else [])
