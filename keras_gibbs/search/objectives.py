"""Energies of candidate states: what a search over subnetworks minimizes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_gibbs.arguments import require_number
from keras_gibbs.configuration import Configuration, register
from keras_gibbs.typing import Tensor


@dataclasses.dataclass(frozen=True)
class Context:
    """What an objective may look at: S candidate states on one batch.

    Attributes:
        logits: float32 tensor `(S, B, K)`, what the model gives under each state; logarithms of the probabilities where it ends in a softmax. For a model
            of another form, its outputs with a leading axis S.
        labels: int32 tensor `(B,)`; where the targets are no classes, the targets as they came.
        bits: float32 tensor `(S, D)`, 1 where a filter or unit is kept.
        layers: Dict from the name of a layer to the slice of its bits, in the order of the bits.
        parameters: float32 tensor `(D,)`, how many weights and biases each bit removes.
        kernels: Dict from the name of a layer to its kernel, arranged as `(channels, positions, filters)`.
        features: Function without arguments: dict from the name of a layer to its outputs `(B, ..., filters)` under the best state so far. A forward pass
            of its own, made where it is called.
    """

    logits: Any
    labels: Tensor
    bits: Tensor
    layers: dict[str, slice]
    parameters: Tensor
    kernels: dict[str, Tensor]
    features: Callable[[], dict[str, Tensor]]


class Objective(Configuration):
    """Base of the objectives: frozen dataclasses, called with a `Context`, that give float32 energies `(S,)`; lower is better.

    Any callable of that form serves as well; what a subclass adds is `+`. Both are saved with the model; one of your own must be registered with
    `keras.saving.register_keras_serializable()`, or passed to `load_model` in `custom_objects`.
    """

    needs_classes = False  # True where the model must have one output of class logits

    def __call__(self, context: Context) -> Tensor:
        raise NotImplementedError

    def __add__(self, other: "Objective") -> "Sum":
        return Sum((self, other))

    def __radd__(self, other: Callable) -> "Sum":
        return self if other == 0 else Sum((other, self))  # `sum` begins with 0


@register
@dataclasses.dataclass(frozen=True)
class Sum(Objective):
    """The sum of several objectives, which `+` makes."""

    terms: tuple

    def __post_init__(self):
        object.__setattr__(self, "terms", tuple(self.terms))  # saved as a list
        for term in self.terms:
            if not callable(term):
                raise TypeError(f"The terms of an objective are objectives or callables. Received: {term!r}.")

    @property
    def needs_classes(self):
        return any(getattr(term, "needs_classes", False) for term in self.terms)

    def __call__(self, context):
        return sum(term(context) for term in self.terms)


def _chosen(context):
    """Where the label is, bool `(B, K)`."""
    classes = context.logits.shape[-1]
    return ops.equal(ops.expand_dims(context.labels, -1), ops.arange(classes, dtype="int32"))


def _where_classes_exist(context, energies):
    """`energies`, or NaN where a label is none of the classes."""
    classes = context.logits.shape[-1]
    valid = ops.logical_and(ops.min(context.labels) >= 0, ops.max(context.labels) < classes)
    return ops.where(valid, energies, math.nan)


@register
@dataclasses.dataclass(frozen=True)
class MarginEnergy(Objective):
    """How far the best wrong class is above the right one: the mean over the batch of max over k != y of f_k, less f_y. Negative is correct.

    `sample_weight` and `class_weight` of `fit` do not enter. A label outside the classes makes the energy of the whole batch NaN, which no state accepts.

    Example:

    >>> kg.EDropout(objective=kg.MarginEnergy() + kg.KeepPenalty(0.5))

    Reference: Salehinejad & Valaee, https://arxiv.org/abs/2006.04270; the authors' code takes ten times this (edropout.py:322-328).
    """

    needs_classes = True

    def __call__(self, context):
        chosen = _chosen(context)
        right = ops.sum(ops.where(chosen, context.logits, 0.0), axis=-1)
        wrong = ops.max(ops.where(chosen, -math.inf, context.logits), axis=-1)
        return _where_classes_exist(context, ops.mean(wrong - right, axis=-1))


@register
@dataclasses.dataclass(frozen=True)
class CrossEntropyEnergy(Objective):
    """The cross-entropy of the batch, in nats.

    Example:

    >>> kg.EDropout(objective=kg.CrossEntropyEnergy())
    """

    needs_classes = True

    def __call__(self, context):
        right = ops.sum(ops.where(_chosen(context), context.logits, 0.0), axis=-1)
        return _where_classes_exist(context, ops.mean(ops.logsumexp(context.logits, axis=-1) - right, axis=-1))


@register
@dataclasses.dataclass(frozen=True)
class KeepPenalty(Objective):
    """A budget: `weight` times the distance of the kept fraction from `target`, on both sides.

    The kept fraction counts the weights and biases of the layers that are searched. The energy of the network is blind to size: without a budget what is kept
    comes out as it will.

    Args:
        target: Kept fraction, in (0, 1].
        weight: Energy per unit of distance, positive; in the units of the objective it is added to.

    Raises:
        ValueError: For a target or weight outside these.

    Example:

    >>> kg.MarginEnergy() + kg.KeepPenalty(0.5)

    Two-sided and in parameters, where the authors' has one side and counts bits (sparsifai/ipruning, pidropout.py:520-541).
    """

    target: float
    weight: float = 100.0

    def __post_init__(self):
        require_number(target=self.target, weight=self.weight)
        if not 0.0 < self.target <= 1.0:
            raise ValueError(f"`target` is the fraction of parameters that is KEPT, in (0, 1]. Received: target={self.target!r}.")
        if self.weight <= 0:
            raise ValueError(f"`weight` must be a positive number. Received: weight={self.weight!r}.")

    def __call__(self, context):
        kept = ops.matmul(context.bits, context.parameters) / ops.sum(context.parameters)
        return self.weight * ops.absolute(kept - self.target)
