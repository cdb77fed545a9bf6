"""The wrapper that runs a layer with a masked kernel."""

import contextlib
import random

import keras
import numpy as np
from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.masks import Masks, compiled_masks
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.numerics import ranking
from keras_gibbs.specs import add_variable
from keras_gibbs.structure import graph
from keras_gibbs.structure.layouts import DEPTHWISE, TRANSPOSED, layout_of
from keras_gibbs.typing import Tensor

SUPPORTED = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    *TRANSPOSED,
    *DEPTHWISE,
)
NEVER = -1.0  # progress of a wrapper that no callback has moved


def call_with(layer, values, inputs, **kwargs):
    """Call `layer` as if its variables had other values; nothing is written.

    Args:
        layer: A built layer.
        values: List of (variable, value).
        inputs: The layer's inputs.
        **kwargs: For its call.

    Returns:
        The outputs, and the scope that holds the losses the call added and the new values of the layer's other variables.
    """
    # Every variable is named: a nested scope does not fall through to the outer one.
    mapping = [(own, own.value) for own in layer.variables] + values  # of two values for one variable the last counts
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
        outputs = layer(inputs, **kwargs)
    return outputs, scope


@register
class Pruned(keras.layers.Wrapper):
    """Runs a layer with its kernel multiplied by a mask.

    While training, a mask is sampled from the method at every call; at inference the method's deterministic mask is used. The layer's own kernel is
    never overwritten: the mask is derived from it and a few scalars of state, all of them saved with the model, the state of the noise included.

    A layer of 10,000 weights or more remembers the threshold of its mask between inference steps, until a training step, a load or the callback says that
    the weights have changed. After assigning a kernel by hand, or by another callback (averaged weights, say) in a `fit` without `GibbsPruningCallback`,
    call `note_change()`; `mask()`, `strip_pruning` and every count always look afresh.

    Args:
        layer: A layer with a `kernel`: Dense, EinsumDense, a convolution, transposed or depthwise convolution. A built layer keeps its weights.
        method: A pruning method, such as `kg.Gibbs(0.9)`.
        seed: Int, the seed of the layer's noise. By default one is drawn from Python's `random`, which `keras.utils.set_random_seed` fixes.
        **kwargs: `name` and `trainable`, the layer's own by default.

    Raises:
        TypeError: For something that is not a Keras 3 layer, or not a method.
        ValueError: For a layer that is already wrapped, has no supported kernel, or does not fit the method's structure.

    Example:

    >>> inputs = keras.Input((8, 8, 1))
    >>> x = kg.Pruned(keras.layers.Conv2D(32, 3), kg.Gibbs(0.9))(inputs)
    """

    def __init__(self, layer, method, *, seed=None, **kwargs):
        check_layer(layer)
        if not isinstance(method, PruningMethod):
            raise TypeError(f"`method` must be a pruning method such as `keras_gibbs.Gibbs(sparsity=0.9)`. Received: method={method!r}.")
        method.check(layer, layer.kernel.shape if layer.built else None)
        check_finite(layer)
        kwargs = {"name": layer.name, "trainable": layer.trainable or method.learns_masks} | kwargs
        # The wrapper computes nothing itself: in float32 and without autocasting it reads the kernel as it is stored, also under mixed precision.
        kwargs |= {"dtype": "float32"}
        super().__init__(layer, autocast=False, **kwargs)
        self.method = method
        self.seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
        self.supports_masking = layer.supports_masking
        self._state = {}
        self.masks_outputs = False  # True for as long as a search has several states share one forward pass
        if layer.built:
            self.build()

    def build(self, input_shape=None):
        built, replaced = self.layer.built, self.method.replaces_kernel(self.layer)
        with _kernel_starts(self.layer, self.method.prepare) if replaced and not built else contextlib.nullcontext():
            super().build(input_shape)
        if self._state:
            return
        kernel = self.layer.kernel
        self.method.check(self.layer, kernel.shape)
        self._masks = Masks(self.method, tuple(kernel.shape), layout_of(self.layer, len(kernel.shape)))
        for name, spec in self.method.state(self._masks.arranged_shape).items():
            self._state[name] = self._add_state(name, spec.value, spec.dtype, spec.trainable, spec.overwritten)
        self._progress = self._add_state("progress", NEVER)
        self._key = self._add_state("key", [self.seed & 0xFFFFFFFF, self.seed >> 32], "uint32")  # saved, so that a resumed run needs no seed
        self._draws = self._add_state("draws", 0, "uint32")  # how many masks were drawn
        self._moved = self._add_state("moved", 1, "uint8")  # 1 once weights or counts have changed since `decide`
        if replaced and built:
            kernel.assign(self.method.prepare(kernel.value))
        self.freeze()
        self.built = True

    def freeze(self) -> None:
        """Hold the layer's own weights still where the method learns masks only, or where the layer is frozen and its masks are not."""
        if not self.method.trains_weights or (self.method.learns_masks and not self.layer.trainable):
            for variable in self.layer.trainable_variables:
                variable.trainable = False

    def _add_state(self, name, value, dtype="float32", trainable=False, overwritten=False):
        follows_batch = trainable or overwritten
        return add_variable(
            self,
            name,
            value,
            dtype,
            trainable=follows_batch,
            autocast=False,
            aggregation="mean" if follows_batch else "only_first_replica",  # replicas draw the same masks, so the rest of their state agrees
            overwrite_with_gradient=overwritten,
        )

    def _call(self, function, *args):
        """One of the pure functions of `Masks` on the layer's own kernel and state."""
        return compiled_masks(self._masks, function)(self.layer.kernel.value, self.values(), *args)

    def _noise(self):
        return self._key.value, self._draws.value

    def values(self) -> dict[str, Tensor]:
        """The method's state, as tensors."""
        return {name: variable.value for name, variable in self._state.items()}

    def _assign(self, updates):
        for name, value in updates.items():
            self._state[name].assign(value)

    def mask(self, training: bool = False) -> Tensor:
        """The mask as it is now.

        Args:
            training: False for the deterministic mask that inference and `strip_pruning` use; True for a fresh sample from the current state.

        Returns:
            float32 tensor in the kernel's shape, 1 where a weight is kept and 0 where it is removed.

        Raises:
            ValueError: When the layer is not built yet.
        """
        self._require_built()
        if not training:
            return self._call("mode")
        mask = self._call("draw", *self._noise())
        self._count_draw()
        return mask

    def masked_kernel(self) -> Tensor:
        """The kernel that inference runs with, its mask found anew; in the kernel's shape and dtype."""
        self._require_built()
        return self._call("infer", np.uint8(1))[0]

    def _count_draw(self):
        self._draws.assign(self._draws.value + ops.ones((), "uint32"))

    def _require_built(self):
        if not self.built:
            raise ValueError(f"Layer {self.name!r} has no mask before it is built. Call it, or its model, on an input first.")

    # Running the layer.

    def call(self, inputs, training=None, **kwargs):
        if training:
            kernel, updates = self._call("train", *self._noise())
            self._count_draw()
        else:
            kernel, updates = self._call("infer", self._moved.value)
        self._moved.assign(ops.cast(bool(training), "uint8"))
        self._assign(updates)
        if training and (penalty := self.method.penalty(self.values())) is not None:
            self.add_loss(penalty)
        outputs, scope = self._run(kernel, inputs, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss * 1.0)  # a new tensor: the same one would be counted twice on JAX
        for variable in self.layer.non_trainable_variables:
            if variable is not self.layer.kernel:
                variable.assign(scope.get_current_value(variable))
        return outputs

    def _run(self, kernel, inputs, **kwargs):
        """The layer with a masked kernel, and the bias that goes with it."""
        units = self.unit_mask()
        if units is None:
            return call_with(self.layer, [(self.layer.kernel, kernel)], inputs, **kwargs)
        if self.masks_outputs:
            outputs, scope = call_with(self.layer, [], inputs, **kwargs)
            return outputs * ops.cast(units, outputs.dtype), scope
        return call_with(self.layer, [(self.layer.kernel, kernel), *self._masked_bias(units)], inputs, **kwargs)

    def unit_mask(self) -> Tensor | None:
        """Which output units are kept, float32 `(groups,)`, where the method removes whole units; else None."""
        return self.method.unit_mask(self.values())

    def _masked_bias(self, units):
        bias = self.layer.bias
        return [] if bias is None else [(bias, bias.value * ops.cast(ops.reshape(units, bias.shape), bias.dtype))]

    def removed(self) -> list[tuple[keras.Variable, Tensor]]:
        """The variables of a layer that loses whole units, each with a mask of its own shape: 0 where the unit is removed."""
        mask, units, bias = self._call("mode"), self.unit_mask(), self.layer.bias
        return [(self.layer.kernel, mask)] + ([] if bias is None else [(bias, ops.reshape(units, bias.shape))])

    def compute_output_spec(self, inputs, training=None, **kwargs):
        return self.layer.compute_output_spec(inputs, **kwargs)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    # What the callback and the reports use.

    @property
    def progress(self) -> float:
        """How far the schedules have come, in [0, 1]; negative where no callback has moved them yet."""
        return float(keras.ops.convert_to_numpy(self._progress.value)) if self.built else NEVER

    @property
    def groups(self) -> int:
        """The number of groups of the kernel."""
        return self._masks.arranged_shape[2]

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of the layer's kernel."""
        return tuple(self.layer.kernel.shape)

    def anneal(self, progress: float) -> None:
        """Move every scheduled quantity to its value at `progress` in [0, 1]."""
        self._require_built()
        self._assign(self.method.changes(progress, self.groups))
        self._progress.assign(progress)
        self.note_change()

    @property
    def settled(self) -> bool:
        """Whether the mask is held as it is."""
        return self.method.settle is not None and bool(self.state("settled"))

    def settle(self, progress: float) -> None:
        """Hold the deterministic mask of this moment from here on, if `progress` is that far."""
        if self.method.is_held_at(progress) and not self.settled:
            self._assign(self._call("hold"))

    def note_change(self) -> None:
        """Let the next inference step find its mask anew: the weights, or what is kept of them, have changed outside of a training step."""
        self._moved.assign(1)

    def state(self, name: str) -> float | int:
        """The current value of a scalar of the method's state, such as `"beta"` or `"sparsity"`."""
        return keras.ops.convert_to_numpy(self._state[name]).item()

    def scores(self) -> np.ndarray:
        """The scores by which a ranking method compares the groups, shape `(groups,)`."""
        return keras.ops.convert_to_numpy(self._call("scores")).reshape(-1)

    def set_kept(self, kept: int) -> None:
        """Tell a ranking method how many groups this layer keeps."""
        self._assign(self.method.shared(kept, self.groups))
        self.note_change()

    @property
    def bits(self) -> keras.Variable:
        """The bits of a method that is searched, uint8 `(groups,)`."""
        return self._state["bits"]

    def arranged_kernel(self) -> Tensor:
        """The kernel as methods see it: `(channels, positions, groups)`."""
        return self.method.structure.arrange(ops.stop_gradient(self.layer.kernel.value), self._masks.layout)

    def set_bits(self, bits: Tensor) -> None:
        """Tell a method that is searched which units this layer keeps: a bool tensor `(groups,)`."""
        self.bits.assign(ops.cast(bits, "uint8"))

    def is_short(self) -> bool:
        """Whether a ranking method keeps a group here only because it never removes all."""
        asked = self.method.anneal(max(0.0, self.progress)).get("sparsity")
        return asked is not None and self.method.scope == "layer" and ranking.count_removed(self.groups, asked) >= self.groups

    def waits(self) -> bool:
        """Whether the method has schedules that no callback has moved, or a sparsity that has not come to its end."""
        return self.method.waits(self.progress)

    def figures(self) -> dict[str, float]:
        """The method's own figures, from the current weights and state."""
        figures = self._call("figures", *self._noise())
        return {name: float(value) for name, value in figures.items()}

    # Saving.

    def get_config(self):
        method = keras.saving.serialize_keras_object(self.method)
        return {**super().get_config(), "method": method, "seed": self.seed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config.pop("dtype", None)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"), custom_objects=custom_objects)
        method = keras.saving.deserialize_keras_object(config.pop("method"), custom_objects=custom_objects)
        return cls(layer, method, **config)

    def get_build_config(self):
        return self.layer.get_build_config()

    def build_from_config(self, config):
        self.layer.build_from_config(config)
        self.build()

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.note_change()


@contextlib.contextmanager
def _kernel_starts(layer, prepare):
    """While this lasts, `layer` builds its kernel as `prepare` of what its initializer gives.

    A layer may be built where no variable has a value yet: in the first step of a subclassed model.
    """
    name = "depthwise_initializer" if isinstance(layer, DEPTHWISE) else "kernel_initializer"
    initializer = getattr(layer, name)
    setattr(layer, name, lambda shape, dtype=None: prepare(initializer(shape, dtype=dtype)))
    try:
        yield
    finally:
        setattr(layer, name, initializer)


def pruned_layers(model) -> list[Pruned]:
    """The wrapped layers of a model, of any depth, each once."""
    return [layer for layer in graph.walk(model) if isinstance(layer, Pruned)]


def check_layer(layer) -> None:
    """Raise unless `layer` is a Keras 3 layer that can be wrapped."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(describe_foreign(layer))
    if isinstance(layer, Pruned):
        raise ValueError(f"Layer {layer.name!r} is already wrapped. Received: {layer!r}. Strip it first: `keras_gibbs.strip_pruning(...)`.")
    reason = why_unsupported(layer)
    if reason:
        names = ", ".join(cls.__name__ for cls in SUPPORTED)
        raise ValueError(f"Layer {layer.name!r} cannot be pruned: {reason}. Supported are {names}.")


def why_unsupported(layer) -> str | None:
    """Why a layer has no kernel that `Pruned` could mask, in a few words; None where it has."""
    if not isinstance(layer, SUPPORTED):
        return f"{type(layer).__name__} has no single kernel"
    if getattr(layer, "quantization_mode", None) or (layer.built and not isinstance(layer.kernel, keras.Variable)):
        return "its kernel is quantized or has LoRA weights; prune first"
    return None


def check_finite(layer) -> None:
    """Raise `ValueError` where a weight of `layer` is NaN or infinite."""
    for weight in layer.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
            raise ValueError(f"Weight {weight.path!r} holds NaN or infinite values, which have no rank. Prune the model from a healthy checkpoint.")


def describe_foreign(thing) -> str:
    """The message for an object that is not of Keras 3: which Keras it is, and the way out."""
    module = type(thing).__module__
    if module.startswith(("tf_keras", "keras.engine", "keras.src.engine", "tensorflow.python.keras")):
        return (
            f"keras_gibbs prunes Keras 3 models; this is a Keras 2 object. Received: {type(thing).__name__} of {module.split('.')[0]}. "
            "Use `keras_gibbs.tfmot.prune` for tf_keras, or build the model with `import keras` (Keras 3)."
        )
    return f"Expected a Keras 3 model or layer. Received: {thing!r} of type {type(thing).__name__}."
