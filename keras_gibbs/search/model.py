"""The Keras 3 model that searches for its own subnetwork while it trains."""

import contextlib

import keras
from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.coupling.model import CoupledModel
from keras_gibbs.layers import Pruned, pruned_layers
from keras_gibbs.methods.traits import SearchesModel
from keras_gibbs.search.checks import ends_in
from keras_gibbs.search.population import Searching, assign_in_replica, logarithm
from keras_gibbs.specs import read


@register
class SearchedModel(Searching, CoupledModel):
    """A functional model whose layers are wrapped with `EDropout`; `prune` makes it.

    Every step of `fit` first evolves the population on the batch, then trains the kept weights under the best state. Population, energies and the state of the
    noise are variables of the model, saved and loaded with it.

    Args:
        inputs, outputs, name, **kwargs: As for `keras.Model`.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.start_search()

    def layers_in_order(self) -> list[Pruned]:
        return [layer for layer in pruned_layers(self) if isinstance(layer.method, SearchesModel) and layer.masked_weights]

    # Candidates.

    def _logits(self, bits, x):
        chunk = max(part for part in range(1, self.method.population_chunk + 1) if bits.shape[0] % part == 0)
        if chunk == 1:
            return ops.map(lambda state: self._logits_under(state, x), bits)
        # Several states share a forward pass: their bits mask the outputs of layers that all of them run with the same kernels.
        with _outputs_masked(self.layers_in_order()):
            parts = ops.reshape(bits, (-1, chunk, bits.shape[1]))
            logits = ops.map(lambda part: ops.vectorized_map(lambda state: self._logits_under(state, x), part), parts)
            return keras.tree.map_structure(lambda part: ops.reshape(part, (-1, *ops.shape(part)[2:])), logits)

    def _logits_under(self, state, x):
        outputs = self._run_under(self, state, x)
        if getattr(self.method.objective, "needs_classes", False):
            outputs = keras.tree.flatten(outputs)[0]
        outputs = logarithm(outputs) if ends_in(self) == "softmax" else outputs
        return keras.tree.map_structure(lambda part: ops.cast(part, "float32"), outputs)

    def _run_under(self, model, state, x):
        """What `model`, this one or one that shares its layers, gives in training under a state; nothing is written."""
        values = {id(masked.state["bits"]): ops.cast(state[part], "bool") for masked, part in self._parts}
        trainable = [variable.value for variable in model.trainable_variables]
        others = [values.get(id(variable), variable.value) for variable in model.non_trainable_variables]
        return model.stateless_call(trainable, others, x, training=True)[0]

    def _features(self, x):
        model = keras.Model(self.input, {layer.path_in_model: layer.output for layer in self.layers_in_order()})
        return self._run_under(model, self.best_state(), x)

    # Training.

    def train_step(self, *args):
        """One step of the search and one of training; filters that are removed are put back to where they were."""
        return self._step_on_jax(*args) if keras.backend.backend() == "jax" else self._step(*args)

    def _step(self, batch):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        self._check_batch(x)
        self.search(x, y)
        removed = [(variable, mask, variable.value + 0) for masked in self.weights_in_order() for variable, mask in masked.removed()]
        logs = super().train_step(batch)
        for variable, mask, before in removed:
            assign_in_replica(variable.value, ops.where(mask > 0, variable.value, before))
        return logs

    def _step_on_jax(self, state, batch):
        trainable, others, *rest = state
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        self._check_batch(x)
        mapping = list(zip(self.trainable_variables + self.non_trainable_variables, [*trainable, *others], strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.search(x, y)
            masks = {id(variable): mask for masked in self.weights_in_order() for variable, mask in masked.removed()}
        others = [scope.get_current_value(variable) for variable in self.non_trainable_variables]
        logs, (after, *rest) = super().train_step((trainable, others, *rest), batch)
        kept = [masks.get(id(variable)) for variable in self.trainable_variables]
        after = [new if mask is None else ops.where(mask > 0, new, old) for new, old, mask in zip(after, trainable, kept, strict=True)]
        return logs, (after, *rest)

    # Saving.

    def load_own_variables(self, store):
        super().load_own_variables(read(store))


@contextlib.contextmanager
def _outputs_masked(layers: list[Pruned]):
    for layer in layers:
        layer.masks_outputs = True
    try:
        yield
    finally:
        for layer in layers:
            layer.masks_outputs = False
