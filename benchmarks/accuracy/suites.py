"""What the comparisons train: configurations as data, for `compare.py`.

A suite is one network on one data set under one schedule, and the variants that are compared on it. Variants are listed the most telling first, so that
any number of finished runs is a result.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

import keras_gibbs as kg
from benchmarks.accuracy.methods import LONG_TFMOT, METHODS, NOISE, RATES, SURVEY
from benchmarks.common.networks import MOBILENET_SMALL, Network, prunable


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a comparison.

    Attributes:
        name: Its name in tables and file names.
        method: A pruning method, a `TFMOT`, `Tickets`, None for the dense network; or a function of the network, the seed and the finished results of the same
            suite and seed, by variant name, to one of these.
        rate: Learning rate of Adam at the start; it falls to zero along a cosine.
        needs: The variants whose results `method` reads.
        family: What the variants that differ in their sparsity only are called together.
        level: That sparsity, in per cent of the weights of the pruned layers.
    """

    name: str
    method: Any
    rate: float
    needs: tuple[str, ...] = ()
    family: str = ""
    level: int | None = None

    def method_for(self, network, seed, earlier):
        """The method of one run."""
        return self.method(network, seed, earlier) if callable(self.method) else self.method


@dataclasses.dataclass(frozen=True)
class Suite:
    """A network, data, a schedule, and the variants.

    Attributes:
        network: From the image shape and the number of classes to a model; a `networks.Network` where TF-MOT is among the variants.
        dataset: Name in `data.DATASETS`.
        epochs: Epochs of `fit`.
        steps: Batches in an epoch; None for all that the training images fill. With fewer, an epoch is a part of a pass, and validation comes more often.
        variants: What is compared.
        batch: Images in a batch.
        validation: Training images put aside for validation.
        validated: How many of them are looked at after every epoch.
        augmented: Whether training images are shifted and flipped.
        where: The layers that are pruned, as in `keras_gibbs.prune`.
        reach: A validation accuracy; the report says after how many epochs each variant came to it.
        detailed: Whether the report has the top-5 accuracy, and that of the weights without their mask.
        exported: Whether the final model is written as .tflite files too, which are run and measured.
        shrunken: Whether the final model is shrunken too: what is left of its parameters and multiply-adds, and its accuracy once it is recalibrated.
        images: Training images that are used, the first ones of those not put aside; None for all.
        limit: Images of each split that are used, for a trial; None for all.
        rival: The family that the report sets the others against: of TF-MOT's schedules the best on validation images with seed 0.
        start: Name of a suite; every variant starts from its dense network, trained with the same seed, in place of random weights.
        minutes: About how long a run takes on one core; None where it was not estimated.
    """

    network: Callable
    dataset: str
    epochs: int
    variants: tuple[Variant, ...]
    steps: int | None = None
    batch: int = 128
    validation: int = 5000
    validated: int = 2000
    augmented: bool = False
    where: Callable | None = None
    reach: float | None = None
    detailed: bool = False
    exported: bool = False
    shrunken: bool = False
    images: int | None = None
    limit: int | None = None
    rival: str = "tfmot"
    start: str | None = None
    minutes: float | None = None

    def variant(self, name):
        """The variant of this name."""
        return next(variant for variant in self.variants if variant.name == name)


def _extraction():
    """GumbelSoftmax with and without signed constants, with each rescale, beside its baselines and the dense network."""
    gumbel = [
        Variant(
            f"gumbel-{rescale or 'none'}-{'signed' if signed else 'normal'}",
            kg.GumbelSoftmax(rescale=rescale, signed_constant=signed),
            rate=1e-2,
        )
        for signed in (True, False)
        for rescale in ("smart", "dynamic", None)
    ]
    others = [
        Variant("dense", None, rate=1e-3),
        Variant("edge-popup", kg.EdgePopup(0.5), rate=1e-2),
        Variant("supermask", kg.Supermask(rescale="smart"), rate=1e-2),
    ]
    first = gumbel[:1] + others[:1] + gumbel[1:] + others[1:]
    return Suite(Network("convolutions", {"depth": 2}), "cifar10", epochs=12, steps=88, variants=tuple(first), reach=0.5)


def _removed(earlier):
    """The fraction of the weights of its layers that EDropout removed."""
    return earlier["edropout"]["final"]["pruned_sparsity"]


def _magnitude_filters(network, seed, earlier):
    return kg.Magnitude(kg.Polynomial(0.0, _removed(earlier), end=0.5), structure=kg.Filter())


def _random_filters(network, seed, earlier):
    """A mask that removes filters at random, the same fraction in every layer, from the first step on."""
    pattern = kg.prune(network, kg.Magnitude(_removed(earlier), structure=kg.Filter()))  # which layers, and how many
    rng = np.random.default_rng([seed, 1])
    masks = {}
    for layer in kg.pruned_layers(pattern):
        mask = np.array(layer.mask())
        masks[layer.name] = rng.permuted(mask.reshape(-1, mask.shape[-1])[:1], axis=1)[0] * np.ones_like(mask)
    return kg.Fixed(masks)


def _filters(network, dataset, epochs, rate=2e-3, augmented=False, compared=True, normalized=True):
    """EDropout beside the dense network, and filters removed by magnitude and at random at the fraction that it came to."""
    variants = [Variant("dense", None, rate), Variant("edropout", kg.EDropout(), rate)]
    if not normalized:  # where a small output is the better margin, the cross-entropy is no worse off
        variants.append(Variant("edropout-cross-entropy", kg.EDropout(objective=kg.CrossEntropyEnergy()), rate))
    if compared:
        variants += [Variant("magnitude", _magnitude_filters, rate, ("edropout",)), Variant("random", _random_filters, rate, ("edropout",))]
    return Suite(network, dataset, epochs, tuple(variants), augmented=augmented, detailed=True)


COUPLED = kg.Filter(coupled=True)


def _channels(network, dataset, epochs, rate, minutes, **changes):
    """Whole channels of a network: EDropout by several energies and settings, and channels removed by others, all of which leave the network by `shrink`.

    The others remove as large a fraction of every group of channels as `edropout-keep` came to.
    """

    def like_edropout(make):
        return lambda network, seed, earlier: make(earlier["edropout-keep"]["final"]["pruned_sparsity"])

    half = kg.KeepPenalty(0.5)
    energies = {
        "margin": kg.MarginEnergy(),
        "cross-entropy": kg.CrossEntropyEnergy(),
        "keep": kg.CrossEntropyEnergy() + half,
        "margin-keep": kg.MarginEnergy() + half,
    }
    tuning = {  # of `edropout-keep`, one thing at a time
        "population-16": {"population": 16},
        "search-3-4": {"search": 0.75},
        "search-1-4": {"search": 0.25},
        "parents": {"reevaluate_parents": True},
        "xor": {"rule": "xor"},
        "part": {"energy_batch": 32},
    }
    variants = [Variant("dense", None, rate)]
    variants += [Variant(f"edropout-{name}", kg.EDropout(objective=energy, structure=COUPLED), rate) for name, energy in energies.items()]
    variants += [
        Variant("magnitude", like_edropout(lambda removed: kg.Magnitude(kg.Polynomial(0.0, removed, end=0.5), structure=COUPLED)), rate, ("edropout-keep",)),
        Variant("gibbs", like_edropout(lambda removed: kg.Gibbs(removed, structure=COUPLED, hamiltonian=kg.Independent())), rate, ("edropout-keep",)),
        Variant("random", like_edropout(lambda removed: kg.Random(removed, structure=COUPLED)), rate, ("edropout-keep",)),
    ]
    variants += [Variant(f"edropout-{name}", kg.EDropout(objective=energies["keep"], structure=COUPLED, **one), rate) for name, one in tuning.items()]
    return Suite(network, dataset, epochs, tuple(variants), detailed=True, shrunken=True, minutes=minutes, **changes)


def _channels_at(levels):
    """Coupled filters of ResNet-8 by several methods, the same fraction of every group: equal multiply-adds, but for EDropout's own choice."""
    makers = {
        "gibbs": lambda sparsity: kg.Gibbs(sparsity, structure=COUPLED, hamiltonian=kg.Independent()),
        "magnitude": lambda sparsity: kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5), structure=COUPLED),
        "random": lambda sparsity: kg.Random(sparsity, structure=COUPLED),
        "edropout": lambda sparsity: kg.EDropout(objective=kg.CrossEntropyEnergy() + kg.KeepPenalty(1 - sparsity), structure=COUPLED),
    }
    variants = [Variant("dense", None, 2e-3)]
    variants += [Variant(f"{name}-{level}", make(level / 100), 2e-3) for level in levels for name, make in makers.items()]
    return Suite(
        Network("resnet", {"depth": 8}), "cifar10", 6, tuple(variants), augmented=True, detailed=True, shrunken=True, where=prunable, minutes=5
    )


def _subnetworks(depth, epochs, minutes, **changes):
    """GumbelSoftmax over a random network, with and without a learned scale, and its rivals, each at several rates and in several forms."""
    rates = (3e-3, 1e-2, 3e-2)
    variants = [Variant("dense", None, 1e-3)]
    for rate in rates:
        named = {
            f"gumbel-{rescale or 'none'}-{'signed' if signed else 'normal'}": kg.GumbelSoftmax(rescale=rescale, signed_constant=signed)
            for rescale in ("smart", None)
            for signed in (True, False)
        }
        named |= {f"supermask-{rescale or 'none'}": kg.Supermask(rescale=rescale) for rescale in ("smart", "dynamic", None)}
        named |= {
            f"edge-popup-{100 * sparsity:g}-{rescale or 'none'}": kg.EdgePopup(sparsity, rescale=rescale)
            for sparsity in (0.3, 0.5)
            for rescale in ("smart", None)
        }
        variants += [Variant(f"{name}-{rate:g}", method, rate) for name, method in named.items()]
    return Suite(Network("convolutions", {"depth": depth}), "cifar10_16", epochs, tuple(variants), reach=0.5, minutes=minutes, **changes)


LEVELS = (98, 95, 90, 80, 50)  # per cent removed, the most telling first


def _against_tfmot(network, dataset="cifar10", epochs=6, rate=2e-3, augmented=True, without=(), methods=METHODS):
    """Every method at every level, beside the dense network."""
    levels = [
        Variant(f"{name}-{level}", method(level / 100), RATES.get(name, rate), family=name, level=level)
        for level in LEVELS
        for name, method in methods.items()
        if name not in without
    ]
    return Suite(network, dataset, epochs, (Variant("dense", None, rate), *levels), augmented=augmented, where=prunable, exported=True)


def _long(epochs, minutes, widths=(16, 32, 64), rate=2e-3, **changes):
    """ResNet-8 on small images, which trains four times as fast, with other noise and other schedules of TF-MOT among the methods."""
    network = Network("resnet", {"depth": 8, "widths": widths})
    suite = _against_tfmot(network, "cifar10_16", epochs, rate, methods=METHODS | NOISE | LONG_TFMOT)
    return dataclasses.replace(suite, minutes=minutes, exported=False, **changes)


SUITES = {
    "extraction": _extraction(),
    "filters-fashion": _filters(Network("resnet18", {"width": 8}), "fashion_mnist", 8),
    "filters-resnet": _filters(Network("resnet18", {"width": 8}), "cifar10", 3, compared=False),
    "filters-alexnet": _filters(Network("alexnet", {"width": 16}), "cifar10", 8, rate=1e-3, compared=False, normalized=False),
    "filters-squeezenet": _filters(Network("squeezenet", {"width": 32}), "cifar10", 5, rate=1e-3, compared=False, normalized=False),
    "resnet8": dataclasses.replace(_against_tfmot(Network("resnet", {"depth": 8}), methods=METHODS | SURVEY), minutes=5),
    **{f"resnet{depth}": _against_tfmot(Network("resnet", {"depth": depth})) for depth in (20, 32, 56)},
    # Where no kernel is larger than 1x1, kernels are weights.
    "mobilenet": _against_tfmot(Network("mobilenet", {"alpha": 1.0, "blocks": MOBILENET_SMALL}), without=("gibbs-kernel",)),
    "few-images": _long(100, 3, images=5000, rival="tfmot-two-thirds"),
    "few-images-wide": _long(120, 4, widths=(32, 64, 128), images=2000, rival="tfmot-two-thirds"),
    "all-images": _long(50, 10),
    "pretrained": _long(8, 2, rate=1e-3, start="all-images"),
    "channels-resnet8": _channels_at((30, 50)),
    "channels-resnet": _channels(Network("resnet18", {"width": 8}), "cifar10_16", 60, 2e-3, 6, images=5000),
    "channels-alexnet": _channels(Network("alexnet", {"width": 16}), "cifar10_16", 60, 1e-3, 3, images=5000),
    "channels-squeezenet": _channels(Network("squeezenet", {"width": 32}), "cifar10_16", 60, 1e-3, 5, images=5000),
    "channels-fashion": _channels(Network("resnet18", {"width": 8}), "fashion_mnist", 30, 2e-3, 9, images=5000),
    "subnetworks-conv2": _subnetworks(2, 60, 3, images=5000),
    "subnetworks-conv4": _subnetworks(4, 60, 5, images=5000),
    "subnetworks-conv6": _subnetworks(6, 60, 6, images=5000),
    "mlp-fashion": _against_tfmot(Network("mlp", {"hidden": (300, 100)}), "fashion_mnist", rate=1e-3, augmented=False, without=("gibbs-kernel",)),
}
