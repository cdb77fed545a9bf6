"""Criteria: what a weight is worth, by which methods decide what stays.

A criterion looks at one weight, arranged as `(channels, positions, groups, contests)`, and may keep state that follows the gradients of training. A new
one is one small class:

>>> @keras.saving.register_keras_serializable(package="my_project")
... @dataclasses.dataclass(frozen=True)
... class AbsoluteWeight(kg.Criterion):
...     def worth(self, weight, state):
...         return keras.ops.absolute(weight)
>>> kg.Magnitude(0.9, criterion=AbsoluteWeight())
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_number
from keras_gibbs.configuration import Configuration, register
from keras_gibbs.specs import Spec
from keras_gibbs.typing import Tensor

TINY = 1e-20  # far below any squared gradient: where none was seen yet, weights compare by their squares alone


class Criterion(Configuration):
    """Base of the criteria; a subclass is a frozen dataclass of its constants.

    Attributes:
        squares: True where a weight twice as large is worth four times as much: then groups of several weights are ranked at a scale at which squares do not
            leave the range of float32.
    """

    squares = False

    def worth(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What every weight is worth: float32, not negative, in the shape of `weight`."""
        raise NotImplementedError

    def order(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What ranks single weights: numbers of the same order as `worth`, not negative, which may have a wider range."""
        return self.worth(weight, state)

    def state(self, shape: tuple[int, int, int, int]) -> dict[str, Spec]:
        """State variables that follow the gradients, for a weight of arranged `shape`; every one with `overwritten=True`."""
        return {}

    def observe(self, gradient: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state after a training step in which the loss had `gradient` with respect to the masked weight, float32 in the weight's arranged shape."""
        return {}


@register
@dataclasses.dataclass(frozen=True)
class SquaredWeight(Criterion):
    """w^2: magnitude pruning, and the energy of Gibbs pruning (gibbs_pruning.py:104-126).

    Example:

    >>> kg.Gibbs(0.9, criterion=kg.SquaredWeight())
    """

    squares = True

    def worth(self, weight, state):
        return weight * weight

    def order(self, weight, state):
        return ops.absolute(weight)  # whose squares may underflow, or overflow


@register
@dataclasses.dataclass(frozen=True)
class CurvatureEnergy(Criterion):
    """w^2 F, the expected rise of the loss (up to a factor of one half) when a weight is removed.

    F is a running mean of the squared gradient with respect to the masked weight: an estimate of the diagonal of the Hessian, which removed weights have as
    well, since the loss looks at the kernel after its mask. It costs no pass of its own. Worths are in units of the loss, so that those of different layers
    can be compared with `scope="global"`; give that a `floor`, for a layer that loses most of its weights early otherwise loses them all.

    The gradient is that of the mean loss over a batch, smaller in every layer alike where batches are larger; only ratios count. F is one float32 variable
    in the shape of the kernel. It is among the trainable ones and its new value comes where a gradient would, which every Keras optimizer knows to assign
    (`overwrite_with_gradient`); a training loop with an optimizer of another kind has to do the same. Keras keeps no average of such variables, so optimizers
    with `use_ema=True` are refused; with `gradient_accumulation_steps` it takes the largest of the values that one update collects. Under a strategy with
    replicas the gradient is that of the global batch.

    Args:
        decay: Weight of the past in the running mean, in [0, 1): 0.998 remembers about 500 steps. A mean over few steps lets the mask flicker.

    Raises:
        ValueError: For a decay outside [0, 1).

    Example:

    >>> kg.Magnitude(kg.Polynomial(0.0, 0.95, end=0.5), criterion=kg.CurvatureEnergy(), scope="global", floor=0.4, settle=0.64)

    Reference: the saliency of LeCun, Denker & Solla 1990, Optimal Brain Damage, with the empirical Fisher information in place of the second derivative.
    """

    decay: float = 0.998

    squares = True

    def __post_init__(self):
        require_number(decay=self.decay)
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1). Received: decay={self.decay!r}. 0.998 remembers about 500 steps.")

    def worth(self, weight, state):
        return weight * weight * (state["curvature"] + TINY)

    def state(self, shape):
        return {"curvature": Spec(np.zeros(shape), overwritten=True)}

    def observe(self, gradient, state):
        return {"curvature": self.decay * state["curvature"] + (1.0 - self.decay) * gradient * gradient}
