"""Every kind of layer that TF-MOT takes: ours takes it, and prunes the weights that TF-MOT names."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry
from tf_keras import layers

import keras_gibbs as kg
from keras_gibbs import tfmot as kg_tfmot

SEQUENCE, IMAGE, VOLUME = (5, 6), (4, 4, 3), (3, 3, 3, 2)
WITH_WEIGHTS = {
    "Conv1D": (lambda: layers.Conv1D(4, 2), SEQUENCE),
    "Conv2D": (lambda: layers.Conv2D(4, 2), IMAGE),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(4, 2), IMAGE),
    "Conv3D": (lambda: layers.Conv3D(4, 2), VOLUME),
    "Conv3DTranspose": (lambda: layers.Conv3DTranspose(4, 2), VOLUME),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(4, 2), SEQUENCE),
    "SeparableConv2D": (lambda: layers.SeparableConv2D(4, 2), IMAGE),
    "Dense": (lambda: layers.Dense(4), SEQUENCE),
    "Embedding": (lambda: layers.Embedding(7, 4), (5,)),
    "LocallyConnected1D": (lambda: layers.LocallyConnected1D(4, 2), SEQUENCE),
    "LocallyConnected2D": (lambda: layers.LocallyConnected2D(4, 2), IMAGE),
    "MultiHeadAttention": (lambda: layers.MultiHeadAttention(2, 3), SEQUENCE),
    "GRU": (lambda: layers.GRU(4), SEQUENCE),
    "LSTM": (lambda: layers.LSTM(4), SEQUENCE),
    "SimpleRNN": (lambda: layers.SimpleRNN(4), SEQUENCE),
    "RNN": (lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3), layers.SimpleRNNCell(2)]), SEQUENCE),
}
ARGUMENTS = {
    "DepthwiseConv2D": (2,),
    "Activation": ("relu",),
    "Lambda": (lambda x: 2.0 * x,),
    "Permute": ((1, 3, 2),),
    "RepeatVector": (2,),
    "Reshape": ((-1,),),
    **dict.fromkeys(("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"), (0.2,)),
    "Dot": (1,),
    "Rescaling": (0.5,),
}
KINDS = {cls.__name__: cls for cls in [*PruneRegistry._LAYERS_WEIGHTS_MAP, *PruneRegistry._RNN_LAYERS]}
WITHOUT_WEIGHTS = {name: cls for name, cls in KINDS.items() if not PruneRegistry._LAYERS_WEIGHTS_MAP.get(cls, ["cells"])}


def test_the_table_above_is_tfmots():
    assert set(WITH_WEIGHTS) == set(KINDS) - set(WITHOUT_WEIGHTS)


def named_by_tfmot(layer):
    return [weight.name.split(":")[0].split("/")[-1] for weight in PruneRegistry.make_prunable(layer).get_prunable_weights()]


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_half_of_the_weights_that_tfmot_names_are_pruned(name):
    make, shape = WITH_WEIGHTS[name]
    tf_keras.utils.set_random_seed(1)
    inputs, layer = tf_keras.Input(shape), make()
    model = tf_keras.Model(inputs, layer(inputs, inputs) if name == "MultiHeadAttention" else layer(inputs))
    x = np.random.default_rng(0).integers(0, 7, (8, *shape)).astype("float32") / (1.0 if name == "Embedding" else 7.0)
    pruned = kg_tfmot.prune(model, kg.Magnitude(0.5))
    pruned.compile("sgd", "mse", run_eagerly=True)
    pruned.fit(x, pruned(x), batch_size=4, verbose=0, callbacks=[kg_tfmot.GibbsPruningCallback()])
    wrapper = pruned.layers[-1]
    assert len(wrapper.prunable_weights) == len(named_by_tfmot(layer)) > 0
    final = tfmot.sparsity.keras.strip_pruning(pruned)
    for ours, theirs in zip(wrapper.prunable_weights, PruneRegistry.make_prunable(final.layers[-1]).get_prunable_weights(), strict=True):
        assert ours is theirs and int((theirs.numpy() != 0).sum()) == theirs.numpy().size - int(0.5 * theirs.numpy().size + 0.5)
    assert np.array_equal(final(x), pruned(x)) and final.get_config() == model.get_config()


@pytest.mark.parametrize("name", sorted(set(WITHOUT_WEIGHTS) - {"TensorFlowOpLayer", "type"}))  # no layers that a user makes
def test_layers_without_prunable_weights_are_wrapped_and_run(name):
    layer = WITHOUT_WEIGHTS[name](*ARGUMENTS.get(name, ()))
    dimensions = 1 if name == "RepeatVector" else next((int(digit) for digit in "123" if f"{digit}D" in name), 2) + 1
    x = np.random.default_rng(0).normal(size=(2, *(4,) * dimensions)).astype("float32")
    merging = name in ("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract")
    x = [x, x] if merging else x
    expected = layer(x)
    wrapped = kg_tfmot.Pruned(layer, method=kg.Magnitude(0.5))
    assert np.array_equal(wrapped(x), expected) and not wrapped.masked_weights
