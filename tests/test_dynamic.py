"""SET and RigL: what is dropped, what grows, and what the optimizer forgets."""

import keras
import numpy as np
import pytest
from cases import numpy, xla
from keras import layers

import keras_gibbs as kg
from keras_gibbs.methods.dynamic import move

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(64, 10)).astype("float32"), rng.integers(0, 3, 64)


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((10,)), layers.Dense(20, "tanh", name="one"), layers.Dense(20, "tanh", name="two"), layers.Dense(3, name="top")])


def test_the_smallest_are_dropped_and_the_largest_growth_returns():
    kept = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    worth = np.array([4.0, 1.0, 3.0, 2.0, 9.0, 9.0, 9.0])
    growth = np.array([9.0, 2.0, 9.0, 0.0, 1.0, 3.0, 0.5])
    assert move(kept, worth, growth, 0.5).tolist() == [1, 1, 1, 0, 0, 1, 0]  # 1 and 3 are dropped; of the others 5 and 1 itself grow
    assert move(kept, worth, growth, 0.2).tolist() == kept.tolist()  # 0.8 of a group
    assert move(np.ones(7, bool), worth, growth, 1.0).all()  # nothing can grow


def test_between_two_updates_nothing_is_looked_at():
    method = kg.RigL(0.5, every=0.1)
    steps = np.arange(1001) / 1000
    due = [index for index in range(1, 1001) if method.is_due(float(np.float32(steps[index - 1])), steps[index])]
    assert set(range(100, 1001, 100)) <= set(due) and len(due) <= 20  # the step after an update may look once more
    assert method.is_due(-1.0, 0.0) and method.is_due(0.9, 0.1)  # the first time, and again


def masks(model):
    return {path: numpy(mask) for layer in kg.pruned_layers(model) for path, mask in layer.masks().items()}


class Record(keras.callbacks.Callback):
    """Masks after every step, and the dense gradients of the one before."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_begin(self, batch, logs=None):  # listed after the callback that moves the mask
        self.steps.append({masked.path: self.read(masked) for layer in kg.pruned_layers(self.model) for masked in layer.masked_weights})

    def read(self, masked):
        gradient = numpy(masked.masks.restore(masked.state["gradient"].value)) if "gradient" in masked.state else None
        return numpy(masked.mask()) > 0, numpy(masked.value()).copy(), gradient


@pytest.mark.few(jax=["RigL-shape"])
@pytest.mark.parametrize("make, scope", [(kg.SET, "shape"), (kg.RigL, "shape"), (kg.RigL, "layer")])
def test_training_drops_the_smallest_and_grows_by_the_rule(make, scope):
    pruned = kg.prune(network(), make(0.7, scope=scope, every=0.25, end=0.6), seed=1)
    first = masks(pruned)
    if scope == "layer":
        assert [mask.sum() for mask in first.values()] == [60, 120, 18]
    else:
        assert sum(mask.sum() for mask in first.values()) == pytest.approx(0.3 * 660, abs=1.5) and first["top/kernel"].mean() > first["two/kernel"].mean()
    pruned.compile(keras.optimizers.SGD(0.1), LOSS)
    record = Record()
    pruned.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback(update_freq="batch"), record])
    for path in first:
        assert np.array_equal(record.steps[0][path][0], first[path] > 0)
        changes = 0
        for number in range(1, 8):  # 8 steps: updates at 2/8 and 4/8; the others leave the mask as it is
            (before, _, _), (after, weight, gradient) = record.steps[number - 1][path], record.steps[number][path]
            assert after.sum() == before.sum()
            grown, dropped = after & ~before, before & ~after
            changes += grown.sum()
            if number not in (2, 4):
                assert not grown.any()
                continue
            share = 0.15 * (1 + np.cos(np.pi * number / 8 / 0.6))
            count = int(share * before.sum())
            assert grown.sum() == dropped.sum() <= count
            assert np.all(weight[grown] == 0)
            if make is kg.RigL and grown.any():
                # One that is dropped and grown again has a gradient as large as any that stays removed.
                removed = np.abs(gradient)[~after & ~before]
                assert np.abs(gradient)[grown].min() >= removed.max()
            if dropped.any():
                kept = np.sort(np.abs(weight)[before & ~grown])  # what was dropped is among the `count` smallest
                assert np.abs(weight)[dropped].max() <= kept[count - 1]
        assert changes > 0 or path == "top/kernel"
    assert kg.sparsity(kg.strip_pruning(pruned)) == pytest.approx(kg.sparsity(pruned), abs=1 / 660)


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.SGD(0.1, momentum=0.9)], ids=["adam", "momentum"])
def test_the_optimizer_forgets_grown_weights_and_nothing_else(optimizer):
    # Two weights of one shape in nested models of one path.
    keras.utils.set_random_seed(1)
    parts = [keras.Sequential([keras.Input((10,)), layers.Dense(10, "tanh", name="d")], name=f"part{index}") for index in range(2)]
    model = keras.Sequential([keras.Input((10,)), *parts, layers.Dense(3, name="top")])
    pruned = kg.prune(model, kg.RigL(0.5, every=0.5, scope="layer"), seed=1, where="part")
    pruned.compile(keras.optimizers.get(optimizer if isinstance(optimizer, str) else keras.saving.serialize_keras_object(optimizer)), LOSS)
    found = {}

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            slots = [variable for variable in self.model.optimizer.variables if variable.shape == (10, 10)]
            for slot in slots if batch == 2 and batch not in found else []:
                slot.assign(rng.uniform(0.1, 1.0, (10, 10)))  # removed weights have slots too: those that were kept before
            found.setdefault(batch, []).append(([numpy(slot).copy() for slot in slots], {path: mask > 0 for path, mask in masks(self.model).items()}))

    watch = Watch()
    pruned.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0, callbacks=[watch, kg.GibbsPruningCallback(update_freq="batch"), watch])
    (slots, before), (cleared, after) = found[2]
    grown = [after[path] & ~before[path] for path in before]
    assert all(mask.any() for mask in grown)
    assert len(slots) == (4 if optimizer == "adam" else 2)  # momentum and velocity of both
    each = len(slots) // 2
    for number, (old, new) in enumerate(zip(slots, cleared, strict=True)):
        assert np.array_equal(new, np.where(grown[number // each], 0, old))


def test_masks_and_marks_that_a_file_holds_as_uint8_are_read():
    layers_of = [kg.pruned_layers(kg.prune(network(), kg.SET(0.5, every=0.25), seed=seed))[0] for seed in (1, 2)]
    one, other = layers_of
    one.anneal(0.0)
    store = {}
    one.save_own_variables(store)
    store = {name: numpy(variable) for name, variable in store.items()}
    store |= {name: store[name].astype("uint8") for name in ("kernel.held", "kernel.started")}
    other.load_own_variables(store)
    assert np.array_equal(other.mask(), one.mask()) and int(other.masked_weights[0].state["started"]) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="must be a number"):
        kg.RigL(kg.Linear(0.0, 0.5))
    for options, message in (({"scope": "global"}, "scope='global'"), ({"every": 0.0}, "every=0.0"), ({"structure": kg.NofM(2, 4)}, "one contest")):
        with pytest.raises(ValueError, match=message):
            kg.RigL(0.5, **options)
