"""How much of the comparisons is run: named lists of runs as data, for `compare.py --budget`, the most telling runs first."""

import dataclasses

from benchmarks.accuracy.methods import LONG_TFMOT, METHODS, NOISE, SURVEY
from benchmarks.accuracy.runs import Budget, Part
from benchmarks.accuracy.suites import SUITES
from benchmarks.accuracy.train_tfmot import TFMOT

OURS = ("gibbs-recommended",)  # what is set against TF-MOT on many seeds
RIVALS = ("tfmot", *OURS)
EARLIER = ("tfmot-default", "gibbs-curvature")  # what stood in their places before they were tuned
SCHEDULES = tuple(name for name in METHODS if name.startswith("tfmot-") and name not in EARLIER)
REST = tuple(name for name in METHODS if name not in (*RIVALS, *EARLIER, *SCHEDULES))


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

_SURVEY = tuple(Part("resnet8", at(level, *SURVEY), (0,)) for level in (90, 95))


def _every(suite, rate=None):
    return tuple(variant.name for variant in SUITES[suite].variants if rate is None or variant.name.endswith(f"-{rate:g}") or variant.name == "dense")


CHANNELS = ("resnet", "alexnet", "squeezenet")
ENERGIES, LIKE = ("edropout-margin", "edropout-cross-entropy", "edropout-keep", "edropout-margin-keep"), ("magnitude", "random", "gibbs")
SETTINGS = ("edropout-population-16", "edropout-search-3-4", "edropout-search-1-4", "edropout-parents", "edropout-xor", "edropout-part")
_CHANNELS = (
    Part("channels-resnet8", _every("channels-resnet8"), (0, 1)),
    *(Part(f"channels-{name}", ("dense", *ENERGIES, *LIKE), (0,)) for name in CHANNELS),
    Part("channels-alexnet", SETTINGS, (0,)),
    *(Part(f"channels-{name}", ("dense", "edropout-keep", "magnitude", "random"), (1, 2)) for name in CHANNELS),
    Part("channels-fashion", ("dense", "edropout-keep", "magnitude", "random"), (0, 1, 2)),
)


_SUBNETWORKS = (
    Part("subnetworks-conv2", _every("subnetworks-conv2"), (0,)),  # each at its best rate and form on validation images is what the others go on with
    Part("subnetworks-conv4", _every("subnetworks-conv4", 1e-2), (0, 1, 2)),
    Part("subnetworks-conv6", _every("subnetworks-conv6", 1e-2), (0,)),
)

_SMOKE = {"epochs": 2, "steps": 6, "batch": 32, "validated": 100, "limit": 500, "variants": _often(SUITES["resnet8"].variants)}

BUDGETS = {
    "smoke": Budget((Part("resnet8", at(90, "tfmot", "gibbs"), (0,)),), "smoke", _SMOKE),
    "cpu": Budget(_CPU),  # two cores; a run takes up to a quarter of an hour
    "long": Budget(_LONG),  # one core; long training, few images, networks that are trained already: does the noise pay?
    "survey": Budget(_SURVEY),  # one core; the methods of the survey's frame, where those of the budget `cpu` are there to compare with
    "channels": Budget(_CHANNELS),  # one core; EDropout and others on whole channels, which leave the network
    "subnetworks": Budget(_SUBNETWORKS),  # one core; subnetworks of random networks, rivals tuned with the same care
    "full": Budget(_FULL, "full", {"epochs": 200}),  # the authors' epochs, for a GPU
}
