"""The model that searches for its own subnetwork while it trains."""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from keras_gibbs import evolution
from keras_gibbs.configuration import register
from keras_gibbs.layers import Pruned, pruned_layers
from keras_gibbs.objectives import Context
from keras_gibbs.search_checks import check_energy_batch, check_labels, ends_in
from keras_gibbs.typing import Tensor

SMALLEST_PROBABILITY = 1e-7  # of a softmax output, before its logarithm is taken


@register
class SearchedModel(keras.Model):
    """A functional model whose layers are wrapped with `EDropout`; `prune` makes it.

    Every step of `fit` first evolves the population on the batch, then trains the kept weights under the best state. Population, energies and the state of the
    noise are variables of the model, saved and loaded with it.

    Args:
        inputs, outputs, name, **kwargs: As for `keras.Model`.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.sequential = False  # True where the model that was pruned was a Sequential
        method = self.method
        seed = [layer.seed for layer in self._searched]
        key = np.random.SeedSequence(seed).generate_state(2, np.uint32)
        self._key = self._add_state("search_key", key, "uint32")
        self._search_state = {
            name: self._add_state(name, *value) for name, value in evolution.start(method, [layer.groups for layer in self._searched], seed).items()
        }
        self._first_trace = True

    @classmethod
    def of(cls, pruned: keras.Model) -> "SearchedModel":
        """The searched form of a model whose layers are wrapped."""
        sequential = isinstance(pruned, keras.Sequential)
        model = cls(pruned.inputs[0], pruned.outputs[0], name=pruned.name) if sequential else cls(pruned.input, pruned.output, name=pruned.name)
        model.sequential = sequential
        if not pruned.trainable:
            model.trainable = False
        return model

    def _add_state(self, name, value, dtype):
        value = np.asarray(value, dtype)
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype=dtype,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(value, dtype),
            trainable=False,
            aggregation="only_first_replica",
        )

    @property
    def _searched(self) -> list[Pruned]:
        """The wrapped layers, in the order of the bits; not an attribute, which would be saved a second time."""
        return [layer for layer in pruned_layers(self) if layer.method.searches_model]

    @property
    def _slices(self) -> list[slice]:
        ends = np.cumsum([0] + [layer.groups for layer in self._searched])
        return [slice(int(start), int(stop)) for start, stop in zip(ends, ends[1:])]

    @property
    def method(self):
        """The `EDropout` in force."""
        return self._searched[0].method

    @property
    def population(self) -> np.ndarray:
        """The states, bool `(S, D)`: one row a state, one column a filter or unit, in the order of the layers."""
        return ops.convert_to_numpy(self._search_state["population"].value).astype(bool)

    @property
    def energies(self) -> np.ndarray:
        """The energies of the states, float32 `(S,)`, each from the batch on which its state was scored last; infinite before the first step."""
        return ops.convert_to_numpy(self._search_state["energies"].value)

    @property
    def converged(self) -> bool:
        """Whether the search has ended."""
        return bool(ops.convert_to_numpy(self._search_state["converged"].value)) or self._searched[0].state("searching") <= 0

    def plain(self) -> keras.Model:
        """The same layers as an ordinary functional model."""
        model = keras.Model(self.input, self.output, name=self.name)
        if not self.trainable:
            model.trainable = False
        return model

    def figures(self) -> dict[str, float]:
        """What the callback logs: the energies of the best state and of the mean over the population, their difference, the kept fraction of the
        parameters, and whether the search has ended."""
        energies = self.energies
        best, mean = float(energies.min()), float(energies.mean())
        kept = float(ops.convert_to_numpy(self.kept_fraction(self.best_state())))
        return {"best_energy": best, "mean_energy": mean, "energy_spread": mean - best, "kept": kept, "converged": float(self.converged)}

    def check_energies(self) -> None:
        """Raise `ValueError` where states were scored, and not one had a finite energy: labels outside the classes are the usual reason."""
        if int(self._search_state["generation"]) and not np.isfinite(self.energies).any():
            raise ValueError(
                "No state of the population got a finite energy. Labels must be class numbers from 0 on, below the number of outputs, or one-hot rows, "
                "and as many as `energy_batch`; the loss must be finite. "
                f"Received: energies {self.energies} with outputs of shape {self.output_shape}."
            )

    def restart(self) -> None:
        """Begin another search, with a new population, after one has ended."""
        seed = [int(self._search_state["generation"]), *(layer.seed for layer in self._searched)]
        for name, (value, dtype) in evolution.start(self.method, [layer.groups for layer in self._searched], seed).items():
            if name != "generation":
                self._search_state[name].assign(np.asarray(value, dtype))

    # States.

    def best_state(self) -> Tensor:
        """The bits in force, float32 `(D,)`."""
        return ops.concatenate([layer.unit_mask() for layer in self._searched])

    def parameters(self) -> np.ndarray:
        """How many weights and biases each bit removes, float32 `(D,)`."""
        counts = [_size(layer.layer) // layer.groups for layer in self._searched]
        return np.repeat(counts, [layer.groups for layer in self._searched]).astype("float32")

    def kept_fraction(self, bits: Tensor) -> Tensor:
        """The fraction of the parameters of the searched layers that `bits`, `(D,)` or `(S, D)`, keep."""
        parameters = self.parameters()
        return ops.matmul(bits, parameters) / parameters.sum()

    # The search: one step on a batch.

    def search(self, x, y) -> None:
        """Evolve the population on a batch and put its best state into the layers. Nothing else changes: not the weights, not the statistics of
        BatchNormalization, not the state of any noise but the search's own."""
        state = {name: variable.value for name, variable in self._search_state.items()}
        state, best = evolution.advance(
            self.method,
            state,
            applied=self.best_state() > 0,
            over=self._searched[0].values()["searching"] <= 0,
            score=lambda states: self.scores(states, x, y),
            key=self._key.value,
            reduce=_mean_over_replicas,
        )
        for layer, part in zip(self._searched, self._slices, strict=True):
            layer.set_bits(best[part])
        for name, value in state.items():
            self._search_state[name].assign(value)

    def scores(self, states: Tensor, x, y) -> Tensor:
        """The energies of `states`, bool `(N, D)`, on the first `energy_batch` samples of a batch; float32 `(N,)`. Infinite where one empties a layer."""
        method, count = self.method, self.method.energy_batch
        if count is not None:
            x, y = keras.tree.map_structure(lambda part: part[:count], (x, y))
        bits = ops.cast(states, "float32")
        chunk = max(part for part in range(1, method.population_chunk + 1) if states.shape[0] % part == 0)
        context = Context(
            logits=self._looped(bits, x) if chunk == 1 else self._stacked(bits, x, chunk),
            labels=self._labels(y),
            bits=bits,
            layers={layer.name: part for layer, part in zip(self._searched, self._slices, strict=True)},
            parameters=ops.convert_to_tensor(self.parameters()),
            kernels={layer.name: layer.arranged_kernel() for layer in self._searched},
            features=lambda: self._features(x),
        )
        energies = ops.cast(method.objective(context), "float32")
        if tuple(energies.shape) != (states.shape[0],):
            raise ValueError(f"`objective` must give one energy a state, `({states.shape[0]},)`. Received: energies of shape {tuple(energies.shape)}.")
        whole = ops.all(ops.stack([ops.any(states[:, part], axis=1) for part in self._slices]), axis=0)
        return ops.where(whole, energies, math.inf)

    def _looped(self, bits, x):
        return ops.map(lambda state: self._logits(state, x), bits)

    def _stacked(self, bits, x, chunk):
        """Several states share a forward pass: their bits mask the outputs of layers that all of them run with the same kernels."""
        with _outputs_masked(self._searched):
            parts = ops.reshape(bits, (-1, chunk, bits.shape[1]))
            logits = ops.map(lambda part: ops.vectorized_map(lambda state: self._logits(state, x), part), parts)
            return keras.tree.map_structure(lambda part: ops.reshape(part, (-1, *ops.shape(part)[2:])), logits)

    def _logits(self, state, x):
        outputs = self._run_under(self, state, x)
        if getattr(self.method.objective, "needs_classes", False):
            outputs = keras.tree.flatten(outputs)[0]
        return keras.tree.map_structure(lambda part: ops.cast(part, "float32"), _to_logits(self, outputs))

    def _run_under(self, model, state, x):
        """What `model`, this one or one that shares its layers, gives in training under a state; nothing is written."""
        values = {}
        for layer, part in zip(self._searched, self._slices, strict=True):
            values[id(layer.bits)] = ops.cast(state[part], "uint8")
        trainable = [variable.value for variable in model.trainable_variables]
        others = [values.get(id(variable), variable.value) for variable in model.non_trainable_variables]
        return model.stateless_call(trainable, others, x, training=True)[0]

    def _features(self, x):
        """Outputs of the searched layers under the best state."""
        model = keras.Model(self.input, {layer.name: layer.output for layer in self._searched})
        return self._run_under(model, self.best_state(), x)

    def _labels(self, y):
        """Integer labels, from these or rows of probabilities, -1 for what is neither; other targets as they are."""
        if not getattr(self.method.objective, "needs_classes", False):
            return y
        y, classes = keras.tree.flatten(y)[0], self.outputs[0].shape[-1]
        if len(y.shape) == 2 and y.shape[1] == classes:
            sums = ops.sum(ops.cast(y, "float32"), axis=-1)
            return ops.where(ops.absolute(sums - 1.0) < 1e-3, ops.cast(ops.argmax(y, axis=-1), "int32"), -1)
        return ops.cast(ops.reshape(y, (-1,)), "int32")

    # Training.

    def fit(self, x=None, y=None, batch_size=None, *args, **kwargs):
        self._check_data(x, y, batch_size)
        self._first_trace = True
        return super().fit(x, y, batch_size, *args, **kwargs)

    def train_step(self, *args):
        """One step of the search and one of training; filters that are removed are put back to where they were."""
        return self._step_on_jax(*args) if keras.backend.backend() == "jax" else self._step(*args)

    def _step(self, batch):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        self._check_batch(x)
        self.search(x, y)
        removed = [(variable, mask, variable.value + 0) for layer in self._searched for variable, mask in layer.removed()]
        logs = super().train_step(batch)
        for variable, mask, before in removed:
            _assign_in_replica(variable, ops.where(mask > 0, variable.value, before))
        return logs

    def _step_on_jax(self, state, batch):
        trainable, others, *rest = state
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        self._check_batch(x)
        mapping = list(zip(self.trainable_variables + self.non_trainable_variables, [*trainable, *others], strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.search(x, y)
            masks = {id(variable): mask for layer in self._searched for variable, mask in layer.removed()}
        others = [scope.get_current_value(variable) for variable in self.non_trainable_variables]
        logs, (after, *rest) = super().train_step((trainable, others, *rest), batch)
        kept = [masks.get(id(variable)) for variable in self.trainable_variables]
        after = [new if mask is None else ops.where(mask > 0, new, old) for new, old, mask in zip(after, trainable, kept, strict=True)]
        return logs, (after, *rest)

    # What cannot work.

    def _check_data(self, x, y, batch_size):
        """Raise where the data given to `fit` are arrays, or batches that can be looked at, and do not fit the objective."""
        if isinstance(x, keras.utils.PyDataset):
            x, y = x[0][:2]
            batch_size = len(keras.tree.flatten(y)[0])
        leaves = keras.tree.flatten(y)
        if not all(isinstance(leaf, (np.ndarray, type(ops.convert_to_tensor(0)))) for leaf in leaves):
            return
        check_energy_batch(self.method.energy_batch, min(len(leaves[0]), batch_size or 32))
        if getattr(self.method.objective, "needs_classes", False):
            check_labels(ops.convert_to_numpy(leaves[0]), self.outputs[0].shape[-1])

    def _check_batch(self, x):
        size = keras.tree.flatten(x)[0].shape[0]
        if self._first_trace and size is not None:
            check_energy_batch(self.method.energy_batch, size)
        self._first_trace = False  # the last batch of an epoch may be smaller

    # Saving.

    def get_config(self):
        return {**super().get_config(), "sequential": self.sequential}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        sequential = config.pop("sequential", False)
        model = super().from_config(config, custom_objects=custom_objects)
        model.sequential = sequential
        return model


def _size(layer):
    return math.prod(layer.kernel.shape) + (0 if layer.bias is None else math.prod(layer.bias.shape))


@contextlib.contextmanager
def _outputs_masked(layers: list[Pruned]):
    for layer in layers:
        layer.masks_outputs = True
    try:
        yield
    finally:
        for layer in layers:
            layer.masks_outputs = False


def _mean_over_replicas(costs):
    """The mean over the replicas of a `tf.distribute` strategy, so that all of them decide alike."""
    if keras.backend.backend() != "tensorflow":
        return costs
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return costs
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, costs)


def _assign_in_replica(variable, value):
    """Assign a trainable variable within a training step; every replica has the same value."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        variable.assign(value)
        return

    def update(strategy, value):
        strategy.extended.update(variable.value, lambda own, new: own.assign(new), args=(value,))

    context.merge_call(update, args=(value,))


def _to_logits(model, outputs):
    """The logarithm of the outputs of a model that ends in a softmax; other outputs as they are."""
    if ends_in(model) != "softmax":
        return outputs
    return ops.log(ops.maximum(ops.cast(outputs, "float32"), SMALLEST_PROBABILITY))
