"""TF-MOT's wrapper with a method in it."""

import contextlib
import inspect
import random
import types
import warnings

import keras
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.keras.utils import smart_cond
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule, pruning_wrapper

from keras_gibbs import layers
from keras_gibbs.budget import budget_of
from keras_gibbs.methods.traits import FindsMasks, ObservesGradients, trains_weights
from keras_gibbs.numerics.noise import split
from keras_gibbs.specs import add_variable, read
from keras_gibbs.structure import graph
from keras_gibbs.tfmot.weights import FoldedWeight, is_supported, prunable_weights
from keras_gibbs.wrapping import NEVER, Wrapping

DEFAULT_SCHEDULE = pruning_schedule.ConstantSparsity(0.5, 0)  # TF-MOT's own
NO_CALLBACK = (
    "A model pruned with `method=` is trained with `keras_gibbs.tfmot.GibbsPruningCallback()` among the callbacks: it anneals the masks and folds them into "
    "the weights."
)


# TF-MOT names a wrapped layer after the class of its wrapper, and a model of ours is to have the names it gives.
@tf_keras.saving.register_keras_serializable(package="keras_gibbs", name="Pruned")
class PruneLowMagnitude(Wrapping, pruning_wrapper.PruneLowMagnitude):
    """TF-MOT's pruning wrapper, which with `method=` prunes by a method of keras_gibbs instead of its own.

    Without a method every call is TF-MOT's. With one, a mask is drawn at every training call and the layer runs with the masked weights, while its
    variables keep the dense values. `fold`, which the callback calls at the end of every epoch and of `fit`, writes the deterministic masks into the
    variables and keeps one dense copy beside them; the next training step takes the dense values up again. So TF-MOT's `strip_pruning` finds what the
    pruned model predicts with. A model that was never trained is not pruned yet, as in TF-MOT.

    Args:
        layer: A tf_keras layer that TF-MOT can prune, or one with `get_prunable_weights`. Every prunable weight has masks of its own.
        pruning_schedule, block_size, block_pooling_type, sparsity_m_by_n: As in TF-MOT; without effect beside `method`, which has a sparsity and a
            structure of its own.
        method: A pruning method, such as `kg.Gibbs(0.9)`.
        seed: Int, the seed of the layer's noise. By default one is drawn from Python's `random`.
        path: Where the layer stands in its model, such as `"encoder/dense"`; its name by default. The paths of its weights begin with it.
        prunable: False prunes nothing in the layer; where the method learns masks only it still holds the layer's weights.
        **kwargs: Arguments of the layer, such as `input_shape`.

    Raises:
        TypeError: For something that is not a method.
        ValueError: For a layer that TF-MOT cannot prune, and for blocks or m by n sparsity beside a method.

    Example:

    >>> model = tf_keras.Sequential([kg_tfmot.Pruned(tf_keras.layers.Dense(10), method=kg.Gibbs(0.9), input_shape=(64,))])
    """

    wraps_for_pruning = True
    method = None
    first_step = -1  # until a callback says that it is there

    def __init__(
        self,
        layer,
        pruning_schedule=DEFAULT_SCHEDULE,
        block_size=(1, 1),
        block_pooling_type="AVG",
        sparsity_m_by_n=None,
        *,
        method=None,
        seed=None,
        path=None,
        prunable=True,
        **kwargs,
    ):
        if method is not None:
            check_method(method)
            if tuple(block_size) != (1, 1) or sparsity_m_by_n:
                raise ValueError(
                    "Blocks and m by n sparsity are TF-MOT's own; a method of keras_gibbs has a `structure`. "
                    f"Received: block_size={block_size!r}, sparsity_m_by_n={sparsity_m_by_n!r} beside method={method!r}."
                )
            if not prunable and not is_supported(layer):
                layer.get_prunable_weights = list  # TF-MOT refuses a layer that does not say what is prunable in it
            # The wrapper computes nothing itself: in float32 it reads weights as they are stored, also under mixed precision.
            kwargs |= {"dtype": "float32", "autocast": False}
        super().__init__(layer, pruning_schedule, block_size, block_pooling_type, sparsity_m_by_n, **kwargs)
        self.method = method
        self.masked_weights = []
        self.prunable = prunable
        if method is not None:
            self.seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
            self.path_in_model = path or layer.name
            self.supports_masking = layer.supports_masking

    def build(self, input_shape=None):
        if self.method is None:
            super().build(input_shape)
            return
        tf_keras.layers.Wrapper.build(self, input_shape)
        if self.prunable:
            build_attention(self.layer)
            layers.check_finite(self.layer)
        weights = prunable_weights(self.layer, self.path_in_model) if self.prunable else []
        self.prunable_weights = [weight.variable for weight in weights]
        self.masked_weights = [
            FoldedWeight(weight, self.method, split(self.seed, index), self._adder(index), lambda: tf.convert_to_tensor(self.folded))
            for index, weight in enumerate(weights)
        ]
        self._progress = add_variable(self, "progress", NEVER, **_STILL)
        self.folded = add_variable(self, "folded", False, "bool", **_STILL)
        # What TF-MOT's callbacks use.
        self.pruning_vars = [(part.variable, part.mask, part.threshold) for part in self._foldings]
        self.pruning_step = add_variable(self, "pruning_step", self.first_step, "int64", **_STILL)  # counts training calls, and with them the draws of masks
        self.pruning_obj = types.SimpleNamespace(weight_mask_op=self._fold_for_tfmot)
        self.prepare()

    def _adder(self, index):
        taken = set()

        def add(name, value, dtype, trainable, overwritten):
            position = index + (name in taken)  # a layer's names must differ, or its file cannot be written; the bias comes after its kernel
            taken.add(name)
            aggregation = tf.VariableAggregation.MEAN if trainable else tf.VariableAggregation.ONLY_FIRST_REPLICA
            return add_variable(self, f"{name}_{position}" if position else name, value, dtype, trainable=trainable, aggregation=aggregation)

        return add

    @property
    def _foldings(self):
        return [part for masked in self.masked_weights for part in masked.foldings]

    def _draw(self):
        return tf.cast(self.pruning_step, "int32")

    # Running the layer.

    def call(self, inputs, training=None, **kwargs):
        if self.method is None:
            return super().call(inputs, training=training, **kwargs)
        if training is None:
            training = tf_keras.backend.learning_phase()
        weights = smart_cond(training, self._train, self._infer)
        for penalty in self._penalties() if tf.is_tensor(training) or training else ():
            self.add_loss(penalty * tf.cast(training, penalty.dtype))
        if "mask" not in inspect.signature(self.layer.call).parameters:
            kwargs.pop("mask", None)
        with substituted(self._foldings, weights):
            return self.layer(inputs, **kwargs)  # which hears of `training` from Keras

    # AutoGraph is for the code of users.

    @tf.autograph.experimental.do_not_convert
    def _penalties(self):
        return self.penalties()

    @tf.autograph.experimental.do_not_convert
    def _train(self):
        if not any(masked.candidate for masked in self.masked_weights):
            self._step()
        draw = self._draw()
        return [value for masked in self.masked_weights for value in (masked.train(draw), *(bias.masked() for bias in masked.foldings[1:]))]

    def _step(self):
        tf.debugging.assert_non_negative(self.pruning_step, NO_CALLBACK)
        if not tf.distribute.has_strategy():  # a replica cannot write a mirrored weight; with a strategy the callback does it
            self.unfold()
        self.pruning_step.assign_add(1)

    @tf.autograph.experimental.do_not_convert
    def _infer(self):
        as_it_is = tf.logical_or(self.folded, self.pruning_step < 0)
        return [tf.cond(as_it_is, lambda own=part.variable: tf.convert_to_tensor(own), part.masked) for part in self._foldings]

    def compute_mask(self, inputs, mask=None):
        return super().compute_mask(inputs, mask) if self.method is None else self.layer.compute_mask(inputs, mask)

    # Folding masks in and out.

    def fold(self):
        """Write the deterministic masks into the layer's weights, and keep the dense ones."""
        for part in self._foldings:
            part.fold()
        self.folded.assign(True)

    def unfold(self):
        """Give the layer its dense weights back, if they are folded."""

        def restore():
            for part in self._foldings:
                part.unfold()
            self.folded.assign(False)

        tf.cond(tf.convert_to_tensor(self.folded), restore, lambda: None)

    def _fold_for_tfmot(self):
        if self.waits():
            warnings.warn(f"The schedules of {self.name!r} were never moved, or have not come to their end. {NO_CALLBACK}", stacklevel=3)
        self.fold()

    # What the callback uses.

    def start(self):
        """Let training begin, now or when the layer is built."""
        if not self.built:
            self.first_step = 0
        elif self.pruning_step < 0:
            self.pruning_step.assign(0)

    def waits(self):
        return bool(self.masked_weights) and super().waits()

    # Variables and configuration.

    @property
    def trainable_weights(self):
        if self.method is None:
            return super().trainable_weights
        learned = [variable for masked in self.masked_weights for variable in masked.state.values() if variable.trainable]
        return (super().trainable_weights if trains_weights(self.method) else []) + learned

    @property
    def non_trainable_weights(self):
        held = self.layer.trainable_weights if self.method is not None and not trains_weights(self.method) else []
        return held + super().non_trainable_weights

    @property
    def losses(self):
        return super().losses if self.method is None else tf_keras.layers.Wrapper.losses.fget(self)

    def get_config(self):
        if self.method is None:
            return super().get_config()
        method = keras.saving.serialize_keras_object(self.method)
        return {**super().get_config(), "method": method, "seed": self.seed, "path": self.path_in_model, "prunable": self.prunable}

    @classmethod
    def from_config(cls, config):
        if "method" in config:
            config = {**config, "method": keras.saving.deserialize_keras_object(config["method"])}
        return super().from_config(config)

    def load_own_variables(self, store):
        super().load_own_variables(read(store))


Pruned = PruneLowMagnitude
_STILL = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}


def pruned_layers(model) -> list[Pruned]:
    """The layers that are pruned by a method, of any depth, each once."""
    return [layer for layer in graph.walk(model) if isinstance(layer, Pruned) and layer.method is not None]


@contextlib.contextmanager
def substituted(parts, values):
    """Let the layers see `values` where their own weights are; nothing is written, and Keras does not notice."""
    for part, value in zip(parts, values, strict=True):
        vars(part.owner)[part.name] = tf.cast(value, getattr(part.owner, "compute_dtype", value.dtype))
    try:
        yield
    finally:
        for part in parts:
            vars(part.owner)[part.name] = part.variable


def build_attention(layer):
    """Make the weights of a MultiHeadAttention that comes from a file, which Keras does in its first call only."""
    if isinstance(layer, tf_keras.layers.MultiHeadAttention) and not layer.weights:
        config = layer.get_config()
        shapes = [config[f"{name}_shape"] for name in ("query", "value", "key")]
        if None not in shapes:
            layer(*(tf.zeros([size or 1 for size in shape]) for shape in shapes))


def check_method(method) -> None:
    """Raise `TypeError` unless `method` is one, `ValueError` for one that tf_keras cannot serve."""
    layers.check_method(method)
    if budget_of(getattr(method, "sparsity", None)):
        raise ValueError(f"A budget is met by `keras_gibbs.prune`, for Keras 3 models. Received: method={method.brief()}. Give a number for tf_keras.")
    if isinstance(method, FindsMasks):
        name = type(method).__name__
        raise ValueError(
            f"{name} scores a whole Keras 3 model. Received: method={method.brief()} for tf_keras. Find the masks in the same network with "
            f"`keras_gibbs.prune(model, {name}(...))`, and give them here as `Fixed({{layer: mask}})`."
        )
    if isinstance(method, ObservesGradients) and method.observed:
        raise ValueError(f"The optimizers of tf_keras cannot hand a criterion its gradients: use it with Keras 3. Received: method={method.brief()}.")
