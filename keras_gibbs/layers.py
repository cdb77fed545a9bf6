"""The wrapper that runs a layer with masked weights."""

import contextlib
import random

import keras
import numpy as np
from keras import ops

from keras_gibbs.arguments import require_count, require_seed
from keras_gibbs.configuration import register
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import LearnsMasks, trains_weights
from keras_gibbs.numerics.noise import split
from keras_gibbs.specs import add_variable, signed
from keras_gibbs.structure.building import build_by_shape, build_for, is_built, specs_of
from keras_gibbs.structure.copying import Plain
from keras_gibbs.structure.graph import children, walk
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.prunable import ATTENTION, TABLE, prunable_weights, rows_of, why_not
from keras_gibbs.typing import Tensor
from keras_gibbs.weights import MaskedWeight
from keras_gibbs.wrapping import NEVER, Wrapping


def call_with(layer, values, args, kwargs):
    """Call `layer` as if its variables had other values; nothing is written.

    Args:
        layer: A built layer.
        values: List of (variable, value).
        args, kwargs: Of its call.

    Returns:
        The outputs; the losses that the call added; and the list of (variable, value before, value after) of the variables it has assigned.
    """
    # Every variable is named: a nested scope does not fall through to the outer one.
    given = {id(own): (own, own.value) for own in layer.variables} | {id(own): (own, value) for own, value in values}
    with _Scope(state_mapping=list(given.values()), collect_losses=True) as scope:
        outputs = layer(*args, **kwargs)
    after = [(own, value, scope.get_current_value(own)) for own, value in given.values()]
    return outputs, scope.losses, [(own, before, now) for own, before, now in after if now is not before]


def _with_removed(weight, masked, assigned):
    """What a layer that assigns a weight of its own in its call, which saw it `masked`, leaves of the whole `weight`: what is removed is scaled alike."""
    scale = ops.norm(assigned) / ops.maximum(ops.norm(masked), 1e-30)
    return ops.where(ops.equal(masked, 0), weight * scale, assigned)


class _Scope(keras.StatelessScope):
    """A stateless scope in which a layer that assigns a trained weight in its call gets the gradient that it gets outside of one."""

    def add_update(self, update):
        variable, value = update
        if variable.trainable and keras.backend.backend() == "tensorflow":  # the gradient of a variable there is that at its new value
            before = self.get_current_value(variable)
            update = variable, ops.stop_gradient(value) + (before - ops.stop_gradient(before))
        super().add_update(update)


@register
class Pruned(Wrapping, keras.layers.Wrapper):
    """Runs a layer with its weights multiplied by masks.

    While training, masks are sampled from the method at every call; at inference the method's deterministic masks are used. The layer's own weights are
    never overwritten: a mask is derived from its weight and a little state, all of it saved with the model, the state of the noise included.

    What the deterministic masks rest on is remembered between inference steps, until a training step, a load or the callback says that the weights have
    changed. After assigning a weight by hand, or by another callback (averaged weights, say) in a `fit` without `GibbsPruningCallback`, call
    `note_change()`; `mask()`, `strip_pruning` and every count always look afresh.

    Args:
        layer: A layer with weights that can be pruned, its own or those of layers inside it: Dense, a convolution, an LSTM, attention, a block of your own.
            A built layer keeps its weights.
        method: A pruning method, such as `kg.Gibbs(0.9)`.
        seed: Int, the seed of the layer's noise. By default one is drawn from Python's `random`, which `keras.utils.set_random_seed` fixes.
        path: Where the layer stands in its model, such as `"encoder/block"`; its name by default, `""` for a whole model. What the paths of its weights
            begin with.
        only: Which weights are pruned, a list of paths from below the layer (`"kernel"`, `"ffn/dense/kernel"`); all by default.
        sites: At how many places of a graph the layer is called in one step; all of them share one mask.
        **kwargs: `name` and `trainable`, the layer's own by default.

    Raises:
        TypeError: For something that is not a Keras 3 layer, or not a method.
        ValueError: For a layer that is already wrapped, has no weights that can be pruned, or does not fit the method.

    Example:

    >>> inputs = keras.Input((8, 8, 1))
    >>> x = kg.Pruned(keras.layers.Conv2D(32, 3), kg.Gibbs(0.9))(inputs)
    """

    wraps_for_pruning = True

    def __new__(cls, layer=None, *args, **kwargs):
        return layer if Plain.is_on else super().__new__(cls, layer, *args, **kwargs)

    def __init__(self, layer, method, *, seed=None, path=None, only=None, sites=1, **kwargs):
        check_layer(layer)
        check_method(method)
        require_seed(seed)
        require_count(sites=sites)
        if only is not None and (isinstance(only, str) or not all(isinstance(name, str) for name in only)):
            raise TypeError(f"`only` must be a list of paths from below the layer, such as ['kernel'], or None. Received: only={only!r}.")
        check_finite(layer)
        kwargs = {"name": layer.name, "trainable": layer.trainable or isinstance(method, LearnsMasks)} | kwargs
        # The wrapper computes nothing itself: in float32 and without autocasting it reads weights as they are stored, also under mixed precision.
        super().__init__(layer, autocast=False, **(kwargs | {"dtype": "float32"}))
        self.method = method
        self.seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
        self.path_in_model = layer.name if path is None else path
        self.only = None if only is None else list(only)
        self.sites = sites
        self.supports_masking = layer.supports_masking
        self.masked_weights = []
        self.call_specs = None  # of the first call: what the inner layer is built from when a model is loaded
        self.masks_outputs = False  # True for as long as a search has several states share one forward pass
        if is_built(layer):
            self.build()

    # Building.

    def __call__(self, *args, **kwargs):
        if self.call_specs is None:
            self.call_specs = specs_of(args, kwargs)
        if not self.built and not is_built(self.layer):
            with _starts(self.layer, self.method):
                build_for(self.layer, self.call_specs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape=None):
        unbuilt = not is_built(self.layer)
        if unbuilt:
            with _starts(self.layer, self.method):
                build_by_shape(self.layer, input_shape)
        if self.masked_weights:
            return
        weights = self._chosen()
        self.masked_weights = [
            MaskedWeight(weight, self.method, split(self.seed, index) if index else self.seed, self._adder(weight, len(weights) > 1))
            for index, weight in enumerate(weights)
        ]
        self._progress = add_variable(self, "progress", NEVER, **_STILL)
        self._draws = add_variable(self, "draws", 0, "int32", **_STILL)  # how many masks were drawn
        self._moved = add_variable(self, "moved", 1, "int32", **_STILL)  # 1 once weights or counts have changed since `decide`
        if not unbuilt:
            self.prepare()
        self.freeze()
        self.built = True

    def _chosen(self):
        weights = prunable_weights(self.layer, self.path_in_model)
        local = {self._local(weight.path): weight for weight in weights}
        if self.only is not None and (unknown := sorted(set(self.only) - set(local))):
            raise ValueError(f"`only` names weights by their paths from below layer {self.layer.name!r}. Received: only={unknown}. There are {list(local)}.")
        if not weights:
            raise ValueError(f"Layer {self.layer.name!r} has no weights that can be pruned. Received: {self.layer!r}. {_supported()}")
        return weights if self.only is None else [local[name] for name in local if name in self.only]

    def _adder(self, weight, several):
        prefix = f"{self._local(weight.path).replace('/', '_')}_" if several else ""

        def add(name, value, dtype, trainable, overwritten):
            options = {"trainable": True, "autocast": False, "aggregation": "mean"} if trainable or overwritten else _STILL
            return add_variable(self, prefix + name, value, dtype, overwrite_with_gradient=overwritten, **options)

        return add

    def _local(self, path):
        return path[len(self.path_in_model) + 1 :] if self.path_in_model else path

    def freeze(self) -> None:
        """Hold the layer's own weights still where the method learns masks only, or where the layer is frozen and its masks are not."""
        if not trains_weights(self.method) or (isinstance(self.method, LearnsMasks) and not self.layer.trainable):
            for variable in self.layer.trainable_variables:
                variable.trainable = False

    # Masks.

    def masks(self, training: bool = False) -> dict[str, Tensor]:
        """The masks as they are now, by the path of their weight; otherwise as `mask`."""
        self._require_built()
        if not training:
            return {masked.path: masked.mask() for masked in self.masked_weights}
        draw = self._next_draw(self.sites)
        return {masked.path: masked.sample(draw) for masked in self.masked_weights}

    def mask(self, training: bool = False) -> Tensor:
        """The mask of a layer with one pruned weight, as it is now.

        Args:
            training: False for the deterministic mask that inference and `strip_pruning` use; True for a fresh sample from the current state.

        Returns:
            float32 tensor in the weight's shape, 1 where a weight is kept and 0 where it is removed.

        Raises:
            ValueError: When the layer is not built yet, or has several pruned weights.
        """
        self._require_built()
        if len(self.masked_weights) > 1:
            raise ValueError(f"Layer {self.name!r} has several pruned weights, {[masked.path for masked in self.masked_weights]}. Use `.masks()`, a dict.")
        return next(iter(self.masks(training).values()))

    def _draw(self):
        return self._draws.value // self.sites

    def _next_draw(self, calls=1):
        draw = self._draw()
        self._draws.assign(self._draws.value + calls)
        return draw

    # Running the layer.

    def call(self, *args, training=None, **kwargs):
        if training:
            draw = self._next_draw()
            masked = [(masked.variable, masked.train(draw)) for masked in self.masked_weights]
        else:
            masked = [(masked.variable, masked.infer(self._moved.value)) for masked in self.masked_weights]
        self._moved.assign(int(bool(training)))
        for penalty in self.penalties() if training else ():
            self.add_loss(penalty)
        outputs, losses, assigned = self._run(masked, args, kwargs)
        for loss in losses:
            self.add_loss(loss * 1.0)  # a new tensor: the same one would be counted twice on JAX
        values = {id(variable): value for variable, value in masked}
        for variable, _, now in assigned:
            variable.assign(_with_removed(variable.value, values[id(variable)], now) if id(variable) in values else now)
        return outputs

    def _run(self, values, args, kwargs):
        """The layer under masks, and the biases that go with removed units."""
        if self.masks_outputs:
            outputs, losses, assigned = call_with(self.layer, [], args, kwargs)
            return outputs * ops.cast(self.masked_weights[0].unit_mask(), outputs.dtype), losses, assigned
        biases = [(masked.bias, masked.bias.value * masked.bias_mask()) for masked in self.masked_weights if masked.bias is not None]
        return call_with(self.layer, values + biases, args, kwargs)

    def compute_output_spec(self, *args, training=None, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        if isinstance(inputs, tuple) and len(inputs) == 1:  # the positional arguments of the call
            inputs, previous_mask = inputs[0], previous_mask[0] if isinstance(previous_mask, tuple) else previous_mask
        return self.layer.compute_mask(inputs, previous_mask)

    def note_change(self) -> None:
        """Let the next inference step find its masks anew: the weights, or what is kept of them, have changed outside of a training step."""
        self._moved.assign(1)

    # Saving.

    def get_config(self):
        method = keras.saving.serialize_keras_object(self.method)
        placed = {"path": self.path_in_model, "only": self.only, "sites": self.sites}
        return {**super().get_config(), "method": method, "seed": self.seed, **placed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config.pop("dtype", None)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"), custom_objects=custom_objects)
        method = keras.saving.deserialize_keras_object(config.pop("method"), custom_objects=custom_objects)
        return cls(layer, method, **config)

    def get_build_config(self):
        return self.layer.get_build_config() if self.call_specs is None else {"call": self.call_specs}

    def build_from_config(self, config):
        if "call" in config:
            self.call_specs = config["call"]
            build_for(self.layer, self.call_specs)
        else:
            self.layer.build_from_config(config)
        self.build()

    def _variables_by_name(self):
        own = {"progress": self._progress, "draws": self._draws, "moved": self._moved}
        parts = [(self._local(masked.path).replace("/", "."), masked) for masked in self.masked_weights]
        return own | {f"{path}.{name}": variable for path, masked in parts for name, variable in (masked.state | {"key": masked.key}).items()}

    def save_own_variables(self, store):
        for name, variable in self._variables_by_name().items():
            store[name] = variable

    def load_own_variables(self, store):
        names = set(store.keys())
        if "0" in names:
            self._load_version_one(store)
        else:
            variables = self._variables_by_name()
            if names != set(variables):
                raise ValueError(f"The file holds other state for layer {self.name!r} than its method has. Received: {sorted(names ^ set(variables))}.")
            for name, variable in variables.items():
                variable.assign(store[name])
        self.note_change()

    def _load_version_one(self, store):
        """Read a file of version 0.1, which lists the variables of a layer with one kernel by number, trained ones first."""
        (masked,) = self.masked_weights
        specs = masked.method.state(masked.masks.arranged_shape)
        trained = [name for name, spec in specs.items() if spec.trainable or spec.overwritten]
        others = [name for name in specs if name not in trained and name != "decision"]
        variables = [masked.state[name] for name in trained + others] + [self._progress, masked.key, self._draws, self._moved]
        for index, variable in enumerate(variables):
            variable.assign(signed(store[str(index)]).reshape(tuple(variable.shape)))


_STILL = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}  # replicas draw the same masks, so the rest of their state agrees


@contextlib.contextmanager
def _starts(layer, method):
    """While this lasts, `layer` builds its weights as the method prepares what their initializers give.

    A layer may be built where no variable has a value yet: in the first step of a subclassed model.
    """
    changed = []
    if isinstance(method, LearnsMasks):
        for part in walk(layer):
            for name in rows_of(part):
                attribute = "depthwise_initializer" if "Depthwise" in type(part).__name__ else _INITIALIZERS[name]
                initializer = getattr(part, attribute, None)
                if initializer is not None and method.replaces(_Unbuilt(part)):
                    changed.append((part, attribute, initializer))
    for part, attribute, initializer in changed:
        setattr(part, attribute, lambda shape, dtype=None, given=initializer: method.prepare(given(shape, dtype=dtype)))
    try:
        yield
    finally:
        for part, attribute, initializer in changed:
            setattr(part, attribute, initializer)


class _Unbuilt:
    """A weight that is not there yet: of a `Prunable` only its owner."""

    def __init__(self, owner):
        self.owner = owner


_INITIALIZERS = {
    "kernel": "kernel_initializer",
    "recurrent_kernel": "recurrent_initializer",
    "embeddings": "embeddings_initializer",
    "reverse_embeddings": "embeddings_initializer",
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
}


def pruned_layers(model) -> list[Pruned]:
    """The wrapped layers of a model, of any depth, each once."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    return [layer for layer in walk(model) if isinstance(layer, Pruned)]


def check_method(method) -> None:
    """Raise `TypeError` unless `method` is a pruning method."""
    if not isinstance(method, PruningMethod):
        raise TypeError(f"`method` must be a pruning method such as `keras_gibbs.Gibbs(sparsity=0.9)`. Received: method={method!r}.")


def check_layer(layer) -> None:
    """Raise unless `layer` is a Keras 3 layer that can be wrapped."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(describe_foreign(layer))
    if any(isinstance(part, Pruned) for part in walk(layer)):
        raise ValueError(f"Layer {layer.name!r} is already wrapped, or has wrapped layers inside. Received: {layer!r}. Strip it first: `strip_pruning(...)`.")
    reason = why_unsupported(layer)
    if reason:
        raise ValueError(f"Layer {layer.name!r} cannot be pruned: {reason}. {_supported()}")


def why_unsupported(layer) -> str | None:
    """Why a layer has no weights that `Pruned` could mask, in a few words; None where it has, or where that shows only once it is built."""
    if is_built(layer):
        if prunable_weights(layer):
            return None
        reasons = [reason for part in walk(layer) if rows_of(part) and (reason := why_not(part))]
        return reasons[0] if reasons else f"{type(layer).__name__} has no weights that can be pruned"
    known = rows_of(layer) or children(layer) or is_a(layer, *ATTENTION) or hasattr(layer, "get_prunable_weights") or isinstance(layer, keras.Model)
    return None if known or type(layer).__module__.partition(".")[0] != "keras" else f"{type(layer).__name__} has no weights that can be pruned"


def _supported():
    return f"Supported are {', '.join(TABLE)}, layers made of them, and layers with a method `get_prunable_weights()`."


def check_finite(layer) -> None:
    """Raise `ValueError` where a weight of `layer` is NaN or infinite."""
    for weight in layer.weights:
        if not np.isfinite(weight.numpy()).all():
            name = getattr(weight, "path", weight.name)
            raise ValueError(f"Weight {name!r} holds NaN or infinite values, which have no rank. Prune the model from a healthy checkpoint.")


def describe_foreign(thing) -> str:
    """The message for an object that is not of Keras 3: which Keras it is, and the way out."""
    module = type(thing).__module__
    if module.startswith(("tf_keras", "keras.engine", "keras.src.engine", "tensorflow.python.keras")):
        return (
            f"keras_gibbs prunes Keras 3 models; this is a Keras 2 object. Received: {type(thing).__name__} of {module.split('.')[0]}. "
            "Use `keras_gibbs.tfmot.prune` for tf_keras, or build the model with `import keras` (Keras 3)."
        )
    return f"Expected a Keras 3 model or layer. Received: {thing!r} of type {type(thing).__name__}."
