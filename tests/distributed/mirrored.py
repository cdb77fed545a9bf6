"""Two replicas on one CPU make what one device makes of the same global batch; run by `test_distribution.py`."""

import contextlib
import warnings

import keras
import numpy as np
import tensorflow as tf

import keras_gibbs as kg

warnings.simplefilter("ignore")
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # one: the collective operations of two get in each other's way
rng = np.random.default_rng(4)
x = rng.normal(size=(96, 12)).astype("float32")
y = (x[:, :3].sum(1) > 0).astype("int32")
METHODS = {
    "curvature": kg.Magnitude(kg.Linear(0.0, 0.6), criterion=kg.CurvatureEnergy(decay=0.8), scope="global", floor=0.2),
    "recommended": kg.Gibbs.recommended(0.7),
    "coupled": kg.Gibbs(0.5, structure=kg.Filter(coupled=True)),
    "gumbel": kg.GumbelSoftmax(train_weights=True, sparsity=0.5),
    "fixed": kg.Fixed(),
}


def trained(method, scope):
    with scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)])
        pruned = kg.prune(model, method, seed=1)
        pruned.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = pruned.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback()]).history
    with scope():
        assert kg.summary(pruned).sparsity == kg.sparsity(pruned) == kg.sparsity(kg.strip_pruning(pruned))
    return pruned, history["loss"]


for name, method in METHODS.items():
    one, expected = trained(method, contextlib.nullcontext)
    two, losses = trained(method, STRATEGY.scope)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=name)
    for first, second in zip(one.weights, two.weights, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(second), keras.ops.convert_to_numpy(first), rtol=1e-4, atol=1e-6, err_msg=f"{name} {first.path}")
print("fine")
