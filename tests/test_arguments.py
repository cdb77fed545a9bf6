"""A wrong argument is refused where it is given, by name."""

import importlib

import keras
import numpy as np
import pytest

import keras_gibbs as kg

NAN, INFINITY = float("nan"), float("inf")
WRONG = {
    "start": [lambda value: kg.Linear(value, 0.5), None, "0", NAN, [0.1]],
    "stop": [lambda value: kg.Geometric(1.0, value), None, "2", INFINITY],
    "begin": [lambda value: kg.Polynomial(0.0, 0.5, begin=value), None, "0.1", -0.1, np.array([0.1])],
    "end": [lambda value: kg.Linear(0.0, 0.5, end=value), None, "0.5", 1.1, NAN],
    "power": [lambda value: kg.Polynomial(0.0, 0.5, power=value), None, "3", 0, NAN, INFINITY],
    "value": [kg.Constant, None, "0.5", NAN, True],
    "sparsity": [kg.Magnitude, None, "0.5", NAN, 1.0, -0.1, [0.5]],
    "structure": [lambda value: kg.Magnitude(0.5, structure=value), None, kg.Kernel, "kernel"],
    "criterion": [lambda value: kg.Magnitude(0.5, criterion=value), None, kg.SquaredWeight, "w"],
    "scope": [lambda value: kg.Magnitude(0.5, scope=value), None, "all", ["layer"]],
    "floor": [lambda value: kg.Magnitude(0.5, scope="global", floor=value), "0.1", None, NAN, 1.5],
    "settle": [lambda value: kg.Gibbs(0.5, settle=value), "0.5", 0.0, NAN, np.array([0.5, 0.6])],
    "hamiltonian": [lambda value: kg.Gibbs(0.5, hamiltonian=value), False, {}, "", kg.Independent],
    "beta": [lambda value: kg.Gibbs(0.5, beta=value), "1", NAN, -1.0, [1.0]],
    "scale": [lambda value: kg.Gibbs(0.5, scale=value), None, "linear"],
    "count": [lambda value: kg.Gibbs(0.5, count=value), None, "all"],
    "c": [lambda value: kg.FilterCoupling(c=value), "1", None, NAN, -INFINITY],
    "convention": [lambda value: kg.KernelCoupling(convention=value), None, "paper"],
    "sweeps": [lambda value: kg.FilterCoupling(sweeps=value), None, 0, 1.5, "3", True],
    "decay": [lambda value: kg.CurvatureEnergy(value), "0.9", None, NAN, 1.0],
    "temperature": [lambda value: kg.GumbelSoftmax(temperature=value), None, "1", NAN, 0],
    "initial_logit": [lambda value: kg.GumbelSoftmax(initial_logit=value), None, INFINITY, [0.0]],
    "penalty_weight": [lambda value: kg.GumbelSoftmax(sparsity=0.5, penalty_weight=value), None, -1.0, "1", INFINITY],
    "train_weights": [lambda value: kg.Supermask(train_weights=value), None, 1, "yes"],
    "rescale": [lambda value: kg.Supermask(rescale=value), False, "clever", ["smart"]],
    "signed_constant": [lambda value: kg.EdgePopup(0.5, signed_constant=value), "dense", 0.5, [True]],
    "logit_rate": [lambda value: kg.EdgePopup(0.5, logit_rate=value), None, "20", NAN, 0],
    "population": [kg.EDropout, None, "8", 3, 8.0, 2**31],
    "search": [lambda value: kg.EDropout(8, search=value), None, "1", NAN, 0.0],
    "initial_keep": [lambda value: kg.EDropout(8, initial_keep=value), "0.5", NAN, 1.0],
    "crossover": [lambda value: kg.EDropout(8, crossover=value), None, "1", -0.1],
    "reevaluate_parents": [lambda value: kg.EDropout(8, reevaluate_parents=value), None, "no", 1],
    "energy_batch": [lambda value: kg.EDropout(8, energy_batch=value), 0, 2.0, "8", 10**12],
    "population_chunk": [lambda value: kg.EDropout(8, population_chunk=value), None, 0, "1"],
    "target": [kg.KeepPenalty, None, "1", NAN, 0.0],
    "weight": [lambda value: kg.KeepPenalty(0.5, weight=value), None, "1", INFINITY, 0.0],
    "n": [lambda value: kg.NofM(value, 4), None, "2", 4, 0],
    "h": [lambda value: kg.Block(value, 2), None, 1.5, "2", 0],
    "mask": [kg.Fixed, "ones", 2, [0.5]],
    "update_freq": [kg.GibbsPruningCallback, None, "step", 0, 1.5],
    "epochs": [lambda value: kg.GibbsPruningCallback(epochs=value), 0, "3", 2.0, NAN],
    "restart": [lambda value: kg.GibbsPruningCallback(restart=value), None, 1, "no"],
    "seed": [lambda value: kg.prune(network(), kg.Magnitude(0.5), seed=value), "1", 1.5, NAN, True],
    "method": [lambda value: kg.prune(network(), value), None, "gibbs", kg.Gibbs, 0.5],
    "where": [lambda value: kg.prune(network(), kg.Magnitude(0.5), where=value), 3, [3], True, "(", {"dense": 1}],
    "sites": [lambda value: kg.Pruned(keras.layers.Dense(2), kg.Magnitude(0.5), sites=value), None, 0, "2"],
    "only": [lambda value: kg.Pruned(keras.layers.Dense(2), kg.Magnitude(0.5), only=value), "kernel", [1]],
    "path": [lambda value: kg.export_saved_model(network(), value), None, 3, ["folder"]],
}


def network():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])


@pytest.mark.parametrize("name, value", [(name, value) for name, (_, *values) in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_the_name_of_its_argument(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`|Received: .*{name}="):
        WRONG[name][0](value)


def test_the_path_of_a_tflite_file_is_checked_before_anything_else():
    with pytest.raises(TypeError, match="Received: path=None"):
        kg.export_tflite(network(), None)


@pytest.mark.parametrize("function", [kg.pruned_layers, kg.sparsity, kg.summary, kg.strip_pruning, lambda model: kg.prune(model, kg.Magnitude(0.5))])
@pytest.mark.parametrize("thing", [None, "model", 3])
def test_what_is_no_model_is_refused_by_every_function(function, thing):
    with pytest.raises(TypeError, match="Expected a Keras 3 model or layer. Received: "):
        function(thing)


def test_numbers_of_numpy_are_numbers():
    kg.Magnitude(np.float32(0.5), settle=np.float64(0.5), scope="global", floor=np.float32(0.1))
    kg.Polynomial(np.float32(0.0), np.float64(0.5), power=np.int64(3))
    kg.FilterCoupling(c=np.float32(1.0), sweeps=np.int64(3))
    kg.prune(network(), kg.Magnitude(0.5), seed=np.int64(3), where=["dense"])


@pytest.mark.once
def test_another_backend_is_refused_when_keras_gibbs_is_imported(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ImportError, match="backend='torch'.*KERAS_BACKEND=jax"):
        importlib.reload(kg)
