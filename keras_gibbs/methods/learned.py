"""What the methods share that learn a number for every group and keep the weights of the network as they are."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_gibbs.arguments import require_flag, require_number
from keras_gibbs.methods.base import check_sparsity, check_structure
from keras_gibbs.methods.ranked import RankedMethod
from keras_gibbs.methods.traits import ChecksTraining, LearnsMasks
from keras_gibbs.numerics import ranking
from keras_gibbs.specs import Spec
from keras_gibbs.structure.groups import Structure, Unstructured
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.typing import Tensor

RESCALES = ("smart", "dynamic", None)

# Optimizers whose update is measured by the variable's own norm, or mixes its entries: a multiplier of the rate does not come through.
UNSERVED = (keras.optimizers.Adafactor, keras.optimizers.Lamb, keras.optimizers.Muon)


def multiplied(variable: Tensor, rate: float) -> Tensor:
    """`rate * variable`, with the gradient of `variable` itself: where an optimizer moves the variable by d, the result moves by `rate * d`.

    So one optimizer serves variables that want different learning rates, whether it is SGD, momentum or Adam.
    """
    return variable + ops.stop_gradient((rate - 1.0) * variable)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft`."""
    return ops.stop_gradient(hard) + (soft - ops.stop_gradient(soft))


@dataclasses.dataclass(frozen=True)
class LearnedMask(LearnsMasks, ChecksTraining, RankedMethod):
    """Base of the methods that learn masks.

    Every group has a logit m, a trainable variable; a subclass draws masks from the logits and says how the gradient reaches them. The weights, and
    every other variable of the model, stay at their values unless `train_weights`; statistics of BatchNormalization still move.

    Args:
        structure: `Unstructured()`, `Kernel()` or `Filter()`: one logit per group.
        rescale: `"smart"` multiplies the kernel by one learned scalar per layer, `"dynamic"` by n / kept of each mask, None by nothing.
        signed_constant: True replaces the kernels, once, when they are wrapped, by their signs times their standard deviation; `"conv"` those of
            convolutions only, which is what the authors' code does; False keeps them. None is True unless `train_weights`.
        train_weights: True trains weights and masks together.
        logit_rate: Learning rate of the logits, in multiples of the optimizer's.
        scale_rate: Learning rate of the scales, likewise.
    """

    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    rescale: str | None = dataclasses.field(default="smart", kw_only=True)
    signed_constant: bool | str | None = dataclasses.field(default=None, kw_only=True)
    train_weights: bool = dataclasses.field(default=False, kw_only=True)
    logit_rate: float = dataclasses.field(default=20.0, kw_only=True)
    scale_rate: float = dataclasses.field(default=1.0, kw_only=True)

    sparsity = None  # where a subclass has a target, exactly the groups with the largest scores are kept; otherwise those with m >= 0

    def __post_init__(self):
        check_structure(self.structure)
        if self.sparsity is not None:
            self.structure.check_sparsity(check_sparsity(self.sparsity))
        elif not self.structure.one_contest:
            raise ValueError(f"{self.structure.brief()} keeps a number of groups, so it needs a `sparsity`. Received: sparsity=None.")
        require_flag(train_weights=self.train_weights)
        if not isinstance(self.rescale, (str, type(None))) or self.rescale not in RESCALES:
            raise ValueError(f"`rescale` must be 'smart', 'dynamic' or None. Received: rescale={self.rescale!r}.")
        if not isinstance(self.signed_constant, (bool, str, type(None))) or self.signed_constant not in (True, False, None, "conv"):
            raise ValueError(f"`signed_constant` must be True, False, None or 'conv'. Received: signed_constant={self.signed_constant!r}.")
        for name in ("logit_rate", "scale_rate"):
            value = getattr(self, name)
            require_number(**{name: value})
            if value <= 0:
                raise ValueError(f"`{name}` multiplies a learning rate and must be positive. Received: {name}={value!r}.")

    @property
    def trains_weights(self):
        return self.train_weights

    def schedules(self):
        return {} if self.sparsity is None else super().schedules()

    def mode(self, weight, state):
        if self.sparsity is not None:
            return super().mode(weight, state)
        logits = self.logits(state)
        least = ops.minimum(ops.max(logits), 0.0) if self.structure.coupled else 0.0  # where no channel is left the network is cut
        return ops.cast(logits >= least, "float32")

    def follow(self, weight, state, exact=False):
        return {}  # masks are drawn from the logits

    def decide(self, weight, state):
        return {} if self.sparsity is None else super().decide(weight, state)

    def initial_logits(self, shape: tuple[int, ...]) -> np.ndarray:
        """The logits that training starts from."""
        return np.zeros(shape)

    def state(self, shape):
        state = super().state(shape)
        # One contest takes no axis here: so the optimizer's own variables have the shape that they have in files of version 0.1.
        logits = self.initial_logits((1, 1, shape[2]) if self.structure.one_contest else (1, 1, *shape[2:]))
        state["logits"] = Spec(logits / self.logit_rate, trainable=True)
        if self.rescale == "smart":
            state["scale"] = Spec(1.0 / self.scale_rate, trainable=True)
        return state

    def logits(self, state) -> Tensor:
        """m of every group, `(1, 1, groups, contests)`."""
        logits = multiplied(state["logits"], self.logit_rate)
        return logits[..., None] if self.structure.one_contest else logits

    def scores(self, weight, state):
        return ops.stop_gradient(self.logits(state))

    def keys_of(self, scores):
        return ranking.to_key(scores)

    def apply(self, weight, mask, state):
        masked = weight * mask
        if self.rescale == "smart":
            return masked * ops.cast(multiplied(state["scale"], self.scale_rate), weight.dtype)
        if self.rescale == "dynamic":
            kept = ops.sum(ops.stop_gradient(mask))
            return masked * (math.prod(mask.shape) / ops.maximum(kept, 1))
        return masked

    def replaces(self, weight):
        wanted = not self.train_weights if self.signed_constant is None else self.signed_constant
        return bool(wanted) and not (wanted == "conv" and is_a(weight.owner, "Dense", "EinsumDense"))

    def prepare(self, value):
        size = ops.cast(ops.std(ops.cast(value, "float32")), value.dtype)
        return ops.where(value < 0, -size, size)

    def check_training(self, optimizer, layers):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if is_a(inner, *UNSERVED):
            raise ValueError(
                f"{type(self).__name__} gives logits and scales learning rates of their own, and {type(inner).__name__} measures its update by the size of "
                "the variable, so that no multiplier comes through. Use SGD, Adam, AdamW, RMSprop or another optimizer that works entry by entry."
            )
        if self.train_weights and not any(layer.layer.trainable for layer in layers):
            raise ValueError(
                f"`train_weights=True` trains the weights of the pruned layers, and all of them are frozen: {[layer.name for layer in layers]}. Set "
                "`trainable = True` on some, or leave `train_weights` out to learn masks alone."
            )

    def figures(self, weight, state, mask):
        figures = {"kept": ops.mean(mask)}
        return figures | ({"scale": state["scale"] * self.scale_rate} if self.rescale == "smart" else {})
