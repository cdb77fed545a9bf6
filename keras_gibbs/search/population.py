"""What a model that searches for its own subnetwork is, whichever Keras it is of."""

import math
import types

import keras
import numpy as np
from keras import ops

from keras_gibbs.numerics.replicas import mean_over_replicas
from keras_gibbs.search import evolution
from keras_gibbs.search.checks import check_energy_batch, check_labels
from keras_gibbs.search.objectives import Context
from keras_gibbs.specs import add_variable, signed
from keras_gibbs.typing import Tensor

SMALLEST_PROBABILITY = 1e-7  # of a softmax output, before its logarithm is taken


class Searching:
    """The search of a model whose layers are wrapped with `EDropout`, as a mixin for the models of one Keras or another.

    A model has a constructor that calls `start_search`, its searched `layers_in_order` with their `masked_weights`, `_logits` that runs candidates, and
    `_features`. Population, energies and the state of the noise are variables of the model, saved and loaded with it.
    """

    sequence = keras.utils.PyDataset  # the class of data that come in batches by index
    aggregation = "only_first_replica"  # how replicas write a variable that is the same for all of them

    def start_search(self) -> None:
        """Make the variables of the search."""
        seed = [layer.seed for layer in self.layers_in_order()]
        self._key = self.add_state("search_key", signed(np.random.SeedSequence(seed).generate_state(2, np.uint32)), "int32")
        start = evolution.start(self.method, self._sizes(), seed)
        # Not a dict, which Keras would track, and with it the variables a second time.
        self._search_state = types.MappingProxyType({name: self.add_state(name, *value) for name, value in start.items()})
        self._first_trace = True

    def add_state(self, name, value, dtype):
        """A variable of the model that starts as `value` and that no optimizer trains."""
        return add_variable(self, name, value, dtype, trainable=False, aggregation=self.aggregation)

    def layers_in_order(self) -> list:
        """The wrapped layers, in the order of the bits; not an attribute, which would be saved a second time."""
        raise NotImplementedError

    def weights_in_order(self) -> list:
        """The masked weights, each with one bit a unit, in the order of the bits."""
        return [masked for layer in self.layers_in_order() for masked in layer.masked_weights]

    def _sizes(self):
        return [masked.groups for masked in self.weights_in_order()]

    def _logits(self, bits, x):
        """What the model gives in training under the states `bits`, float32 `(S, D)`; logarithms where it ends in a softmax. Nothing is to change."""
        raise NotImplementedError

    def _features(self, x):
        """Outputs of the searched layers under the best state, by name. Nothing is to change."""
        raise NotImplementedError

    @property
    def _parts(self) -> list[tuple]:
        """The masked weights, each with the slice of its bits."""
        ends = np.cumsum([0] + self._sizes())
        return [(masked, slice(int(start), int(stop))) for masked, start, stop in zip(self.weights_in_order(), ends, ends[1:], strict=False)]

    @property
    def method(self):
        """The `EDropout` in force."""
        return self.layers_in_order()[0].method

    @property
    def population(self) -> np.ndarray:
        """The states, bool `(S, D)`: one row a state, one column a filter or unit, in the order of the layers."""
        return self._read("population").astype(bool)

    @property
    def energies(self) -> np.ndarray:
        """The energies of the states, float32 `(S,)`, each from the batch on which its state was scored last; infinite before the first step."""
        return self._read("energies")

    @property
    def converged(self) -> bool:
        """Whether the search has ended."""
        return bool(self._read("converged")) or float(ops.convert_to_numpy(self.weights_in_order()[0].values()["searching"])) <= 0

    def _read(self, name):
        return ops.convert_to_numpy(self._search_state[name])

    def figures(self) -> dict[str, float]:
        """What the callback logs: the energies of the best state and of the mean over the population, their difference, the kept fraction of the
        parameters, and whether the search has ended."""
        energies = self.energies
        best, mean = float(energies.min()), float(energies.mean())
        kept = float(ops.convert_to_numpy(self.kept_fraction(self.best_state())))
        return {"best_energy": best, "mean_energy": mean, "energy_spread": mean - best, "kept": kept, "converged": float(self.converged)}

    def check_energies(self) -> None:
        """Raise `ValueError` where states were scored, and not one had a finite energy: labels outside the classes are the usual reason."""
        if int(self._read("generation")) and not np.isfinite(self.energies).any():
            raise ValueError(
                "No state of the population got a finite energy. Labels must be class numbers from 0 on, below the number of outputs, or one-hot rows, "
                f"and the loss must be finite. Received: energies {self.energies} with outputs of shape {self.output_shape}."
            )

    def restart(self) -> None:
        """Begin another search, with a new population, after one has ended."""
        seed = [int(self._read("generation")), *(layer.seed for layer in self.layers_in_order())]
        for name, (value, dtype) in evolution.start(self.method, self._sizes(), seed).items():
            if name != "generation":
                self._search_state[name].assign(np.asarray(value, dtype))

    # States.

    def best_state(self) -> Tensor:
        """The bits in force, float32 `(D,)`."""
        return ops.concatenate([masked.unit_mask() for masked in self.weights_in_order()])

    def parameters(self) -> np.ndarray:
        """How many weights and biases each bit removes, float32 `(D,)`."""
        return np.repeat([masked.unit_parameters for masked in self.weights_in_order()], self._sizes()).astype("float32")

    def kept_fraction(self, bits: Tensor) -> Tensor:
        """The fraction of the parameters of the searched layers that `bits`, `(D,)` or `(S, D)`, keep."""
        parameters = self.parameters()
        return ops.matmul(bits, parameters) / parameters.sum()

    # The search: one step on a batch.

    def search(self, x, y) -> None:
        """Evolve the population on a batch and put its best state into the layers. Nothing else changes: not the weights, not the statistics of
        BatchNormalization, and of the noise only the search's own."""
        state = {name: ops.convert_to_tensor(variable) for name, variable in self._search_state.items()}
        state, best = evolution.advance(
            self.method,
            state,
            applied=self.best_state() > 0,
            over=self.weights_in_order()[0].values()["searching"] <= 0,
            score=lambda states: self.scores(states, x, y),
            key=ops.convert_to_tensor(self._key),
            reduce=mean_over_replicas,
        )
        for masked, part in self._parts:
            masked.state["bits"].assign(ops.cast(best[part], "bool"))
        for name, value in state.items():
            self._search_state[name].assign(value)

    def scores(self, states: Tensor, x, y) -> Tensor:
        """The energies of `states`, bool `(N, D)`, on the first `energy_batch` samples of a batch; float32 `(N,)`. Infinite where one empties a layer."""
        method, count = self.method, self.method.energy_batch
        if count is not None:
            x, y = keras.tree.map_structure(lambda part: part[:count], (x, y))
        bits = ops.cast(states, "float32")
        context = Context(
            logits=self._logits(bits, x),
            labels=self._labels(y),
            bits=bits,
            layers={_layer_path(masked): part for masked, part in self._parts},
            parameters=ops.convert_to_tensor(self.parameters()),
            kernels={_layer_path(masked): masked.masks.arrange(masked.value())[..., 0] for masked, _ in self._parts},
            features=lambda: self._features(x),
        )
        energies = ops.cast(method.objective(context), "float32")
        if tuple(energies.shape) != (states.shape[0],):
            raise ValueError(f"`objective` must give one energy a state, `({states.shape[0]},)`. Received: energies of shape {tuple(energies.shape)}.")
        whole = ops.all(ops.stack([ops.any(states[:, part], axis=1) for _, part in self._parts]), axis=0)
        return ops.where(whole, energies, math.inf)

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

    # What cannot work.

    def _check_data(self, x, y, batch_size):
        """Raise where the data given to `fit` are arrays, or batches that can be looked at, and do not fit the objective."""
        if isinstance(x, self.sequence):
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


def logarithm(probabilities):
    """The logarithm of the outputs of a softmax."""
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), SMALLEST_PROBABILITY))


def assign_in_replica(variable, value):
    """Assign a TensorFlow variable that is trained within a training step; every replica has the same value."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        variable.assign(value)
        return

    def update(strategy, value):
        strategy.extended.update(variable, lambda own, new: own.assign(new), args=(value,))

    context.merge_call(update, args=(value,))


def _layer_path(masked):
    return masked.path.rpartition("/")[0]
