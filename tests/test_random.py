"""Random pruning: exact counts, one mask a seed."""

import keras
import numpy as np
import pytest
from cases import numpy, xla

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


def network():
    return keras.Sequential([keras.Input((20,)), keras.layers.Dense(30, name="one"), keras.layers.Dense(30, name="two"), keras.layers.Dense(30, name="three")])


def masks(model):
    return {path: numpy(mask) for layer in kg.pruned_layers(model) for path, mask in layer.masks().items()}


@pytest.mark.parametrize("scope", ["layer", "global", "shape"])
def test_a_random_mask_is_that_of_its_seed_and_exact(scope):
    first, again, other = (masks(kg.prune(network(), kg.Random(0.7, scope=scope), seed=seed)) for seed in (1, 1, 2))
    total = sum(mask.sum() for mask in first.values())
    assert abs(total - 0.3 * 2400) <= (1 if scope == "shape" else 0)
    assert all(np.array_equal(first[path], again[path]) for path in first)
    assert all(not np.array_equal(first[path], other[path]) for path in first)
    assert not np.array_equal(first["two/kernel"], first["three/kernel"])  # of one shape


def test_what_a_schedule_removes_stays_removed():
    layer = kg.pruned_layers(kg.prune(network(), kg.Random(kg.Linear(0.2, 0.8), structure=kg.Filter()), seed=1))[0]
    kept = []
    for progress in (0.0, 0.5, 1.0):
        layer.anneal(progress)
        kept.append(numpy(layer.mask()))
    assert [mask.sum() / 20 for mask in kept] == [24, 15, 6]
    assert np.all(kept[2] <= kept[1]) and np.all(kept[1] <= kept[0])
