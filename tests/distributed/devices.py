"""Two devices of `keras.distribution` on JAX, each with half of a batch or with half of a kernel, make what one makes; run by `test_distribution.py`."""

import warnings

import jax
import keras
import numpy as np

import keras_gibbs as kg

warnings.simplefilter("ignore")
rng = np.random.default_rng(4)
x = rng.normal(size=(64, 12)).astype("float32")
y = (x[:, :3].sum(1) > 0).astype("int32")
METHODS = {
    "gibbs": kg.Gibbs(0.7, beta=kg.Geometric(10.0, 1e3)),
    "curvature": kg.Magnitude(kg.Linear(0.0, 0.6), criterion=kg.CurvatureEnergy(decay=0.8), scope="global", floor=0.2),
    "recommended": kg.Gibbs.recommended(0.7),
    "coupled": kg.Gibbs(0.5, structure=kg.Filter(coupled=True)),
}


def trained(method):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, activation="tanh", name="hidden"), keras.layers.Dense(2)])
    pruned = kg.prune(model, method, seed=1)
    split = isinstance(keras.distribution.distribution(), keras.distribution.ModelParallel)
    assert kg.pruned_layers(pruned)[0].layer.kernel.value.addressable_shards[0].data.shape == ((12, 8) if split else (12, 16))
    pruned.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = pruned.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback()]).history["loss"]
    assert kg.summary(pruned).sparsity == kg.sparsity(pruned) == kg.sparsity(kg.strip_pruning(pruned))
    return [np.array(weight) for weight in pruned.weights], losses


def model_parallel(devices):
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices))
    layout[".*hidden/kernel"] = (None, "model")
    layout[".*hidden/bias"] = ("model",)
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


assert len(jax.devices()) == 2
alone = {name: trained(method) for name, method in METHODS.items()}
devices = keras.distribution.list_devices()
for distribution in (keras.distribution.DataParallel(devices=devices), model_parallel(devices)):
    keras.distribution.set_distribution(distribution)
    for name, method in METHODS.items():
        (expected, losses), (found, spread) = alone[name], trained(method)
        case = f"{type(distribution).__name__} {name}"
        np.testing.assert_allclose(spread, losses, rtol=1e-5, err_msg=case)
        for one, two in zip(expected, found, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=case)
print("fine")
