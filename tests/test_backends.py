"""Every backend finds the same masks: those that TensorFlow found when this was written."""

import keras
import numpy as np
import pytest
from cases import numpy, xla
from keras import layers

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(32, 6, 6, 2)).astype("float32"), np.arange(32) % 3
SHAPES = [(3, 3, 2, 5), (5,), (5, 3), (3,)]
WEIGHTS = [RNG.normal(size=shape).astype("float32") / 3 for shape in SHAPES]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
METHODS = {
    "random": kg.Random(0.7, scope="shape"),
    "snip": kg.SNIP(0.7),
    "grasp": kg.GraSP(0.7),
    "synflow": kg.SynFlow(0.7, steps=4),
    "force": kg.FORCE(0.7, steps=4),
    "set": kg.SET(0.7, every=0.2),
    "rigl": kg.RigL(0.7, every=0.2),
    "greg": kg.GReg(0.7, choose=0.3),
    "lamp": kg.Magnitude(0.7, scope="lamp"),
    "budget": kg.Magnitude(kg.Budget(macs=0.4), scope="global"),
}
FOUND = {
    "random": "59044088181410162024009def80",
    "snip": "906008253880f2302c01c4300980",
    "grasp": "34000a0451142bc00102c11e9380",
    "synflow": "104200052010e2208c13c43e1b80",
    "force": "104208143080e0308c13a41c9980",
    "set": "79844008381010162000209dbf80",
    "rigl": "59044008191052162400009def80",
    "greg": "914402152010b2a0ac9344101280",
    "lamp": "114002112010b2a0888344369b80",
    "budget": "d146021da010b7a0ac93c53ebb80",
}


def bits(model):
    return np.packbits(np.concatenate([numpy(mask).ravel() > 0 for layer in kg.pruned_layers(model) for mask in layer.masks().values()])).tobytes().hex()


@pytest.mark.parametrize("name", METHODS)
def test_masks_are_the_same_on_every_backend(name):
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(5, 3, activation="tanh"), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    model.set_weights(WEIGHTS)
    pruned = kg.prune(model, METHODS[name], seed=4, data=(X, Y), loss=LOSS)
    pruned.compile(keras.optimizers.SGD(0.2), LOSS)
    pruned.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    assert bits(pruned) == FOUND[name]
