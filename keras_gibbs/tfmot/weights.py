"""The weights that TF-MOT prunes, and masks that are folded into them."""

import dataclasses
import types
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.structure import graph
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.layouts import standard_layout
from keras_gibbs.structure.prunable import ATTENTION, Prunable, is_variable, rows_of
from keras_gibbs.weights import MaskedWeight

CHANGED = 1e-3  # relative difference from which on a folded weight counts as written by someone else


class Folding:
    """A variable that a mask is folded into: its dense values are kept beside it, with the mask and the threshold that TF-MOT looks for.

    While the model trains, the variable holds W, the dense values. Folded, it holds what inference runs with, and the copy holds W.

    Args:
        owner, name: The layer that has the variable as an attribute, and the name of the attribute.
        find: From W to its mask as it is now, in the shape of W.
        under: From W and a mask to what inference runs with.
        is_folded: Function that tells whether the layer is folded, a scalar bool tensor.
        add_variable: As for `MaskedWeight`.
    """

    def __init__(self, owner, name: str, find: Callable, under: Callable, is_folded: Callable, add_variable: Callable):
        self.owner, self.name, self.variable = owner, name, getattr(owner, name)
        self._find, self._under, self._is_folded = find, under, is_folded
        # Under mixed precision a variable gives the dtype that it is read in.
        dtype = tf.as_dtype(getattr(self.variable, "true_dtype", self.variable.dtype)).name
        for part, value in (("mask", np.ones(self.variable.shape)), ("threshold", 0.0), ("dense", np.zeros(self.variable.shape))):
            setattr(self, part, add_variable(part, value, dtype, False, False))

    def value(self):
        """W. A folded variable that something else has written since, averaged or loaded, is the new W."""
        variable = tf.convert_to_tensor(self.variable)

        def unfolded():
            dense = tf.convert_to_tensor(self.dense)
            folded = self._under(dense, tf.convert_to_tensor(self.mask))
            unchanged = tf.reduce_all(tf.abs(variable - folded) <= tf.cast(CHANGED, variable.dtype) * tf.abs(folded))
            return tf.where(unchanged, dense, variable)

        return tf.cond(self._is_folded(), unfolded, lambda: variable)

    def masked(self):
        """What inference runs with; the variable must hold W."""
        variable = tf.convert_to_tensor(self.variable)
        return self._under(variable, self._find(variable))

    def fold(self) -> None:
        """Write what inference runs with into the variable, and W into the copy."""
        dense = self.value()
        mask = self._find(dense)
        self.dense.assign(dense)
        self.mask.assign(tf.cast(mask, self.mask.dtype))
        self.threshold.assign(tf.reduce_min(tf.where(mask > 0, tf.abs(dense), dense.dtype.max)))
        self.variable.assign(self._under(dense, mask))

    def unfold(self) -> None:
        """Give the variable W back."""
        self.variable.assign(self.value())


class FoldedWeight(MaskedWeight):
    """A masked weight of a tf_keras layer, into which its mask can be folded; and its bias, where that is removed with the units.

    Args:
        weight, method, seed, add_variable: As for `MaskedWeight`.
        is_folded: Function that tells whether the layer is folded, a scalar bool tensor.
    """

    candidate = types.MappingProxyType({})  # the state of a candidate, for as long as a search scores it

    def __init__(self, weight: Prunable, method: PruningMethod, seed: int, add_variable: Callable, is_folded: Callable):
        def add_state(name, *args):
            return add_variable(name if name == "key" else f"state_{name}", *args)

        def under(dense, mask):
            return self.under(self.masks.arrange(mask), dense)

        self.foldings = [Folding(weight.owner, weight.name, self._find, under, is_folded, add_variable)]
        super().__init__(weight, method, seed, add_state)
        if self.bias is not None:
            self.foldings.append(Folding(weight.owner, "bias", lambda dense: self.bias_mask(), tf.multiply, is_folded, add_variable))

    def specs(self):
        # As in files of version 0.1: no axis for contests where there is one, and no decision; before it is folded, a weight finds its mask anew.
        specs = {name: spec for name, spec in super().specs().items() if name != "decision"}
        self._shapes = {name: np.shape(spec.value) for name, spec in specs.items()}
        return {
            name: dataclasses.replace(spec, value=np.asarray(spec.value)[..., 0]) if len(shape := self._shapes[name]) == 4 and shape[3] == 1 else spec
            for name, spec in specs.items()
        }

    def _find(self, dense):
        return self.masks.restore(self.masks.mode(dense, self.values()))

    def value(self):
        return self.foldings[0].value()

    def values(self):
        return {name: tf.reshape(variable, self._shapes[name]) for name, variable in self.state.items()} | self.candidate

    def assign(self, updates):
        for name, variable in self.state.items():
            if name in updates:
                variable.assign(tf.reshape(tf.convert_to_tensor(updates[name], variable.dtype), variable.shape))


def is_supported(layer) -> bool:
    """Whether TF-MOT can wrap `layer`."""
    return hasattr(layer, "get_prunable_weights") or prune_registry.PruneRegistry.supports(layer)


def prunable_weights(layer, root: str) -> list[Prunable]:
    """The weights that TF-MOT prunes in a built layer, in its order.

    Args:
        layer: A built tf_keras layer.
        root: Its path, with which those of its weights begin.

    Raises:
        ValueError: For a `get_prunable_weights` that gives a weight which is no attribute of the layer or of one inside it.
    """
    if not is_supported(layer):
        return []
    if not hasattr(layer, "get_prunable_weights"):
        layer = prune_registry.PruneRegistry.make_prunable(layer)
    held = {}
    for path, owner in graph.named_walk(layer, root):
        for name, value in vars(owner).items():
            if is_variable(value):
                held.setdefault(id(value), (path, owner, name))
    found = []
    for variable in layer.get_prunable_weights():
        if id(variable) not in held:
            raise ValueError(
                f"`get_prunable_weights` of layer {layer.name!r} must give weights that are attributes of the layer or of its sub-layers. Received: "
                f"{variable.name!r}, which is none. Store it as `self.name = self.add_weight(...)`."
            )
        path, owner, name = held[id(variable)]
        rows = rows_of(owner)
        layout = rows.get(name) or rows.get(name.removeprefix("depthwise_"))  # as the depthwise kernels of tf_keras are called
        ndim = len(variable.shape)
        layout = layout(owner, ndim) if layout else standard_layout(ndim)
        if is_a(layer, *ATTENTION):  # whose outputs are tied to those of the other projections
            layout = dataclasses.replace(layout, filters=False)
        found.append(Prunable(f"{path}/{name}", owner, name, variable, layout))
    return found
