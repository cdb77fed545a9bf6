"""The benchmarks' networks, data and stopwatch, without a data set and without timing anything that counts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from cases import JAX

import keras_gibbs as kg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import data, machine, networks, results
from benchmarks.cost import step_cost, timing
from benchmarks.device import arm64, arm64_latency

pytestmark = pytest.mark.skipif(JAX, reason="nothing here depends on the backend, or TensorFlow is what it measures")


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


def test_the_mobilenet_is_the_one_of_its_paper():
    assert networks.mobilenet((224, 224, 3), alpha=1.0, classes=1000).count_params() == 4_253_864  # as keras.applications.MobileNet has
    model = networks.mobilenet()
    strided = [layer for layer in model.layers if getattr(layer, "strides", None) == (2, 2)]
    assert len(strided) == 5 and all(layer.padding == "valid" for layer in strided)


def test_in_a_mobilenet_the_1x1_convolutions_are_prunable():
    model = networks.mobilenet((32, 32, 3), alpha=0.25)
    assert [layer.name for layer in model.layers if networks.prunable(layer)] == [f"block{index}_pointwise" for index in range(1, 14)]
    assert model.get_layer("block13_pointwise").output.shape == (None, 1, 1, 256) and model.output_shape == (None, 10)


def test_a_small_mobilenet_is_pruned_and_stripped():
    model = networks.mobilenet((8, 8, 3), alpha=0.25, blocks=((64, 1), (128, 2)))
    stripped = kg.strip_pruning(kg.prune(model, kg.Magnitude(0.9), where=networks.prunable, seed=1))
    assert kg.sparsity(stripped, where=networks.prunable) == pytest.approx(0.9, abs=0.01)
    assert kg.sparsity(stripped, where="depthwise|stem|classifier") == 0.0


@pytest.mark.parametrize(("head", "shape"), [("dense", (10,)), ("pooled", (1, 1, 24)), ("convolution", (10,)), ("none", (2, 2, 24))])
def test_heads_of_the_mobilenet(head, shape):
    model = networks.mobilenet((8, 8, 3), head=head, blocks=((24, 1), (48, 2)))
    assert model.output_shape == (None, *shape)


@pytest.mark.parametrize(("arguments", "message"), [({"head": "conv"}, "'dense', 'pooled', 'convolution', 'none'"), ({"alpha": 1.5}, "(0, 1]")])
def test_mobilenets_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        networks.mobilenet(**arguments)


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
    times = timing.interleave(timers, rounds=3)
    assert "".join(order[6:]) == "abcbcacab"
    assert times == {name: [1.0] * 3 for name in "abc"}


def test_a_row_takes_the_median_of_the_ratios_of_its_rounds():
    row = timing.Row("case", "variant", "dense", [(1.0, 2.0), (2.0, 2.2), (10.0, 11.0)], bound=1.2)
    assert row.ratio == pytest.approx(1.1) and row.reference_ms == 2.0 and row.met
    assert timing.Row("case", "variant", "dense", [(1.0, 2.0)], bound=3.0, at_most=False).met is False


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the benchmark times TensorFlow")
def test_training_steps_of_a_tiny_model_are_timed_hot_and_cold(tmp_path):
    variants = {"Gibbs": (kg.Gibbs(0.9), 1e9), "Fixed": (kg.Fixed(), None)}
    rows = step_cost.training("tiny", lambda: networks.mlp(6, hidden=(8,)), None, variants, steps=1, rounds=2)
    assert [row.variant for row in rows] == ["dense again", "Gibbs, hot", "Gibbs, cold", "Fixed"]
    assert all(len(row.rounds) == 2 and row.ratio > 0 for row in rows)
    assert [row.met for row in rows] == [None, True, True, None]
    results.append(tmp_path / "out.jsonl", {"environment": machine.environment(), "rows": [row.as_dict() for row in rows]})
    assert results.read(tmp_path / "out.jsonl")[0]["rows"][1]["bound"] == 1e9
    timing.show(rows, "tiny")


@pytest.fixture(scope="module")
def tflite(tmp_path_factory):
    """A real .tflite file."""
    pytest.importorskip("ai_edge_litert")
    path = tmp_path_factory.mktemp("tflite") / "mlp.tflite"
    kg.export_tflite(networks.mlp(6, hidden=(8,)), path, encoding="dense")
    return path


ON_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends convert in a subprocess, which takes long")


@ON_TENSORFLOW
def test_files_are_run_on_two_machines_and_reported(tflite, tmp_path, monkeypatch, capsys):
    for name in ("dense.tflite", "sparse.tflite"):
        (tmp_path / name).write_bytes(tflite.read_bytes())
    here = arm64.this_machine()
    versions = {"emulator": "none", "cpu": "this one", "ai-edge-litert": "0"}
    monkeypatch.setattr(arm64, "machine", lambda root, sources: arm64.Machine(here.command, here.environment, versions))
    monkeypatch.chdir(tmp_path)
    arm64_latency.main(["sparse.tflite", "dense.tflite", "--dense", "dense.tflite", "--runs", "3", "--rounds", "2", "--out", "out/result.jsonl"])
    text = (tmp_path / "out/result.jsonl").read_text()
    own, reference = json.loads(text)["rows"]
    assert [own["name"], own["dense"], reference["ratio"]] == ["sparse.tflite", "dense.tflite", 1.0]
    assert own["differences"] == [0.0, 0.0] and own["equal"] and own["largest_output"] > 0.01
    assert [len(times) for times in own["rounds"]] == [3, 3] and own["raw_bytes"] == tflite.stat().st_size
    assert str(tmp_path) not in text and "runs" in capsys.readouterr().out


@ON_TENSORFLOW
def test_a_file_that_fails_is_reported_with_the_message_and_is_an_error(tflite, tmp_path, monkeypatch, capsys):
    program = "import json, sys; print(json.dumps({'failure': 'no such kernel'})); sys.exit(1)"
    broken = arm64.Machine((sys.executable, "-c", program), {}, {"emulator": "none", "cpu": "broken", "ai-edge-litert": "0"})
    monkeypatch.setattr(arm64, "machine", lambda root, sources: broken)
    with pytest.raises(SystemExit) as end:
        arm64_latency.main([str(tflite), "--runs", "1", "--out", str(tmp_path / "out.jsonl")])
    shown = capsys.readouterr().out
    assert end.value.code == 1 and "FAILS" in shown and "fails on ARM64: no such kernel" in shown
    (row,) = json.loads((tmp_path / "out.jsonl").read_text())["rows"]
    assert row["failure"] == "no such kernel" and row["ratio"] is None and row["host_ms"] > 0


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.abort()", "status -6"),
        ("raise SystemExit('out of luck')", "status 1: out of luck"),
        ("import time; time.sleep(60)", "no result after 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_failure(program, message):
    times, outputs, failure = arm64.Machine((sys.executable, "-c", program), {}).run("some.tflite", [np.zeros(1)], runs=1, timeout=1)
    assert times is None and outputs is None and message in failure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--mobilenet"),
        (["--mobilenet", "model.tflite"], "--mobilenet"),
        (["--mobilenet", "--dense", "model.tflite"], "files of your own"),
        (["model.tflite"], "there is no file model.tflite"),
        (["model.tflite", "--dense", "other.tflite"], "must be one of the files"),
        (["model.tflite", "model.tflite"], "once"),
        (["--mobilenet", "--rounds", "0"], "--rounds must be positive"),
        (["--mobilenet", "--sources", "none.list"], "there is no file none.list"),
        ([__file__], "cannot be read as a .tflite file"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_set_up(arguments, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        arm64_latency.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def a_file(name, dense, rounds, faster=None, differences=(0.0,), failure=None):
    return arm64_latency.File(name, Path(name), dense, faster, rounds, failure, differences=list(differences))


def test_a_ratio_is_the_median_over_the_rounds_and_a_promise_needs_equal_predictions():
    dense = a_file("dense", "dense", [[9.0, 10.0, 50.0], [20.0], [10.0]])
    sparse = a_file("sparse", "dense", [[2.0], [5.0], [2.0]], faster=4.5)
    assert sparse.ratio(dense) == pytest.approx(0.2) and sparse.ms == 2.0 and sparse.met(dense)
    assert dense.met(dense) is None
    assert a_file("sparse", "dense", [[3.0], [5.0], [3.0]], faster=4.5).met(dense) is False
    assert a_file("sparse", "dense", [[2.0], [5.0], [2.0]], faster=4.5, differences=[0.0, 2e-4]).met(dense) is False
    failed = a_file("sparse", "dense", [], faster=4.5, failure="no")
    assert failed.met(dense) is False and failed.ms is None and failed.ratio(dense) is None and dense.ratio(failed) is None


def test_the_largest_difference_counts_what_is_no_number():
    nan, inf = np.array([np.nan, 1.0]), np.array([np.inf, 1.0])
    assert arm64_latency.largest_difference([np.array([1, 5], "int8"), np.zeros(2)], [np.array([1, -123], "int8"), np.zeros(2)]) == 128.0
    assert arm64_latency.largest_difference([nan, inf], [nan, inf]) == 0.0
    assert arm64_latency.largest_difference([nan], [inf]) == np.inf


def test_a_folder_has_its_name_only_when_it_is_complete(tmp_path):
    folder, unfinished = tmp_path / "linux", tmp_path / "linux.new"
    unfinished.mkdir()
    (unfinished / "left by a process that was killed").touch()
    with pytest.raises(KeyboardInterrupt), arm64.whole(folder) as new:
        (new / "part").touch()
        raise KeyboardInterrupt
    assert not folder.exists() and not unfinished.exists()
    with arm64.whole(folder) as new:
        (new / "part").touch()
        assert not folder.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["linux", "part"]


def machine_without(monkeypatch, *, system="linux", processor="x86_64", tools=()):
    """Set the scene for `arm64.machine`; apt-get is not there and nothing may be run but Python."""
    monkeypatch.setattr(arm64, "_litert", lambda: "1.2.3")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(arm64.platform, "machine", lambda: processor)
    monkeypatch.setattr(arm64.shutil, "which", lambda name: name if name in tools else None)


@pytest.mark.parametrize(
    ("scene", "message"),
    [({}, "on Debian or Ubuntu"), ({"system": "darwin"}, "on Linux only"), ({"processor": "aarch64"}, "run_tflite.py")],
)
def test_where_nothing_can_be_set_up_the_way_out_is_named(scene, message, tmp_path, monkeypatch):
    machine_without(monkeypatch, **scene)
    with pytest.raises(arm64.SetupError, match=message):
        arm64.machine(tmp_path / "arm64")
    assert not any(tmp_path.rglob("linux*")) and not any(tmp_path.rglob("qemu*"))


def test_without_litert_the_package_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise arm64.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(arm64.importlib.metadata, "version", absent)
    with pytest.raises(arm64.SetupError, match="pip install ai-edge-litert"):
        arm64.machine(tmp_path)


def complete_parts(root):
    """The folders of a machine that is set up, without their content."""
    emulator, python = root / "qemu/usr/bin/qemu-aarch64-static", root / "linux/usr/bin/python3"
    for path in (emulator, python):
        path.parent.mkdir(parents=True)
    emulator.write_text("#!/bin/sh\necho 'qemu-aarch64 version 9: max cortex-a76'\n")
    emulator.chmod(0o755)
    python.symlink_to("python3.11")
    (root / "litert-1.2.3-python3.11").mkdir()


def test_a_complete_set_up_is_not_redone_and_each_missing_part_is_announced(tmp_path, monkeypatch, capsys):
    machine_without(monkeypatch)
    complete_parts(tmp_path)
    found = arm64.machine(tmp_path)
    assert found.command[0] == str(tmp_path / "qemu/usr/bin/qemu-aarch64-static") and found.versions["python"] == "3.11"
    assert "LD_LIBRARY_PATH" not in found.environment and capsys.readouterr().out == ""
    (tmp_path / "litert-1.2.3-python3.11").rename(tmp_path / "litert-1.2.3-python3.11.new")
    asked = []
    monkeypatch.setattr(arm64, "_set_up_litert", lambda folder, *_: asked.append(folder.name))
    arm64.machine(tmp_path)
    assert asked == ["litert-1.2.3-python3.11"]
    shown = capsys.readouterr().out
    assert "ai-edge-litert 1.2.3" in shown and str(tmp_path) in shown and "apt-get" not in shown


@pytest.mark.skipif(not arm64.shutil.which("dpkg-deb"), reason="needs dpkg")
@pytest.mark.parametrize("only", [(), ("wanted",)])
def test_packages_are_unpacked_where_lib_is_a_link(tmp_path, only):
    package, folder = tmp_path / "package", tmp_path / "folder"
    for path in ("DEBIAN/control", "lib/wanted", "usr/bin/other"):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).touch()
    (package / "DEBIAN/control").write_text("Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: tiny\n")
    subprocess.run(["dpkg-deb", "--build", str(package), str(tmp_path / "tiny.deb")], check=True, capture_output=True)
    (folder / "usr/lib").mkdir(parents=True)
    (folder / "lib").symlink_to("usr/lib")
    arm64._unpack(tmp_path / "tiny.deb", folder, only)
    assert (folder / "lib").is_symlink() and (folder / "usr/lib/wanted").exists()
    assert (folder / "usr/bin/other").exists() is not bool(only)
    (tmp_path / "tiny.deb").write_bytes(b"no package")
    with pytest.raises(arm64.SetupError, match="tiny.deb could not be unpacked"):
        arm64._unpack(tmp_path / "tiny.deb", folder)
