"""How much of the comparisons is run: named lists of runs as data, for `compare.py --budget`, the most telling runs first."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from benchmarks.accuracy.suites import LONG_TFMOT, METHODS, NOISE, SUITES, Suite, Variant
from benchmarks.accuracy.train_tfmot import TFMOT

OURS = ("gibbs-recommended",)  # what is set against TF-MOT on many seeds
RIVALS = ("tfmot", *OURS)
EARLIER = ("tfmot-default", "gibbs-curvature")  # what stood in their places before they were tuned
SCHEDULES = tuple(name for name in METHODS if name.startswith("tfmot-") and name not in EARLIER)
REST = tuple(name for name in METHODS if name not in (*RIVALS, *EARLIER, *SCHEDULES))


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


def at(level, *families):
    return tuple(f"{family}-{level}" for family in families)


def _often(variants):
    """The variants with a TF-MOT that finds its masks at every step: a trial is shorter than its usual frequency."""
    often = [variant.method if not isinstance(variant.method, TFMOT) else dataclasses.replace(variant.method, frequency=1) for variant in variants]
    return tuple(dataclasses.replace(variant, method=method) for variant, method in zip(variants, often, strict=True))


def every(suite, level):
    """The methods beside the rivals that the suite has at this level."""
    names = {variant.name for variant in SUITES[suite].variants}
    return tuple(name for name in at(level, *REST) if name in names)


FIVE, MORE = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
WHY = ("magnitude", "magnitude-shape", "gibbs", "magnitude-curvature")  # what the recipe is made of, and what Magnitude of ours says about TF-MOT
_CPU = (
    Part("resnet8", ("dense", *at(98, *RIVALS)), FIVE),
    Part("resnet8", at(95, *RIVALS), FIVE),
    Part("resnet8", at(90, *RIVALS), FIVE),
    Part("resnet8", at(98, *WHY), (0, 1, 2)),
    Part("resnet8", at(98, *SCHEDULES), (0,)),
    Part("resnet20", ("dense", *at(95, *RIVALS)), (0, 1, 2)),
    Part("mlp-fashion", ("dense", *at(98, *RIVALS), *at(90, *RIVALS), *every("mlp-fashion", 90)), (0,)),
    Part("mobilenet", ("dense", *at(90, *RIVALS)), (0,)),
    Part("resnet8", at(95, *RIVALS), MORE),
    Part("resnet8", at(80, *RIVALS), FIVE),
    Part("resnet8", at(50, *RIVALS), FIVE),
    *(Part("resnet8", at(level, *EARLIER), FIVE) for level in (98, 95, 90)),
    Part("resnet8", at(95, "magnitude-shape"), FIVE),  # what the noise adds
    Part("resnet8", every("resnet8", 90), (0,)),
)
LONG_SCHEDULES = at(90, "tfmot", *LONG_TFMOT, "tfmot-default")


def best_tfmot(suite, level):
    return at(level, SUITES[suite].rival)


def _regime(suite):
    """One regime of the budget `long` at 90 %: with and without noise, on seed 0 every schedule of TF-MOT and every kind of noise, then five seeds."""
    without, recommended = at(90, "magnitude-shape", *OURS)
    dense = () if suite == "all-images" else ("dense",)  # which other runs start from, and come earlier
    return (
        Part(suite, (*dense, without, recommended, *LONG_SCHEDULES), (0,)),
        Part(suite, (without, recommended, *best_tfmot(suite, 90)), FIVE[1:]),
        Part(suite, at(90, *NOISE), (0,)),
    )


_LONG = (
    *_regime("few-images"),
    Part("all-images", ("dense",), FIVE),
    *_regime("pretrained"),
    *_regime("all-images"),
    Part("few-images", (*best_tfmot("few-images", 95), *at(95, *OURS)), (0, 1, 2)),
    Part("pretrained", (*best_tfmot("pretrained", 95), *at(95, *OURS)), (0, 1, 2)),
    *(Part(suite, at(level, "magnitude-shape", *OURS), (0,)) for suite in ("few-images", "pretrained") for level in (80, 98)),
    Part("few-images", at(90, "gibbs-kernel", "gibbs-filter"), (0,)),
    Part("few-images-wide", ("dense", *at(90, "magnitude-shape", *OURS), *best_tfmot("few-images-wide", 90)), (0, 1, 2)),
    Part("all-images", (*best_tfmot("all-images", 95), *at(95, *OURS)), (0, 1, 2)),
    *(Part("all-images", at(level, "magnitude-shape", *OURS), (0,)) for level in (80, 98)),
)
_FULL = (
    Part("resnet56", (*at(90, *OURS, "gibbs", "magnitude"), "dense", *at(90, "tfmot")), (0,)),
    Part("resnet20", (*at(90, *OURS, "gibbs", "magnitude"), "dense", *at(90, "tfmot")), (0,)),
    Part("resnet32", (*at(90, *OURS, "gibbs", "magnitude"), "dense", *at(90, "tfmot")), (0,)),
)

_SMOKE = {"epochs": 2, "steps": 6, "batch": 32, "validated": 100, "limit": 500, "variants": _often(SUITES["resnet8"].variants)}

BUDGETS = {
    "smoke": Budget((Part("resnet8", at(90, "tfmot", "gibbs"), (0,)),), "smoke", _SMOKE),
    "cpu": Budget(_CPU),  # two cores; a run takes up to a quarter of an hour
    "long": Budget(_LONG),  # one core; long training, few images, networks that are trained already: does the noise pay?
    "full": Budget(_FULL, "full", {"epochs": 200}),  # the authors' epochs, for a GPU
}
