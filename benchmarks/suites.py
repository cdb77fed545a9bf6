"""What the comparisons train: configurations as data, for `compare.py`.

A suite is one network on one data set under one schedule, and the variants that are compared on it. Variants are listed the most telling first, so that
any number of finished runs is a result.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from networks import Network, prunable
from train_tfmot import TFMOT

import keras_gibbs as kg


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a comparison.

    Attributes:
        name: Its name in tables and file names.
        method: From the network, the seed and the finished results of the same suite and seed, by variant name, to a pruning method, or to a `TFMOT`;
            None trains the dense network.
        rate: Learning rate of Adam at the start; it falls to zero along a cosine.
        needs: The variants whose results `method` reads.
    """

    name: str
    method: Callable
    rate: float
    needs: tuple[str, ...] = ()


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


def _fixed(method):
    return lambda network, seed, earlier: method


def _extraction():
    """GumbelSoftmax with and without signed constants, with each rescale, beside its baselines and the dense network."""
    gumbel = [
        Variant(
            f"gumbel-{rescale or 'none'}-{'signed' if signed else 'normal'}",
            _fixed(kg.GumbelSoftmax(rescale=rescale, signed_constant=signed)),
            rate=1e-2,
        )
        for signed in (True, False)
        for rescale in ("smart", "dynamic", None)
    ]
    others = [
        Variant("dense", _fixed(None), rate=1e-3),
        Variant("edge-popup", _fixed(kg.EdgePopup(0.5)), rate=1e-2),
        Variant("supermask", _fixed(kg.Supermask(rescale="smart")), rate=1e-2),
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
    variants = [Variant("dense", _fixed(None), rate), Variant("edropout", _fixed(kg.EDropout()), rate)]
    if not normalized:  # where a small output is the better margin, the cross-entropy is no worse off
        variants.append(Variant("edropout-cross-entropy", _fixed(kg.EDropout(objective=kg.CrossEntropyEnergy())), rate))
    if compared:
        variants += [Variant("magnitude", _magnitude_filters, rate, ("edropout",)), Variant("random", _random_filters, rate, ("edropout",))]
    return Suite(network, dataset, epochs, tuple(variants), augmented=augmented, detailed=True)


LEVELS = (98, 95, 90, 80, 50)  # per cent removed, the most telling first


def _random(sparsity):
    """A mask that removes weights at random, the same fraction of every layer, from the first step on."""

    def masks(network, seed, earlier):
        rng = np.random.default_rng([seed, 2])
        pattern = kg.prune(network, kg.Magnitude(sparsity), where=prunable)  # which layers, and how many
        return kg.Fixed({layer.name: rng.permuted(np.array(layer.mask()).ravel()).reshape(layer.mask().shape) for layer in kg.pruned_layers(pattern)})

    return masks


# The methods that are compared with TF-MOT, the most telling first: name -> from the sparsity to what `Variant.method` is.
METHODS = {
    "tfmot": lambda sparsity: _fixed(TFMOT(sparsity)),
    "gibbs-recommended": lambda sparsity: _fixed(kg.Gibbs.recommended(sparsity)),
    "gibbs": lambda sparsity: _fixed(kg.Gibbs(sparsity)),  # the authors' law and schedule
    "magnitude": lambda sparsity: _fixed(kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5))),
    # What of the recommended recipe is its shares, its criterion and its noise: magnitude with the first, with the first two.
    "magnitude-shape": lambda sparsity: _fixed(kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5), scope="shape", settle=0.5)),
    "magnitude-curvature": lambda sparsity: _fixed(
        kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5), scope="shape", settle=0.5, criterion=kg.CurvatureEnergy())
    ),
    "gumbel-joint": lambda sparsity: _fixed(kg.GumbelSoftmax(train_weights=True, sparsity=sparsity)),  # weights and masks together: an extension of ours
    "gumbel": lambda sparsity: _fixed(kg.GumbelSoftmax(sparsity=sparsity)),  # masks only
    "gibbs-kernel": lambda sparsity: _fixed(kg.Gibbs(sparsity, structure=kg.Kernel())),
    "gibbs-filter": lambda sparsity: _fixed(kg.Gibbs(sparsity, structure=kg.Filter())),
    "edropout": lambda sparsity: _fixed(kg.EDropout(objective=kg.MarginEnergy() + kg.KeepPenalty(1 - sparsity))),  # whole filters, and a budget
    "random": _random,
}
RATES = {"gumbel": 1e-2}  # what learns masks only needs larger steps


def _against_tfmot(network, dataset="cifar10", epochs=6, rate=2e-3, augmented=True, without=()):
    """Every method at every level, beside the dense network."""
    levels = [
        Variant(f"{name}-{level}", method(level / 100), RATES.get(name, rate)) for level in LEVELS for name, method in METHODS.items() if name not in without
    ]
    variants = (Variant("dense", _fixed(None), rate), *levels)
    return Suite(network, dataset, epochs, variants, augmented=augmented, where=prunable, exported=True)


SUITES = {
    "extraction": _extraction(),
    "filters-fashion": _filters(Network("resnet18", {"width": 8}), "fashion_mnist", 8),
    "filters-resnet": _filters(Network("resnet18", {"width": 8}), "cifar10", 3, compared=False),
    "filters-alexnet": _filters(Network("alexnet", {"width": 16}), "cifar10", 8, rate=1e-3, compared=False, normalized=False),
    "filters-squeezenet": _filters(Network("squeezenet", {"width": 32}), "cifar10", 5, rate=1e-3, compared=False, normalized=False),
    **{f"resnet{depth}": _against_tfmot(Network("resnet", {"depth": depth})) for depth in (8, 20, 32, 56)},
    "mobilenet": _against_tfmot(Network("mobilenet", {"alpha": 0.5})),
    "mlp-fashion": _against_tfmot(Network("mlp"), "fashion_mnist", rate=1e-3, augmented=False, without=("gibbs-kernel",)),  # 1x1 kernels are weights
}
