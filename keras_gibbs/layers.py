"""The wrapper that runs a layer with masked weights."""

import random

import keras
from keras import ops

from keras_gibbs.arguments import require_count, require_seed
from keras_gibbs.budget import check_met
from keras_gibbs.checks import check_finite, check_layer, check_method, describe_foreign, supported
from keras_gibbs.configuration import register
from keras_gibbs.methods.traits import LearnsMasks, trains_weights
from keras_gibbs.numerics.noise import split
from keras_gibbs.specs import add_variable, read, signed
from keras_gibbs.starting import prepared_starts
from keras_gibbs.structure.building import build_by_shape, build_for, is_built, specs_of
from keras_gibbs.structure.copying import Plain
from keras_gibbs.structure.graph import walk
from keras_gibbs.structure.prunable import prunable_weights
from keras_gibbs.structure.trace import output_spec
from keras_gibbs.substitution import call_with, with_removed
from keras_gibbs.typing import Tensor
from keras_gibbs.weights import MaskedWeight
from keras_gibbs.wrapping import NEVER, Wrapping


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
    masks_weights = True
    weight_class = MaskedWeight

    def __new__(cls, layer=None, *args, **kwargs):
        return layer if Plain.is_on else super().__new__(cls, layer, *args, **kwargs)

    def __init__(self, layer, method, *, seed=None, path=None, only=None, sites=1, **kwargs):
        self._check_layer(layer)
        check_method(method)
        check_met(method)
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

    def _check_layer(self, layer):
        check_layer(layer)

    # Building.

    def __call__(self, *args, **kwargs):
        if self.call_specs is None:
            self.call_specs = specs_of(args, kwargs)
        if not self.built and not is_built(self.layer):
            with prepared_starts(self.layer, self.method):
                build_for(self.layer, self.call_specs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape=None):
        unbuilt = not is_built(self.layer)
        if unbuilt:
            with prepared_starts(self.layer, self.method):
                build_by_shape(self.layer, input_shape)
        if self.masked_weights:
            return
        weights = self._chosen()
        self.masked_weights = [
            self.weight_class(weight, self.method, split(self.seed, index) if index else self.seed, self._adder(weight, len(weights) > 1))
            for index, weight in enumerate(weights)
        ]
        self._progress = add_variable(self, "progress", NEVER, **_STILL)
        self._draws = add_variable(self, "draws", 0, "int32", **_STILL)  # how many masks were drawn
        self._moved = add_variable(self, "moved", 1, "int32", **_STILL)  # 1 once weights or counts have changed since `decide`
        if not unbuilt:
            self.prepare()
        self.freeze()
        self.built = True

    @property
    def members(self) -> list:
        """What stands for the kernels that are masked, in counts and reports: each has a `path`, a `variable`, `masked()` and `mask()`."""
        return self.masked_weights

    def _chosen(self):
        weights = prunable_weights(self.layer, self.path_in_model)
        local = {self._local(weight.path): weight for weight in weights}
        if self.only is not None and (unknown := sorted(set(self.only) - set(local))):
            raise ValueError(f"`only` names weights by their paths from below layer {self.layer.name!r}. Received: only={unknown}. There are {list(local)}.")
        if not weights:
            raise ValueError(f"Layer {self.layer.name!r} has no weights that can be pruned. Received: {self.layer!r}. {supported()}")
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
            return {masked.path: masked.mask() for masked in self.members}
        draw = self._next_draw(self.sites)
        return {masked.path: masked.sample(draw) for masked in self.members}

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
        if len(self.members) > 1:
            raise ValueError(f"Layer {self.name!r} has several pruned weights, {[masked.path for masked in self.members]}. Use `.masks()`, a dict.")
        return next(iter(self.masks(training).values()))

    def _draw(self):
        return self._draws.value // self.sites

    def _next_draw(self, calls=1):
        draw = self._draw()
        self._draws.assign(self._draws.value + calls)
        return draw

    # Running the layer.

    def call(self, *args, training=None, **kwargs):
        masked = self._values(training)
        self._note_call(training)
        for penalty in self.penalties() if training else ():
            self.add_loss(penalty)
        outputs, losses, assigned = self._run(masked, args, kwargs)
        for loss in losses:
            self.add_loss(loss * 1.0)  # a new tensor: the same one would be counted twice on JAX
        values = {id(variable): value for variable, value in masked}
        for variable, _, now in assigned:
            variable.assign(self._merged(variable, values[id(variable)], now) if id(variable) in values else now)
        return outputs

    def _values(self, training):
        """The weights under their masks: pairs of variable and value."""
        if training:
            draw = self._next_draw()
            return [(masked.variable, masked.train(draw)) for masked in self.masked_weights]
        return [(masked.variable, masked.infer(self._moved.value)) for masked in self.masked_weights]

    def _note_call(self, training):
        self._moved.assign(int(bool(training)))

    def _merged(self, variable, masked, assigned):
        """The new value of a variable that the layer has `assigned` in its call, where it saw it `masked`."""
        return with_removed(variable.value, masked, assigned)

    def _run(self, values, args, kwargs):
        """The layer under masks, and the biases that go with removed units."""
        if self.masks_outputs:
            outputs, losses, assigned = call_with(self.layer, [], args, kwargs)
            return outputs * ops.cast(self.masked_weights[0].unit_mask(), outputs.dtype), losses, assigned
        biases = [(masked.bias, masked.bias.value * masked.bias_mask()) for masked in self.masked_weights if masked.bias is not None]
        return call_with(self.layer, values + biases, args, kwargs)

    def compute_output_spec(self, *args, training=None, **kwargs):
        return output_spec(self.layer, args, kwargs)

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
            for name, value in read(store).items():
                variables[name].assign(value)
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


def pruned_layers(model) -> list[Pruned]:
    """The wrapped layers of a model, of any depth, each once."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    return [layer for layer in walk(model) if isinstance(layer, Pruned)]
