"""Snapshots restore bits, and rounds of lottery tickets remove, rewind and resume."""

import keras
import numpy as np
import pytest
from cases import numpy, same, xla
from keras import layers

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(64, 10)).astype("float32"), rng.integers(0, 3, 64)


def pruned_network(method=None):
    keras.utils.set_random_seed(1)
    parts = [layers.Dense(20, name="one"), layers.BatchNormalization(name="norm"), layers.ReLU(), layers.Dropout(0.2, seed=1), layers.Dense(3, name="two")]
    pruned = kg.prune(keras.Sequential([keras.Input((10,)), *parts]), method or kg.Fixed(), seed=1)
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    pruned.compile(keras.optimizers.SGD(rate, momentum=0.9), LOSS, metrics=["accuracy"])
    return pruned


def train(model, epochs=2):
    return model.fit(X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback(restart=True)])


def everything(model):
    metrics = {variable.path for variable in model.metrics_variables}
    return [numpy(variable).copy() for variable in [*model.variables, *model.optimizer.variables] if variable.path not in metrics]


@pytest.mark.parametrize("trained", [False, True], ids=["before-training", "at-step-k"])
def test_a_rewound_model_is_and_trains_as_it_did_bit_for_bit(trained, tmp_path):
    pruned = pruned_network(kg.Gibbs(0.5))
    if trained:
        train(pruned, 1)
    start = kg.snapshot(pruned)
    before = everything(pruned)
    losses = train(pruned).history["loss"]
    after = everything(pruned)
    assert not any(np.array_equal(one, other) for one, other in zip(before, after, strict=True) if one.shape == (10, 20))  # kernel and momentum
    start.save(tmp_path / "start.npz")
    kg.rewind(pruned, kg.Snapshot.load(tmp_path / "start.npz"))
    assert same(before, everything(pruned))
    assert train(pruned).history["loss"] == losses and same(after, everything(pruned))
    kg.rewind(pruned, start, weights=False)
    assert numpy(pruned.optimizer.iterations) == (4 if trained else 0)  # the learning rate alone
    assert any(np.array_equal(numpy(kg.pruned_layers(pruned)[0].layer.kernel), value) for value in after)


def test_a_snapshot_of_another_model_changes_nothing():
    pruned, other = pruned_network(), pruned_network()
    train(pruned, 1)
    other.compile("adam", LOSS)
    before = everything(pruned)
    with pytest.raises(ValueError, match="own architecture and optimizer"):
        kg.rewind(pruned, kg.snapshot(other))
    assert same(before, everything(pruned))


def mask_of(model):
    return {path: numpy(mask) for layer in kg.pruned_layers(model) for path, mask in layer.masks().items()}


def kernels(model):
    return {masked.path: numpy(masked.value()).copy() for layer in kg.pruned_layers(model) for masked in layer.masked_weights}


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["rewind", "learning_rate", "fine_tune"])
def test_every_round_removes_the_smallest_survivors_and_goes_back(restart):
    pruned = pruned_network()
    first, seen = kernels(pruned), []

    def record(model):
        begun = kernels(model), mask_of(model), int(numpy(model.optimizer.iterations))
        history = train(model)
        seen.append((*begun, kernels(model)))
        return history

    table = kg.lottery_rounds(pruned, record, rounds=2, fraction=0.5, restart=restart)
    assert [row["round"] for row in table.rows] == [0, 1, 2] and [row["sparsity"] for row in table.rows] == pytest.approx([0.0, 0.5, 0.75], abs=0.01)
    assert "accuracy" in table.rows[0] and "0.75" in str(table)
    for number in (1, 2):
        weights, masks, iterations, _ = seen[number]
        trained, before = seen[number - 1][3], seen[number - 1][1]
        assert iterations == (8 * number if restart == "fine_tune" else 0)
        for path, mask in masks.items():
            assert mask.sum() == round(mask.size * 0.5**number + 1e-9)
            assert np.all(mask <= before[path])
            survivors = np.abs(trained[path])[before[path] > 0]
            assert np.abs(trained[path])[mask > 0].min() >= np.sort(survivors)[survivors.size - int(mask.sum())]
            assert np.array_equal(weights[path], first[path] if restart == "rewind" else trained[path])


@pytest.mark.slow
def test_rounds_that_were_interrupted_go_on_as_if_they_were_not(tmp_path):
    whole = pruned_network()
    expected = kg.lottery_rounds(whole, train, rounds=2, scope="global").rows
    calls = []

    def interrupted(model):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return train(model)

    with pytest.raises(KeyboardInterrupt):
        kg.lottery_rounds(pruned_network(), interrupted, rounds=2, scope="global", folder=tmp_path)
    again = pruned_network()
    train(again)  # it may be in any state
    assert kg.lottery_rounds(again, train, rounds=2, scope="global", folder=tmp_path).rows == expected
    assert same(everything(whole), everything(again))


def test_what_does_not_fit_is_refused():
    for make, message in (
        (lambda: kg.lottery_rounds(pruned_network(kg.Magnitude(0.5)), train, rounds=1), "Magnitude"),
        (lambda: kg.lottery_rounds(kg.prune(keras.Sequential([keras.Input((2,)), layers.Dense(2)]), kg.Fixed()), train, rounds=1), "not compiled"),
        (lambda: kg.lottery_rounds(pruned_network(), train, rounds=0), "rounds=0"),
        (lambda: kg.lottery_rounds(pruned_network(), train, rounds=1, fraction=1.0), "fraction=1.0"),
        (lambda: kg.lottery_rounds(pruned_network(), train, rounds=1, restart="random"), "restart='random'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
