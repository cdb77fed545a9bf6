"""One weight of a tf_keras layer under masks: its variables, and the pure functions of `Masks` on them."""

import keras
import numpy as np
import tensorflow as tf

from keras_gibbs.masks import Masks, compiled_masks
from keras_gibbs.numerics.noise import split
from keras_gibbs.structure.layouts import Layout, layout_of

CHANGED = 1e-3  # relative difference from which on a folded weight counts as written by someone else


class MaskedWeight:
    """A weight, and what goes with it: mask, threshold, dense copy, the method's state and the key of its noise, all variables of the wrapper.

    While the model trains, the weight holds W, the dense values. Folded, it holds what inference runs with, and the dense copy holds W.

    Args:
        wrapper: The `Pruned` layer that owns the variables.
        weight: The variable that is pruned.
        index: Its position among the masked weights of the layer.
        kernel: The `MaskedWeight` whose units `weight`, a bias, belongs to. It is kept and removed with them, by the kernel's state.
    """

    built = True  # as `distribute` asks

    def __init__(self, wrapper, weight, index, kernel=None):
        self.wrapper, self.weight, self.method = wrapper, weight, wrapper.method
        self.owner, self.attribute = find_owner(wrapper.layer, weight)
        shape, dtype = tuple(weight.shape), tf.as_dtype(getattr(weight, "true_dtype", weight.dtype)).name
        value = weight.numpy()
        if not np.isfinite(value).all():
            raise ValueError(f"Weight {weight.name!r} holds NaN or infinite values, which have no rank. Prune the model from a healthy checkpoint.")
        if kernel is None:
            self.method.check(self.owner, shape)
        layout = layout_of(self.owner, len(shape)) if kernel is None else Layout((), (), tuple(range(len(shape))))
        self.masks = Masks(self.method, shape, layout)

        def add(name, *args, **kwargs):
            return wrapper.add_state(f"{name}_{index}" if index else name, *args, **kwargs)  # a layer's names must differ, or its file cannot be written

        self.mask = add("mask", np.ones(shape), dtype)
        self.threshold = add("threshold", 0.0, dtype)
        self.dense = add("dense", np.zeros(shape), dtype)
        if kernel is not None:
            self.key, self.state, self.learned = kernel.key, kernel.state, []
            return
        seed = split(wrapper.seed, index)
        self.key = add("key", [seed & 0xFFFFFFFF, seed >> 32], "uint32")
        specs = self.method.state(self.masks.arranged_shape)
        self.state = {name: add(f"state_{name}", spec.value, spec.dtype, trainable=spec.trainable) for name, spec in specs.items()}
        self.learned = [self.state[name] for name, spec in specs.items() if spec.trainable]
        if self.method.replaces_kernel(self.owner):
            weight.assign(self.method.prepare(value))

    def values(self):
        """The state as tensors."""
        return {name: tf.convert_to_tensor(variable) for name, variable in self.state.items()} | self.wrapper.candidate

    def _call(self, function, weight, *args):
        return compiled_masks(self.masks, function)(weight, self.values(), *args)

    def _noise(self):
        return tf.convert_to_tensor(self.key), tf.cast(self.wrapper.pruning_step, "uint32")

    def _assign(self, updates):
        for name, value in updates.items():
            self.state[name].assign(value)

    def _under(self, mask, weight):
        """What inference runs with under `mask`."""
        mask = tf.cast(mask, weight.dtype)
        return tf.where(mask > 0, self.method.apply(weight, mask, self.values()), tf.zeros_like(weight))  # not -0, which compresses worse

    def dense_values(self):
        """W. A folded weight that something else has written since, averaged or loaded, is the new W."""

        def unfolded():
            weight = tf.convert_to_tensor(self.weight)
            folded = self._under(tf.convert_to_tensor(self.mask), tf.convert_to_tensor(self.dense))
            unchanged = tf.reduce_all(tf.abs(weight - folded) <= tf.cast(CHANGED, weight.dtype) * tf.abs(folded))
            return tf.where(unchanged, tf.convert_to_tensor(self.dense), weight)

        return tf.cond(tf.convert_to_tensor(self.wrapper.folded), unfolded, lambda: tf.convert_to_tensor(self.weight))

    def sample(self):
        """The weight under a mask drawn for one training step; the weight must hold W."""
        kernel, updates = self._call("train", tf.convert_to_tensor(self.weight), *self._noise())
        self._assign(updates)
        return kernel

    def mode(self):
        """The deterministic mask; the weight must hold W."""
        return self._call("mode", tf.convert_to_tensor(self.weight))

    def infer(self):
        """The weight under the deterministic mask; the weight must hold W."""
        return self._call("infer", tf.convert_to_tensor(self.weight), tf.constant(1, "uint8"))[0]

    def fold(self):
        """Write the deterministic mask into the weight, W into the dense copy."""
        weight = self.dense_values()
        mask = self._call("mode", weight)
        self.dense.assign(weight)
        self.mask.assign(tf.cast(mask, self.mask.dtype))
        self.threshold.assign(tf.reduce_min(tf.where(mask > 0, tf.abs(weight), weight.dtype.max)))
        self.weight.assign(self._under(mask, weight))

    def anneal(self, progress):
        """Move every scheduled quantity to its value at `progress`."""
        self._assign(self.method.changes(progress, self.groups))

    def figures(self):
        """The method's own figures."""
        return {name: float(value) for name, value in self._call("figures", self.dense_values(), *self._noise()).items()}

    # What `distribute` uses.

    @property
    def progress(self):
        return self.wrapper.progress

    @property
    def groups(self):
        """The number of groups of the weight."""
        return self.masks.arranged_shape[2]

    @property
    def kernel_shape(self):
        """The shape of the weight."""
        return tuple(self.weight.shape)

    def scores(self):
        """The scores by which a ranking method compares the groups, shape `(groups,)`."""
        return keras.ops.convert_to_numpy(self._call("scores", self.dense_values())).reshape(-1)

    def set_kept(self, kept):
        """Tell a ranking method how many groups this weight keeps."""
        self._assign(self.method.shared(kept, self.groups))

    @property
    def settled(self):
        """Whether the mask is held as it is."""
        return self.method.settle is not None and bool(self.state["settled"].numpy())

    def settle(self, progress):
        """Hold the deterministic mask of this moment from here on, if `progress` is that far."""
        if self.method.is_held_at(progress) and not self.settled:
            self._assign(self._call("hold", self.dense_values()))


def find_owner(layer, weight):
    """The layer inside `layer` (itself, a cell, a part) that holds `weight` as an attribute, and the name of the attribute."""
    for owner in (layer, *layer.submodules):
        for attribute, value in vars(owner).items():
            if value is weight:
                return owner, attribute
    raise ValueError(
        f"`get_prunable_weights` of layer {layer.name!r} must give weights that are attributes of the layer or of its sub-layers. Received: {weight.name!r}, "
        "which is none. Store it as `self.name = self.add_weight(...)`."
    )
