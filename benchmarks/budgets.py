"""How much of the comparisons is run: named lists of runs as data, for `compare.py --budget`, the most telling runs first."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from suites import METHODS, SUITES, Suite, Variant
from train_tfmot import TFMOT

OURS = ("gibbs-recommended",)  # what is set against TF-MOT on many seeds
RIVALS = ("tfmot", *OURS)
EARLIER = ("tfmot-default", "gibbs-curvature")  # what stood in their places before they were tuned
SCHEDULES = tuple(name for name in METHODS if name.startswith("tfmot-") and name not in EARLIER)
REST = tuple(name for name in METHODS if name not in (*RIVALS, *EARLIER, *SCHEDULES))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a variant of a suite and a seed, and the folder of its result."""

    folder: str
    suite: Suite
    variant: Variant
    seed: int

    def file(self, out, variant=None):
        """Its JSON in the folder `out` of results, or that of another variant of the same seed."""
        return Path(out) / self.folder / f"{variant or self.variant.name}-seed{self.seed}.json"


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
        name: What is put behind the name of a suite in the folder of results, where the budget changes the suite.
        changes: Fields of `Suite` and their values in this budget.
    """

    parts: tuple[Part, ...]
    name: str = ""
    changes: dict = dataclasses.field(default_factory=dict)

    def runs(self) -> Iterator[Run]:
        """Every run in turn."""
        for part in self.parts:
            suite = dataclasses.replace(SUITES[part.suite], **self.changes)
            folder = f"{part.suite}-{self.name}" if self.name else part.suite
            for seed in part.seeds:
                for name in part.variants:
                    yield Run(folder, suite, suite.variant(name), seed)


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
_FULL = (
    Part("resnet56", (*at(90, *OURS, "gibbs", "magnitude"), "dense", *at(90, "tfmot")), (0,)),
    Part("resnet20", (*at(90, *OURS, "gibbs", "magnitude"), "dense", *at(90, "tfmot")), (0,)),
    Part("resnet32", (*at(90, *OURS, "gibbs", "magnitude"), "dense", *at(90, "tfmot")), (0,)),
)

_SMOKE = {"epochs": 2, "steps": 6, "batch": 32, "validated": 100, "limit": 500, "variants": _often(SUITES["resnet8"].variants)}

BUDGETS = {
    "smoke": Budget((Part("resnet8", at(90, "tfmot", "gibbs"), (0,)),), "smoke", _SMOKE),
    "cpu": Budget(_CPU),  # two cores; a run takes up to a quarter of an hour
    "full": Budget(_FULL, "full", {"epochs": 200}),  # the authors' epochs, for a GPU
}
