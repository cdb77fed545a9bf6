"""Models that version 0.1.0 saved load, and are what they were.

`golden/make.py` wrote them on TensorFlow, in the midst or at the end of training. Masks, counts and random masks are equal bit for bit on every backend;
predictions and figures to a few roundings, which differ between processors and backends.
"""

from pathlib import Path

import cases
import keras
import numpy as np
import pytest
from golden.readings import load, predict, read, step

import keras_gibbs as kg

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.keras"))
# What a file holds is loaded by the same code on every backend, and JAX compiles every mask of every layer: one of a kind there, the others predict only.
READ_ON_JAX = ("gibbs", "gibbs-filter", "gibbs-curvature-held", "gibbs-large", "magnitude-global", "gumbel", "supermask-joint", "edropout-functional", "fixed")

METHODS_OF_VERSION_ONE = {
    "gibbs", "gibbs-kernel", "gibbs-kernel-reference", "gibbs-filter", "gibbs-filter-independent", "gibbs-scheduled", "gibbs-curvature",
    "magnitude", "magnitude-kernel", "magnitude-filter", "magnitude-global", "magnitude-scheduled",
    "gumbel", "gumbel-target", "supermask", "edge-popup", "edropout", "fixed",
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:The schedules of", "ignore:The schedule of", "ignore:Skipping variable loading for optimizer")
without_xla = pytest.fixture(scope="module", autouse=True)(cases.xla(False))


def loaded(name):
    return keras.models.load_model(FOLDER / f"{name}.keras")


def assert_as_recorded(found, recorded, rounding):
    for name, value in found.items():
        if name.startswith(("mask", "sample", "sparsity", "progress")):
            np.testing.assert_array_equal(value, recorded[name], err_msg=name)
        else:
            np.testing.assert_allclose(value, recorded[name], rtol=rounding, atol=rounding, err_msg=name)


def test_every_method_of_version_one_has_a_file():
    assert len(NAMES) == 35 and METHODS_OF_VERSION_ONE <= set(NAMES)


def rounding(name):
    return 0.02 if "mixed" in name else 1e-5  # bfloat16 has eight bits


# One of every method, structure and network, and of what is stored in the midst of training and at its end.
LEFT_TO_ALL = {
    "edropout", "edropout-end", "edge-popup", "gibbs-end", "gumbel-joint", "supermask", "gibbs-curvature", "gibbs-filter-independent", "gibbs-scheduled",
    "magnitude-kinds", "magnitude-kinds-filter", "magnitude-kernel", "magnitude-filter", "magnitude", "gibbs-recommended",
}  # fmt: skip


@pytest.mark.few(
    tensorflow=[name for name in NAMES if name not in LEFT_TO_ALL],
    jax=["gibbs", "gibbs-filter", "gumbel"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_predicts_masks_and_trains_as_it_did(name):
    model, recorded = loaded(name), load(FOLDER / f"{name}.npz")
    if cases.JAX and name not in READ_ON_JAX:
        assert_as_recorded({"predictions": predict(model, recorded["inputs"])}, recorded, rounding(name))
        return
    found = read(model, recorded["inputs"])
    assert sum(key.startswith("mask/") for key in found) == sum(key.startswith("mask/") for key in recorded) > 0
    assert_as_recorded(found, recorded, rounding(name))
    np.testing.assert_allclose(found["stripped"], found["predictions"], rtol=rounding(name), atol=rounding(name))
    assert_as_recorded(step(model, recorded["inputs"], recorded["labels"]), recorded, 10 * rounding(name))


@pytest.mark.filterwarnings("ignore:GumbelSoftmax replaces the kernels")
@pytest.mark.parametrize("name, method", [("gibbs", kg.Gibbs(0.5)), ("gumbel", kg.GumbelSoftmax())])
def test_saved_weights_make_another_model_the_one_they_are_from(name, method):
    model = kg.prune(kg.strip_pruning(loaded(name)), method, seed=9)
    model.load_weights(FOLDER / f"{name}.weights.h5")
    recorded = load(FOLDER / f"{name}.npz")
    assert_as_recorded(read(model, recorded["inputs"]), recorded, 1e-5)
