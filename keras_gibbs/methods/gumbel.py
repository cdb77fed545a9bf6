"""Gumbel-softmax subnetwork extraction (Dupont et al. 2022)."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_number
from keras_gibbs.budget import Budget
from keras_gibbs.configuration import register
from keras_gibbs.methods.learned import LearnedMask, straight_through
from keras_gibbs.schedules import Linear, Schedule


@register
@dataclasses.dataclass(frozen=True)
class GumbelSoftmax(LearnedMask):
    """Find the subnetwork: learn which weights of a random network to keep, and leave the weights themselves as they are.

    A group is kept with probability sigmoid(m), m its learned logit. Training draws hard masks, z = 1 where m plus logistic noise is positive, and
    gives m the gradient of the soft ones, y = sigmoid((m + noise) / temperature) (straight-through). In the end every group with m >= 0 is kept, its
    layer's scale folded into the kernel: no fine-tuning.

    With `train_weights=True` weights and masks are learned together, an extension of ours; so is a target `sparsity`.

    Args:
        temperature: Of the soft mask, greater than 0; the hard mask's law does not depend on it.
        initial_logit: Where the logits start; 0 keeps one half.
        sparsity: None lets the fraction removed come out as it will, as in the paper. A number in [0, 1) or a `Schedule` keeps exactly the groups with
            the largest logits, and a penalty on the expected kept fraction leads the logits there during training.
        penalty_weight: Weight of that penalty. It is multiplied by the number of groups of the layer; larger values follow the target closely and leave the
            loss less say.
        structure, rescale, signed_constant, train_weights, logit_rate, scale_rate: As in `LearnedMask`.

    Raises:
        ValueError: For a temperature that is not positive, a sparsity outside [0, 1), and the like.

    Example:

    >>> pruned = kg.prune(untrained, kg.GumbelSoftmax())
    >>> pruned.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    >>> pruned.fit(x, y, epochs=60, callbacks=[kg.GibbsPruningCallback()])

    Reference: Dupont, Alaoui, Sahbi, Lebois 2022, "Extracting effective subnetworks with Gumbel-softmax", ICIP; the authors' code N0ciple/ASLP
    (strategies/ASLP/layer_functions.py; equations not checked).
    """

    temperature: float = dataclasses.field(default=1.0, kw_only=True)
    initial_logit: float = dataclasses.field(default=0.0, kw_only=True)
    sparsity: float | Schedule | Budget | None = dataclasses.field(default=None, kw_only=True)
    penalty_weight: float = dataclasses.field(default=0.01, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        require_number(temperature=self.temperature, initial_logit=self.initial_logit, penalty_weight=self.penalty_weight)
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be greater than 0. Received: temperature={self.temperature!r}. The paper's is 1.")
        if self.penalty_weight < 0:
            raise ValueError(f"`penalty_weight` must not be negative. Received: penalty_weight={self.penalty_weight!r}. 0 is no penalty.")

    def schedules(self):
        schedules = super().schedules()
        if self.sparsity is None:
            return schedules
        sparsity = schedules["sparsity"]
        start = 1.0 / (1.0 + math.exp(self.initial_logit))
        path = Linear(start, sparsity(1.0), end=0.5) if sparsity.span is None else sparsity
        return schedules | {"expected_sparsity": path}

    def initial_logits(self, shape):
        return np.full(shape, self.initial_logit)

    def sample(self, weight, state, uniform):
        noise = uniform((1, 1, *weight.shape[2:]))
        tilted = self.logits(state) + ops.log(noise) - ops.log1p(-noise)
        return straight_through(ops.cast(tilted > 0, "float32"), ops.sigmoid(tilted / self.temperature))

    def penalty(self, state):
        if self.sparsity is None:
            return None
        kept = ops.sigmoid(self.logits(state))
        excess = ops.mean(kept) - (1.0 - state["expected_sparsity"])
        return self.penalty_weight * math.prod(kept.shape) * excess * excess
