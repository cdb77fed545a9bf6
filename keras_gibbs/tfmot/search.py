"""The tf_keras model that searches for its own subnetwork while it trains."""

import contextlib
import types

import tensorflow as tf
import tf_keras

from keras_gibbs.methods.traits import SearchesModel
from keras_gibbs.search.checks import check_class, check_outputs, ends_in
from keras_gibbs.search.population import Searching, assign_in_replica, logarithm
from keras_gibbs.specs import read
from keras_gibbs.structure import graph
from keras_gibbs.tfmot.weights import FoldedWeight
from keras_gibbs.tfmot.wrapper import Pruned, pruned_layers

FUNCTIONAL = type(tf_keras.Model(*[tf_keras.Input((1,))] * 2))  # the class of a functional model is not public


@tf_keras.saving.register_keras_serializable(package="keras_gibbs")
class SearchedModel(Searching, tf_keras.Model):
    """A functional model of tf_keras whose layers are wrapped with `EDropout`; `keras_gibbs.tfmot.prune` makes it.

    Every step of `fit` first evolves the population on the batch, then trains the kept weights under the best state. TF-MOT's `strip_pruning` makes a plain
    functional model of it.

    Args:
        model: The Sequential or Functional model with the wrapped layers, which are shared.
    """

    sequence = tf_keras.utils.Sequence
    aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA

    # An argument that is not `inputs` tells Keras to clone and strip this model into a plain functional one.
    def __init__(self, model):
        inputs, outputs = (model.inputs[0], model.outputs[0]) if isinstance(model, tf_keras.Sequential) else (model.input, model.output)
        super().__init__(inputs=inputs, outputs=outputs, name=model.name)
        self._ends_in_softmax = ends_in(model) == "softmax"
        self.start_search()

    def layers_in_order(self) -> list[Pruned]:
        return [layer for layer in pruned_layers(self) if isinstance(layer.method, SearchesModel)]

    def _read(self, name):
        return self._search_state[name].numpy()

    # Candidates.

    def _logits(self, bits, x):
        def run(state):
            outputs = self._run_under(self, state, x)
            outputs = logarithm(outputs) if self._ends_in_softmax else outputs
            return tf.nest.map_structure(lambda part: tf.cast(part, "float32"), outputs)

        with self._unwritten():
            kinds = tf.nest.map_structure(lambda part: tf.float32, self.output)
            return tf.map_fn(run, bits, parallel_iterations=1, fn_output_signature=kinds)

    def _features(self, x):
        outputs = {layer.path_in_model: layer.output for layer in self.layers_in_order()}
        with self._unwritten():
            return self._run_under(tf_keras.Model(self.input, outputs), self.best_state(), x)

    def _run_under(self, model, state, x):
        """What `model`, this one or one that shares its layers, gives in training under a state."""
        for masked, part in self._parts:
            masked.candidate = types.MappingProxyType({"bits": tf.cast(state[part], "bool")})
        try:
            return model(x, training=True)
        finally:
            for masked, _ in self._parts:
                masked.candidate = FoldedWeight.candidate

    @contextlib.contextmanager
    def _unwritten(self):
        """Undo what forward passes in training write: the statistics of BatchNormalization, and the like of other layers."""
        own = {id(variable) for layer in self.layers_in_order() for variable in layer.weights}
        variables = [variable for layer in graph.leaves(self) for variable in layer.non_trainable_weights if id(variable) not in own]
        before = [tf.identity(variable) for variable in variables]
        yield
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

    # Training.

    def train_step(self, data):
        """One step of the search and one of training; filters that are removed are put back to where they were."""
        removed = self._search_on(data)
        logs = super().train_step(data)
        for variable, mask, before in removed:
            assign_in_replica(variable, tf.where(mask > 0, variable, before))
        return logs

    def _search_on(self, data):
        x, y, _ = tf_keras.utils.unpack_x_y_sample_weight(data)
        self._check_batch(x)
        if not tf.distribute.has_strategy():
            for layer in self.layers_in_order():
                layer.unfold()
        self.search(x, y)
        return [(variable, mask, tf.identity(variable)) for masked in self.weights_in_order() for variable, mask in masked.removed()]

    # Saving.

    def load_own_variables(self, store):
        super().load_own_variables(read(store))

    def get_config(self):
        plain = tf_keras.Model(self.input, self.output, name=self.name)
        plain.use_legacy_config = getattr(self, "use_legacy_config", None)  # which Keras sets while it writes an H5 file
        return plain.get_config()

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(tf_keras.Model.from_config(config, custom_objects=custom_objects))


tf_keras.utils.get_custom_objects()["SearchedModel"] = SearchedModel  # an H5 file names the class of a model without its package


def check_search(model, method) -> None:
    """Raise `ValueError` where `method` cannot search `model`, a built model of tf_keras with a graph, for a subnetwork."""
    check_class(model, tf_keras.Sequential, FUNCTIONAL)
    check_outputs(model, method)
    if method.population_chunk > 1:
        raise ValueError(f"On tf_keras candidates do not share a forward pass. Received: population_chunk={method.population_chunk}. Use `population_chunk=1`.")
