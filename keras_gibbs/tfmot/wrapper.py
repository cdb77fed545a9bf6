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
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry, pruning_schedule, pruning_wrapper

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.specs import add_variable
from keras_gibbs.tfmot.weights import MaskedWeight

DEFAULT_SCHEDULE = pruning_schedule.ConstantSparsity(0.5, 0)  # TF-MOT's own
NEVER = -1.0  # progress of a wrapper that no callback has moved
NO_CALLBACK = (
    "A model pruned with `method=` is trained with `keras_gibbs.tfmot.GibbsPruningCallback()` among the callbacks: it anneals the masks and folds them into "
    "the weights."
)


# TF-MOT names a wrapped layer after the class of its wrapper, and a model of ours is to have the names it gives.
@tf_keras.saving.register_keras_serializable(package="keras_gibbs", name="Pruned")
class PruneLowMagnitude(pruning_wrapper.PruneLowMagnitude):
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
        prunable: False prunes nothing in the layer; where the method learns masks only it still holds the layer's weights.
        **kwargs: Arguments of the layer, such as `input_shape`.

    Raises:
        TypeError: For something that is not a method.
        ValueError: For a layer that TF-MOT cannot prune, and for blocks or m by n sparsity beside a method.

    Example:

    >>> model = tf_keras.Sequential([kg_tfmot.Pruned(tf_keras.layers.Dense(10), method=kg.Gibbs(0.9), input_shape=(64,))])
    """

    method = None
    first_step = -1  # until a callback says that it is there
    candidate = types.MappingProxyType({})  # the state of a candidate, for as long as a search scores it

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
        self.masked = []
        self.prunable = prunable
        if method is not None:
            self.seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
            self.supports_masking = layer.supports_masking

    def build(self, input_shape=None):
        if self.method is None:
            super().build(input_shape)
            return
        tf_keras.layers.Wrapper.build(self, input_shape)
        if self.prunable:
            build_attention(self.layer)
        self.prunable_weights = self.layer.get_prunable_weights() if self.prunable else []
        self.masked = [MaskedWeight(self, weight, index) for index, weight in enumerate(self.prunable_weights)]
        if self.masked and self.method.searches_model and getattr(self.layer, "bias", None) is not None:
            self.masked.append(MaskedWeight(self, self.layer.bias, 1, self.masked[0]))
        self._progress = self.add_state("progress", NEVER)
        self.folded = self.add_state("folded", False, "bool")
        # What TF-MOT's callbacks use.
        self.pruning_vars = [(masked.weight, masked.mask, masked.threshold) for masked in self.masked]
        self.pruning_step = self.add_state("pruning_step", self.first_step, "int64")  # counts training calls, and with them the draws of masks
        self.pruning_obj = types.SimpleNamespace(weight_mask_op=self._fold_for_tfmot)

    def add_state(self, name, value, dtype="float32", trainable=False):
        """Add a variable that starts as `value`."""
        aggregation = tf.VariableAggregation.MEAN if trainable else tf.VariableAggregation.ONLY_FIRST_REPLICA
        return add_variable(self, name, value, dtype, trainable=trainable, aggregation=aggregation)

    # Running the layer.

    def call(self, inputs, training=None, **kwargs):
        if self.method is None:
            return super().call(inputs, training=training, **kwargs)
        if training is None:
            training = tf_keras.backend.learning_phase()
        weights = smart_cond(training, self._train, self._infer)
        if tf.is_tensor(training) or training:
            self._add_penalties(training)
        if "mask" not in inspect.signature(self.layer.call).parameters:
            kwargs.pop("mask", None)
        with substituted(self.masked, weights):
            return self.layer(inputs, **kwargs)  # which hears of `training` from Keras

    # AutoGraph is for the code of users.

    @tf.autograph.experimental.do_not_convert
    def _add_penalties(self, training):
        penalties = [self.method.penalty(masked.values()) for masked in self.masked]
        for penalty in penalties:
            if penalty is not None:
                self.add_loss(penalty * tf.cast(training, penalty.dtype))

    @tf.autograph.experimental.do_not_convert
    def _train(self):
        if not self.candidate:
            self._step()
        return [masked.sample() for masked in self.masked]

    def _step(self):
        tf.debugging.assert_non_negative(self.pruning_step, NO_CALLBACK)
        if not tf.distribute.has_strategy():  # a replica cannot write a mirrored weight; with a strategy the callback does it
            self.unfold()
        self.pruning_step.assign_add(1)

    @tf.autograph.experimental.do_not_convert
    def _infer(self):
        as_it_is = tf.logical_or(self.folded, self.pruning_step < 0)
        return [tf.cond(as_it_is, lambda m=masked: tf.convert_to_tensor(m.weight), masked.infer) for masked in self.masked]

    def compute_mask(self, inputs, mask=None):
        return super().compute_mask(inputs, mask) if self.method is None else self.layer.compute_mask(inputs, mask)

    # Folding masks in and out.

    def fold(self):
        """Write the deterministic masks into the layer's weights, and keep the dense ones."""
        for masked in self.masked:
            masked.fold()
        self.folded.assign(True)

    def unfold(self):
        """Give the layer its dense weights back, if they are folded."""

        def restore():
            for masked in self.masked:
                masked.weight.assign(masked.dense_values())
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

    @property
    def progress(self) -> float:
        """How far the schedules have come, in [0, 1]; negative where no callback has moved them yet."""
        return float(self._progress.numpy()) if self.built else NEVER

    def anneal(self, progress: float) -> None:
        """Move every scheduled quantity to its value at `progress` in [0, 1]."""
        self._progress.assign(progress)
        for masked in self.masked:
            masked.anneal(progress)

    def settle(self, progress: float) -> None:
        """Hold the masks of this moment from here on, if `progress` is that far."""
        for masked in self.masked:
            masked.settle(progress)

    def waits(self) -> bool:
        """Whether the method has schedules that no callback has moved, or a sparsity that has not come to its end."""
        return bool(self.masked) and self.method.waits(self.progress)

    def figures(self) -> dict[str, float]:
        """The method's own figures, averaged over the layer's weights."""
        rows = [masked.figures() for masked in self.masked]
        return {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}

    # What a search uses.

    @property
    def groups(self) -> int:
        """The number of units."""
        return self.masked[0].masks.arranged_shape[2]

    def values(self):
        """The method's state, as tensors."""
        return self.masked[0].values()

    def unit_mask(self):
        """Which units are kept, float32 `(groups,)`."""
        return self.method.unit_mask(self.values())

    def set_bits(self, bits) -> None:
        """Keep the units of the bool tensor `bits`, `(groups,)`."""
        self.masked[0].state["bits"].assign(tf.cast(bits, "uint8"))

    def arranged_kernel(self):
        """The kernel as methods see it: `(channels, positions, groups)`."""
        kernel = self.masked[0]
        return self.method.structure.arrange(tf.stop_gradient(kernel.weight), kernel.masks.layout)

    def removed(self) -> list[tuple]:
        """The masked variables, each with a mask of its own shape: 0 where the unit is removed."""
        return [(masked.weight, masked.mode()) for masked in self.masked]

    # Variables and configuration.

    @property
    def trainable_weights(self):
        if self.method is None:
            return super().trainable_weights
        return (super().trainable_weights if self.method.trains_weights else []) + [variable for masked in self.masked for variable in masked.learned]

    @property
    def non_trainable_weights(self):
        held = self.layer.trainable_weights if self.method is not None and not self.method.trains_weights else []
        return held + super().non_trainable_weights

    @property
    def losses(self):
        return super().losses if self.method is None else tf_keras.layers.Wrapper.losses.fget(self)

    def get_config(self):
        own = {} if self.method is None else {"method": keras.saving.serialize_keras_object(self.method), "seed": self.seed, "prunable": self.prunable}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        if "method" in config:
            config = {**config, "method": keras.saving.deserialize_keras_object(config["method"])}
        return super().from_config(config)


Pruned = PruneLowMagnitude


@contextlib.contextmanager
def substituted(masked, values):
    """Let the layers see `values` where their own weights are; nothing is written, and Keras does not notice."""
    for part, value in zip(masked, values, strict=True):
        vars(part.owner)[part.attribute] = tf.cast(value, getattr(part.owner, "compute_dtype", value.dtype))
    try:
        yield
    finally:
        for part in masked:
            vars(part.owner)[part.attribute] = part.weight


def build_attention(layer):
    """Make the weights of a MultiHeadAttention that comes from a file, which Keras does in its first call only."""
    if isinstance(layer, tf_keras.layers.MultiHeadAttention) and not layer.weights:
        config = layer.get_config()
        shapes = [config[f"{name}_shape"] for name in ("query", "value", "key")]
        if None not in shapes:
            layer(*(tf.zeros([size or 1 for size in shape]) for shape in shapes))


def is_supported(layer) -> bool:
    """Whether TF-MOT can wrap `layer`."""
    return hasattr(layer, "get_prunable_weights") or prune_registry.PruneRegistry.supports(layer)


def check_method(method) -> None:
    """Raise `TypeError` unless `method` is one, `ValueError` for one that tf_keras cannot serve."""
    if not isinstance(method, PruningMethod):
        raise TypeError(f"`method` must be a pruning method such as `keras_gibbs.Gibbs(sparsity=0.9)`. Received: method={method!r}.")
    if method.observes:
        raise ValueError(f"The optimizers of tf_keras cannot hand a criterion its gradients: use it with Keras 3. Received: method={method.brief()}.")
