"""The benchmarks' networks, data and stopwatch, without a data set and without timing anything that counts."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_gibbs as kg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import data  # noqa: E402
import networks  # noqa: E402
import step_cost  # noqa: E402


def images(number, size=12):
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype="uint8")


def test_resnet20_is_the_one_of_the_authors():
    model = networks.resnet(20)
    assert model.count_params() == 273_658  # 270,256 in convolutions, 2,752 in BatchNorm, 650 in the classifier
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers) == 21  # 19 of 3x3 and two projections
    assert len(model.losses) == 21


def test_the_stem_and_the_classifier_stay_dense():
    pruned = kg.prune(networks.resnet(8), kg.Gibbs(0.9), where=networks.prunable, seed=1)
    names = {layer.name for layer in kg.pruned_layers(pruned)}
    assert len(names) == 8 and not names & set(networks.DENSE)


def test_a_depth_that_is_no_resnet_is_refused():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        networks.resnet(18)


def test_the_mlp_takes_vectors_and_images():
    assert networks.mlp(20, hidden=(30, 40)).count_params() == 20 * 30 + 30 + 30 * 40 + 40 + 40 * 10 + 10
    assert networks.mlp((28, 28, 1), hidden=(5,)).output_shape == (None, 10)


def test_scaling_is_the_mean_and_deviation_of_all_pixels():
    x = images(20)
    scaling = data.Scaling.of(x)
    assert np.allclose([scaling.mean, scaling.std], [x.mean(), x.std()])
    assert abs(scaling(x).mean()) < 1e-3 and abs(scaling(x).std() - 1) < 1e-3


def test_a_shift_interpolates_and_repeats_the_edge():
    row = np.array([0.0, 10.0, 20.0], "float32").reshape(1, 1, 3, 1)
    assert data._shift(row, np.array([0.25]), axis=2).ravel().tolist() == [2.5, 12.5, 20.0]
    assert data._shift(row, np.array([-1.0]), axis=2).ravel().tolist() == [0.0, 0.0, 10.0]
    column = row.transpose(0, 2, 1, 3)
    assert data._shift(column, np.array([2.0]), axis=1).ravel().tolist() == [20.0, 20.0, 20.0]


def test_augmentation_without_shift_flips_half_of_the_images():
    x = images(2000, size=4)
    augmented = data.augment(x, np.random.default_rng(1), shift=0.0)
    flipped = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(augmented, x)])
    same = np.array([np.array_equal(a, b) for a, b in zip(augmented, x)])
    assert (flipped ^ same).all()
    assert abs(flipped.sum() - 1000) < 112  # 5 sigma


def test_batches_are_a_function_of_seed_epoch_and_index():
    x, labels = images(50), np.arange(50)
    scaling = data.Scaling.of(x)
    one, two = (data.Batches(x, labels, scaling, batch_size=16, seed=3) for _ in range(2))
    assert len(one) == 3
    one.go_to(4)
    two[0], two[1], two.go_to(4)
    assert all(np.array_equal(a, b) for a, b in zip(one[1], two[1]))
    assert len(np.unique(np.concatenate([one[index][1] for index in range(3)]))) == 48
    before = one[1][1]
    one.go_to(5)
    assert not np.array_equal(before, one[1][1])


def test_batches_follow_the_epochs_of_fit():
    x, seen = images(8), []
    batches = data.Batches(x, np.zeros(8, "int32"), data.Scaling.of(x), batch_size=4)
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(batches.epoch))
    model.fit(batches, epochs=5, initial_epoch=3, callbacks=[batches.follow(), watch], verbose=0)
    assert seen == [3, 4]


def test_parts_hold_what_was_written(tmp_path):
    x, labels = images(25), np.arange(25) % 10
    data.write_parts(tmp_path, "cifar10", "train", x, labels, size=10)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    read = data.load("cifar10", "train", folder=tmp_path)
    assert np.array_equal(read[0], x) and np.array_equal(read[1], labels)
    with pytest.raises(FileNotFoundError, match="write_parts"):
        data.load("cifar10", "test", folder=tmp_path)


def test_holdout_parts_the_images():
    x, labels = images(30), np.arange(30)
    (_, training), (_, validation) = data.holdout(x, labels, 7)
    assert len(validation) == 7 and sorted([*training, *validation]) == list(range(30))


def test_every_round_times_every_model_in_another_order():
    order = []
    timers = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    times = step_cost.interleave(timers, rounds=3)
    assert "".join(order[6:]) == "abcbcacab"
    assert times == {name: [1.0] * 3 for name in "abc"}


def test_a_row_takes_the_median_of_the_ratios_of_its_rounds():
    row = step_cost.Row("case", "variant", "dense", [(1.0, 2.0), (2.0, 2.2), (10.0, 11.0)], bound=1.2)
    assert row.ratio == pytest.approx(1.1) and row.reference_ms == 2.0 and row.met
    assert step_cost.Row("case", "variant", "dense", [(1.0, 2.0)], bound=3.0, at_most=False).met is False


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the benchmark times TensorFlow")
def test_training_steps_of_a_tiny_model_are_timed_hot_and_cold(tmp_path):
    variants = {"Gibbs": (kg.Gibbs(0.9), 1e9), "Fixed": (kg.Fixed(), None)}
    rows = step_cost.training("tiny", lambda: networks.mlp(6, hidden=(8,)), None, variants, steps=1, rounds=2)
    assert [row.variant for row in rows] == ["dense again", "Gibbs, hot", "Gibbs, cold", "Fixed"]
    assert all(len(row.rounds) == 2 and row.ratio > 0 for row in rows)
    assert [row.met for row in rows] == [None, True, True, None]
    step_cost.write(tmp_path / "out.json", {"environment": step_cost.environment(), "rows": [row.as_dict() for row in rows]})
    assert json.loads((tmp_path / "out.json").read_text())["rows"][1]["bound"] == 1e9
    step_cost.show(rows, "tiny")
