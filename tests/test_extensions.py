"""A method, a score and a layer of one's own, as `docs/survey.md` writes them: a few lines each, and no change elsewhere."""

import dataclasses

import keras
import numpy as np
import pytest
from cases import numpy
from keras import ops

import keras_gibbs as kg
from keras_gibbs.methods.ranked import RankedMethod
from keras_gibbs.methods.scored import ScoredMethod
from keras_gibbs.scores.batches import batches
from keras_gibbs.scores.losses import ModelLoss
from keras_gibbs.structure.groups import Unstructured


@keras.saving.register_keras_serializable(package="my_project")
@dataclasses.dataclass(frozen=True)
class Positive(RankedMethod):
    sparsity: float
    structure = Unstructured()

    def scores(self, weight, state):
        return ops.maximum(weight, 0.0)


@keras.saving.register_keras_serializable(package="my_project")
@dataclasses.dataclass(frozen=True)
class SquaredGradient(ScoredMethod):
    def scorer(self, model, weights, data, loss):
        loss = ModelLoss(model, [weight.variable for weight in weights], batches(data), loss)
        return lambda masks: [ops.convert_to_numpy(slope) ** 2 for slope in loss.gradients(loss.values())]


@keras.saving.register_keras_serializable(package="my_project")
class Scaled(keras.layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix", initializer="random_normal")

    def call(self, x):
        return x @ self.matrix

    def get_prunable_weights(self):
        return [self.matrix]


@pytest.mark.once
def test_a_method_a_score_and_a_layer_of_ones_own(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), Scaled(name="mine"), keras.layers.Dense(2, name="dense")])
    x, y = np.random.default_rng(0).normal(size=(10, 6)).astype("float32"), np.ones((10, 2), "float32")
    pruned = kg.prune(model, Positive(0.5))
    pruned.compile("sgd", "mse")
    pruned.fit(x, y, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    score, mask = np.maximum(numpy(pruned.layers[0].layer.matrix), 0), numpy(pruned.layers[0].mask())
    assert mask.sum() == 12 and score[mask > 0].min() >= score[mask == 0].max()
    pruned.save(tmp_path / "model.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0), pruned.predict(x, verbose=0))
    scored = kg.prune(model, SquaredGradient(0.5), data=(x, y), loss="mse")
    assert sum(numpy(layer.mask()).sum() for layer in kg.pruned_layers(scored)) == 16
