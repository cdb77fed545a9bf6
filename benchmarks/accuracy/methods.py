"""The methods that are compared with TF-MOT: name -> function of the sparsity to what `suites.Variant.method` may be."""

import numpy as np

import keras_gibbs as kg
from benchmarks.accuracy.train_tfmot import TFMOT
from benchmarks.accuracy.train_tickets import Tickets
from benchmarks.common.networks import prunable


def _random(sparsity):
    """Masks that remove weights at random, the same fraction of every layer, from the first step on."""

    def masks(network, seed, earlier):
        rng = np.random.default_rng([seed, 2])
        pattern = kg.prune(network, kg.Magnitude(sparsity), where=prunable)  # which layers, and how many
        return kg.Fixed({layer.name: rng.permuted(np.array(layer.mask()).ravel()).reshape(layer.mask().shape) for layer in kg.pruned_layers(pattern)})

    return masks


def _magnitude_before(sparsity):
    """Masks of the largest initial weights of every layer, which stay."""

    def masks(network, seed, earlier):
        pattern = kg.prune(network, kg.Magnitude(sparsity), where=prunable)
        return kg.Fixed({layer.name: np.array(layer.mask()) for layer in kg.pruned_layers(pattern)})

    return masks


# The most telling first.
METHODS = {
    "tfmot": lambda sparsity: TFMOT(sparsity, frequency=10),
    "gibbs-recommended": lambda sparsity: kg.Gibbs.recommended(sparsity),
    "gibbs-curvature": lambda sparsity: kg.Gibbs.recommended(sparsity, criterion=kg.CurvatureEnergy(), beta=kg.Geometric(1.0, 50.0, end=0.5)),
    "gibbs": lambda sparsity: kg.Gibbs(sparsity),
    "magnitude": lambda sparsity: kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5)),
    "magnitude-shape": lambda sparsity: kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5), scope="shape", settle=0.5),
    "magnitude-curvature": lambda sparsity: kg.Magnitude(kg.Polynomial(0.0, sparsity, end=0.5), scope="shape", settle=0.5, criterion=kg.CurvatureEnergy()),
    "gumbel-joint": lambda sparsity: kg.GumbelSoftmax(train_weights=True, sparsity=sparsity),
    "gumbel": lambda sparsity: kg.GumbelSoftmax(sparsity=sparsity),
    "gibbs-kernel": lambda sparsity: kg.Gibbs(sparsity, structure=kg.Kernel()),
    "gibbs-filter": lambda sparsity: kg.Gibbs(sparsity, structure=kg.Filter()),
    "edropout": lambda sparsity: kg.EDropout(objective=kg.MarginEnergy() + kg.KeepPenalty(round(1 - sparsity, 6))),
    "random": _random,
    # TF-MOT by other schedules; `tfmot` above is the best of them on validation images.
    "tfmot-default": lambda sparsity: TFMOT(sparsity),
    "tfmot-early": lambda sparsity: TFMOT(sparsity, end=0.35),
    "tfmot-late": lambda sparsity: TFMOT(sparsity, end=0.65),
    "tfmot-every": lambda sparsity: TFMOT(sparsity, frequency=1),
    "tfmot-delayed": lambda sparsity: TFMOT(sparsity, begin=0.15, frequency=10),
}
# The rest of the survey's frame: masks found before training, masks that drop and regrow, a growing penalty, lottery tickets.
SURVEY = {
    "rigl": kg.RigL,
    "set": kg.SET,
    "snip": kg.SNIP,
    "grasp": kg.GraSP,
    "synflow": kg.SynFlow,
    "force": kg.FORCE,
    "iterative-snip": kg.IterativeSNIP,
    "random-shape": lambda sparsity: kg.Random(sparsity, scope="shape"),
    "magnitude-before": _magnitude_before,
    "greg": lambda sparsity: kg.GReg(sparsity, choose=0.3),
    "lottery": lambda sparsity: Tickets(sparsity, rounds=3),
}
# More or other noise than `Gibbs.recommended` has, one thing at a time. Its own: beta from 5 to 100 in the first half of training, then a held mask.
NOISE = {
    "noise-1-100": lambda sparsity: kg.Gibbs.recommended(sparsity, beta=kg.Geometric(1.0, 100.0, end=0.5)),
    "noise-2-50": lambda sparsity: kg.Gibbs.recommended(sparsity, beta=kg.Geometric(2.0, 50.0, end=0.5)),
    "noise-longer": lambda sparsity: kg.Gibbs.recommended(sparsity, beta=kg.Geometric(5.0, 100.0, end=0.75), settle=0.75),
    "noise-exact": lambda sparsity: kg.Gibbs.recommended(sparsity, count="exact"),
    "noise-curvature": lambda sparsity: kg.Gibbs.recommended(sparsity, criterion=kg.CurvatureEnergy()),
    "noise-authors": lambda sparsity: kg.Gibbs(kg.Polynomial(0.0, sparsity, end=0.5), scope="shape", settle=0.64),
}
# TF-MOT with masks found anew every 10 steps, over other parts of training than the first half.
LONG_TFMOT = {
    "tfmot-third": lambda sparsity: TFMOT(sparsity, end=0.35, frequency=10),
    "tfmot-two-thirds": lambda sparsity: TFMOT(sparsity, end=0.65, frequency=10),
    "tfmot-four-fifths": lambda sparsity: TFMOT(sparsity, end=0.8, frequency=10),
    "tfmot-from-half": lambda sparsity: TFMOT(sparsity, initial=0.5, frequency=10),
}
NOTES = {  # what a reader of the tables has to know of a method
    "tfmot": "TF-MOT itself, `prune_low_magnitude` on tf_keras, masks found anew every 10 steps to one half of training: its best on six epochs",
    "gibbs-recommended": "`Gibbs.recommended`: little noise, shares by shape, a mask held from the middle of training on",
    "gibbs-curvature": "the recipe by curvature, with more noise",
    "gibbs": "the authors' law and schedule",
    "magnitude": "our `Magnitude`, to one half of training",
    "magnitude-shape": "the recipe without noise: our `Magnitude` with its shares and held mask",
    "magnitude-curvature": "the recipe by curvature and without noise",
    "gumbel-joint": "weights and masks together, an extension of ours",
    "gumbel": "masks only, the weights stay as they were drawn",
    "edropout": "whole filters, drawn to the sparsity by a penalty",
    "tfmot-default": "TF-MOT with masks found every 100 steps, its default",
    "tfmot-early": "TF-MOT with its default, to 35 % of training",
    "tfmot-late": "TF-MOT with its default, to 65 % of training",
    "tfmot-every": "TF-MOT with masks found every step",
    "tfmot-delayed": "TF-MOT every 10 steps, from 15 to 50 % of training",
    "noise-1-100": "the recipe with beta from 1 to 100",
    "noise-2-50": "the recipe with beta from 2 to 50",
    "noise-longer": "the recipe with noise in three quarters of training, not in half",
    "noise-exact": "the recipe with draws of an exact count",
    "noise-curvature": "the recipe by curvature",
    "noise-authors": "the authors' law and schedule, with shares by shape and a mask held from 64 % of training on",
    "tfmot-third": "TF-MOT every 10 steps, to 35 % of training",
    "tfmot-two-thirds": "TF-MOT every 10 steps, to 65 % of training",
    "tfmot-four-fifths": "TF-MOT every 10 steps, to 80 % of training",
    "tfmot-from-half": "TF-MOT every 10 steps, from half of the weights on, to one half of training",
}
RATES = {"gumbel": 1e-2}  # what learns masks only needs larger steps
