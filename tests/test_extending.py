"""What a user adds in one class, without a change elsewhere: a dynamic method, a structure, a layer."""

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from cases import numpy, randomize
from keras import layers, ops

import keras_gibbs as kg
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.numerics import ranking
from keras_gibbs.specs import Spec


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True)
class DropAndGrow(PruningMethod):
    """Half of the weights are kept; at every revision the smallest kept ones go, and as many removed ones come back at random, as zeros."""

    share: float = 0.2

    def state(self, shape):
        return {"kept_mask": Spec(np.arange(np.prod(shape)).reshape(shape) % 2, "uint8"), "revisions": Spec(0, "int32")}

    def mode(self, weight, state):
        return ops.cast(state["kept_mask"], "float32")

    def revise(self, weight, state, progress, uniform):
        if progress >= 0.75:
            return {}
        kept = ops.cast(state["kept_mask"], "float32")
        size = int(self.share * numpy(kept).sum())
        drop = ranking.top(ranking.to_key(ops.where(kept > 0, -ops.absolute(weight), -np.inf)), size)
        grow = ranking.top(ranking.to_key(ops.where(kept > 0, -1.0, uniform(weight.shape))), size)
        mask = kept - drop + grow
        return {"kept_mask": ops.cast(mask, "uint8"), "revisions": state["revisions"] + 1, "weight": ops.where(grow > 0, 0.0, weight)}


class Revisions(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.masks = []

    def on_epoch_begin(self, epoch, logs=None):
        layer = kg.pruned_layers(self.model)[0]
        self.masks.append((numpy(layer.mask()), numpy(layer.layer.kernel).copy()))


@pytest.mark.once
def test_a_method_that_drops_and_grows_needs_no_hook_beside_revise(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(10, activation="relu"), layers.Dense(2)])
    pruned = kg.prune(randomize(model), DropAndGrow(), seed=0)
    pruned.compile("sgd", "mse")
    x = np.random.default_rng(1).normal(size=(32, 6)).astype("float32")
    seen = Revisions()
    pruned.fit(x, np.ones((32, 2)), epochs=4, verbose=0, callbacks=[kg.GibbsPruningCallback("epoch"), seen])
    for (before, _), (after, kernel) in zip(seen.masks, seen.masks[1:3], strict=False):
        grown, dropped = (after > before), (after < before)
        assert after.sum() == before.sum() == 30 and grown.sum() == dropped.sum() == 6
        assert (kernel[grown] == 0).all()
    assert np.array_equal(seen.masks[2][0], seen.masks[3][0])  # from three quarters on it rests
    assert kg.pruned_layers(pruned)[0].state("revisions") == 3
    pruned.save(tmp_path / "toy.keras")
    loaded = keras.models.load_model(tmp_path / "toy.keras")
    assert np.array_equal(loaded.predict(x, verbose=0), pruned.predict(x, verbose=0))
    assert kg.sparsity(kg.strip_pruning(pruned)) == kg.sparsity(pruned) == pytest.approx(0.5, abs=0.1)  # grown weights that are still 0 count as such


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True)
class Input(kg.Structure):
    """All weights that read one input channel are a group."""

    def axes(self, layout):
        return layout.outputs, layout.positions, layout.inputs


@pytest.mark.parametrize("method", [kg.Magnitude, kg.Gibbs])
def test_a_structure_is_one_class(method):
    layer = layers.Conv2D(3, 2)
    layer.build((None, 5, 5, 8))
    randomize(layer)
    mask = numpy(kg.Pruned(layer, method(0.25, structure=Input())).mask())
    kept = mask.max(axis=(0, 1, 3))
    assert kept.sum() == 6 and np.array_equal(kept, mask.min(axis=(0, 1, 3)))
    worth = (numpy(layer.kernel).astype(float) ** 2).mean(axis=(0, 1, 3))
    assert worth[kept == 1].min() > worth[kept == 0].max()


@keras.saving.register_keras_serializable(package="tests")
class Bilinear(layers.Layer):
    """A layer of a user's own with two weights, one of which may be pruned by filters."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.left = self.add_weight(shape=(shape[-1], self.units), initializer="glorot_normal", name="left")
        self.right = self.add_weight(shape=(shape[-1], self.units), initializer="glorot_normal", name="right")

    def call(self, x):
        return ops.matmul(x, self.left) * ops.matmul(x, self.right)

    def get_prunable_weights(self):
        return [self.left, (self.right, kg.Layout(positions=(), inputs=(0,), outputs=(1,)))]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@pytest.mark.once
def test_a_layer_of_ones_own_names_its_weights(tmp_path):
    model = keras.Sequential([keras.Input((6,)), Bilinear(5, name="mixed"), layers.Dense(2, name="head")])
    pruned = kg.prune(model, kg.Magnitude(0.5), seed=0)
    masks = {path: numpy(mask) for layer in kg.pruned_layers(pruned) for path, mask in layer.masks().items()}
    assert {path: mask.sum() for path, mask in masks.items()} == {"mixed/left": 15, "mixed/right": 15, "head/kernel": 5}
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    stripped = kg.strip_pruning(pruned)
    assert type(stripped.layers[0]) is Bilinear and np.count_nonzero(numpy(stripped.layers[0].left)) == 15
    assert np.allclose(stripped.predict(x, verbose=0), pruned.predict(x, verbose=0), atol=1e-6)
    pruned.save(tmp_path / "own.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "own.keras").predict(x, verbose=0), pruned.predict(x, verbose=0))


def twins():
    """Two nested models whose layers have the same names."""
    inputs = keras.Input((4,))
    parts = [keras.Sequential([keras.Input((4,)), layers.Dense(6, name="hidden"), layers.Dense(3, name="out")], name=name) for name in ("first", "second")]
    return randomize(keras.Model(inputs, layers.Add()([part(inputs) for part in parts])))


def test_nested_layers_of_one_name_are_kept_apart(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"first/hidden/kernel": (4, 6), "second/hidden/kernel": (4, 6), "first/out/kernel": (6, 3), "second/out/kernel": (6, 3)}
    masks = {path: rng.permuted(np.arange(np.prod(shape)) % 3 > 0).reshape(shape).astype("float32") for path, shape in shapes.items()}
    pruned = kg.prune(twins(), kg.Fixed(masks), seed=0)
    pruned.save(tmp_path / "twins.keras")
    for model in (pruned, keras.models.load_model(tmp_path / "twins.keras")):
        found = {path: numpy(mask) for layer in kg.pruned_layers(model) for path, mask in layer.masks().items()}
        assert set(found) == set(masks) and all(np.array_equal(found[path], masks[path]) for path in masks)
        rows = {row["path"]: row["kept"] for row in kg.summary(model).rows}
        assert rows == {path: int(mask.sum()) for path, mask in masks.items()}
    with pytest.raises(ValueError, match="'hidden'.*fits.*first/hidden/kernel.*second/hidden/kernel"):
        kg.prune(twins(), kg.Fixed({"hidden": masks["first/hidden/kernel"]}))
    stripped = kg.strip_pruning(pruned)
    assert [row["path"] for row in kg.summary(stripped).rows] == [row["path"] for row in kg.summary(pruned).rows]
    assert kg.sparsity(pruned, where="^first/") == pytest.approx(1 / 3, abs=0.02)


def test_the_examples_of_the_survey_run():
    text = (Path(__file__).parent.parent / "docs" / "survey.md").read_text()
    budget, method, score = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert all(len(re.search(r"@keras.*?\n\n\n", example, re.DOTALL)[0].split("\n")) <= 15 for example in (method, score))
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(3, name="top")])
    rng = np.random.default_rng(0)
    names = {"model": model, "x": rng.normal(size=(10, 6, 6, 2)), "y": rng.normal(size=(10, 3))}
    exec(budget, names)
    assert len(kg.pruned_layers(names["pruned"])[0].method.scope.sparsities) == 2
    exec(method, names)
    pruned = kg.prune(model, names["Positive"](kg.Budget(params=0.5), scope="global"))
    assert 0.5 * model.count_params() - 1 <= sum(row["kept"] for row in kg.summary(pruned).rows) + 7 <= 0.5 * model.count_params()
    for layer in kg.pruned_layers(pruned):
        worth, mask = np.maximum(numpy(layer.masked_weights[0].value()), 0.0), numpy(layer.mask())
        assert worth[mask > 0].min() >= worth[mask == 0].max()
    exec(score, names)
    kernels = [ops.convert_to_tensor(layer.kernel) for layer in (model.get_layer("conv"), model.get_layer("top"))]
    assert sum(numpy(layer.mask()).sum() for layer in kg.pruned_layers(names["pruned"])) == pytest.approx(0.1 * sum(np.size(k) for k in kernels), abs=0.5)
