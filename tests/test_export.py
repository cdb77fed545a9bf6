"""Export: what is written is read back, run, and compared with the Keras model."""

import dataclasses
import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from cases import JAX, every_method, xla

import keras_gibbs as kg
from keras_gibbs.export import (
    Advice,
    choice,
    comparison,
    conversion,
    export_saved_model,
    export_tflite,
    files,
    litert,
    samples,
    saved_model,
    sharing,
    tflite,
    tflite_file,
    zeros,
)
from keras_gibbs.export.encodings import ENCODINGS

pytest.importorskip("tensorflow")
layers = keras.layers
without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


@pytest.fixture(autouse=True)
def same_weights_every_time():
    keras.utils.set_random_seed(0)


def sparsify(model, sparsity=0.9):
    """Zeros by hand in every kernel; returns how many."""
    rng, zeros = np.random.default_rng(0), 0
    for weight in model.weights:
        if len(weight.shape) >= 2:
            keep = rng.random(weight.shape) >= sparsity
            weight.assign(rng.standard_normal(weight.shape) * keep)
            zeros += keep.size - int(np.count_nonzero(keep))
    return zeros


@pytest.fixture(scope="module")
def convnet():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(64, 1, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.zeros = sparsify(model)
    return model


def untouched(folder):
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_auto_writes_the_smallest_file_with_every_zero_and_says_why(convnet, tmp_path):
    path = tmp_path / "new" / "model.tflite"
    report = export_tflite(convnet, path)
    rows = {row["encoding"]: row for row in report.rows}
    assert {"dense", "sparse", "float16", "sparse_float16", "dynamic_int8"} <= set(rows) and "int8" not in rows
    assert report.chosen is rows["sparse_float16"] and path.read_bytes() and path.stat().st_size == report.chosen["raw_bytes"]
    assert rows["sparse"]["raw_bytes"] < 0.5 * rows["dense"]["raw_bytes"]
    for name, row in rows.items():
        assert (row["densify"] > 0) == ENCODINGS[name].sparse
        assert row["zeros"] == convnet.zeros == sum(tensor["kept"] for tensor in row["tensors"])
        assert {tensor["checked"] for tensor in row["tensors"]} == {"position"}
        assert row["accuracy"] is None
    assert rows["dense"]["max_difference"] < 1e-4 and rows["sparse"]["max_difference"] < 1e-4
    assert report.path == path and list(path.parent.iterdir()) == [path]
    assert report.reason.startswith("Written: sparse_float16, the smallest by raw size") and f"{rows['dense']['raw_bytes']:,} (dense)" in report.reason
    text = str(report)
    assert "sparse_float16 (written)" in text and "random samples" in text and f"{convnet.zeros:,}" in text and report.advice.sentences()[0] in text
    for tensor in report.chosen["tensors"]:
        [line] = [line for line in text.splitlines() if tensor["kernel"] in line]
        assert [cell.strip() for cell in line.strip("│").split("│")[1:4]] == [f"{tensor[key]:,}" for key in ("weights", "zeros", "kept")]


# Largest difference, as a share of the largest output, that each precision may make on these networks.
BOUNDS = {"float32": 1e-5, "float16": 2e-3, "int8": 0.05}


def network(form):
    """A network in one of three forms, with kernels large enough (1,024 weights) for the converter to quantize."""
    body = [layers.DepthwiseConv2D(3, padding="same"), layers.Conv2D(64, 1), layers.BatchNormalization(), layers.ReLU()]
    if form == "nested":
        body = [keras.Sequential([keras.Input((8, 8, 32)), *body], name="body")]
    parts = [layers.Conv2D(32, 3, padding="same", activation="relu"), *body, layers.GlobalAveragePooling2D(), layers.Dense(40), layers.ReLU(), layers.Dense(10)]
    if form == "sequential":
        return keras.Sequential([keras.Input((8, 8, 3)), *parts])
    x = inputs = keras.Input((8, 8, 3))
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


@pytest.mark.few(tensorflow=["nested"])
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's; one test below goes there from JAX")
@pytest.mark.parametrize("form", ["sequential", "functional", "nested"])
@pytest.mark.filterwarnings("ignore:The schedules of")
def test_every_encoding_keeps_zeros_and_predictions_of_every_kind_of_model(form, tmp_path):
    pruned = kg.prune(network(form), kg.Gibbs(0.9), seed=0)  # with fewer zeros the sparse form of int8 is larger, and is left out
    x = np.random.default_rng(0).standard_normal((32, 8, 8, 3)).astype("float32")
    report = export_tflite(pruned, tmp_path / "model.tflite", representative_data=x, data=(x, None))
    wanted = sum(int(np.count_nonzero(layer.mask() == 0)) for layer in kg.pruned_layers(pruned))
    assert [row["encoding"] for row in report.rows] == [name for name, form in ENCODINGS.items() if not form.rewritten]
    for row in report.rows:
        assert row["zeros"] == wanted and len(row["tensors"]) == 5 and {tensor["checked"] for tensor in row["tensors"]} == {"position"}
        assert row["relative_difference"] <= BOUNDS[ENCODINGS[row["encoding"]].dtype]
        assert row["runs"] == (row["encoding"] not in ("sparse_int8", "sparse_dynamic_int8")), row["problem"]  # LiteRT 2.3.0: XNNPACK refuses DENSIFY in int8


@pytest.mark.few(tensorflow=["gibbs-kernel", "gumbel-target", "edropout"])
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
@every_method
@pytest.mark.filterwarnings("ignore:The schedules of")
def test_every_method_leaves_as_saved_model_and_tflite(method, tmp_path):
    import tensorflow as tf

    inputs = keras.Input((6, 6, 3))
    outputs = layers.Dense(4)(layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(inputs)))
    pruned = kg.prune(keras.Model(inputs, outputs), method.make(), seed=0)
    x = np.random.default_rng(0).standard_normal((8, 6, 6, 3)).astype("float32")
    report = export_tflite(pruned, tmp_path / "model.tflite", encoding="dense", data=(x, None))
    assert report.chosen["zeros"] == sum(int(np.count_nonzero(layer.mask() == 0)) for layer in kg.pruned_layers(pruned))
    assert report.chosen["relative_difference"] < 1e-5 and {tensor["checked"] for tensor in report.chosen["tensors"]} <= {"position"}
    export_saved_model(pruned, tmp_path / "saved")
    served = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(served.serve(x), pruned(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity, bound", [(0.8, 0.27), (0.9, 0.14)])
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_sparse_files_of_1x1_convolutions_are_as_small_as_stated(sparsity, bound, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 256)), layers.Conv2D(256, 1), layers.Conv2D(256, 1)])
    sparsify(model, sparsity)
    sizes = [export_tflite(model, tmp_path / "model.tflite", encoding=encoding).chosen["raw_bytes"] for encoding in ("sparse", "dense")]
    assert sizes[0] <= bound * sizes[1]


@pytest.mark.skipif(not JAX, reason="TensorFlow converts in its own process")
def test_a_subprocess_builds_every_encoding_of_a_pruned_model(convnet, tmp_path):
    pruned = kg.prune(convnet, kg.Magnitude(0.95))
    x, labels = labelled(pruned)
    report = export_tflite(pruned, tmp_path / "model.tflite", representative_data=x, data=(x, labels))
    rows = {row["encoding"]: row for row in report.rows}
    assert {"dense", "sparse", "float16", "sparse_float16", "dynamic_int8", "int8"} <= set(rows)
    for name, row in rows.items():
        assert row["zeros"] == sum(int(np.count_nonzero(layer.mask() == 0)) for layer in kg.pruned_layers(pruned))
        assert row["relative_difference"] < BOUNDS[ENCODINGS[name].dtype] and row["accuracy"] == pytest.approx(0.75, abs=0.05)


def labelled(model):
    """Samples for more than two batches, and labels of which the model gets three quarters right."""
    x = np.random.default_rng(1).standard_normal((300, 8, 8, 3)).astype("float32")
    labels = model.predict(x, verbose=0).argmax(-1)
    labels[:75] = (labels[:75] + 1) % 10
    return x, labels


@pytest.mark.skipif(JAX, reason="a subprocess costs seconds, and the test before this one has one")
def test_accuracy_is_that_of_the_file_for_labels_and_one_hot_rows(convnet, tmp_path):
    x, labels = labelled(convnet)
    report = export_tflite(convnet, tmp_path / "model.tflite", encoding="sparse", data=(x, labels))
    assert [row["encoding"] for row in report.rows] == ["sparse"]
    assert report.rows[0]["accuracy"] == pytest.approx(0.75, abs=0.01) and report.accuracy == pytest.approx(0.75)
    assert "Accuracy of the Keras model: 75.00%." in str(report)
    scores = [np.eye(10)[labels]]
    assert comparison.accuracy(scores, np.eye(10)[labels], scores) == comparison.accuracy(scores, labels[:, None], scores) == 1.0


@pytest.mark.once
def test_several_inputs_outputs_nested_models_and_a_static_batch(tmp_path):
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(20, activation="relu"), layers.Dense(7)])
    first, second = keras.Input(batch_shape=(3, 4)), keras.Input(batch_shape=(3, 6))
    hidden = inner(second)
    outputs = [layers.Dense(2)(hidden) for _ in range(11)] + [layers.Dense(5)(first)]
    model = keras.Model([second, first], outputs)
    zeros = sparsify(model, 0.5)
    x = [np.random.default_rng(0).standard_normal((7, size)).astype("float32") for size in (6, 4)]  # 7 is no multiple of 3
    report = export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(x, None))
    assert report.rows[0]["zeros"] == zeros
    assert report.rows[0]["max_difference"] < 1e-5 and report.rows[0]["accuracy"] is None


def test_representative_data_comes_in_many_forms_and_reaches_each_input(tmp_path):
    second, first = keras.Input((4,), name="second"), keras.Input((6,), name="first")
    both = layers.concatenate([layers.Dense(5)(second), layers.Dense(5)(first)])
    model = keras.Model([second, first], {"scores": layers.Dense(3)(both), "other": layers.Dense(2)(both)})
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 4)).astype("float32"), 100 * rng.standard_normal((40, 6)).astype("float32")
    y = np.zeros((40, 3))
    forms = {
        "list": [a, b],
        "dict": {"first": b, "second": a},
        "batches": ((a[i : i + 8], b[i : i + 8]) for i in range(0, 40, 8)),
        "with labels": [((a[i : i + 8], b[i : i + 8]), y[i : i + 8]) for i in range(0, 40, 8)],
        "dicts": ({"second": a[i : i + 20], "first": b[i : i + 20]} for i in (0, 20)),
    }
    for name, form in forms.items():
        got = samples.representative(model, form)
        assert all(np.array_equal(*pair) for pair in zip(got, (a, b))), name
    endless = (np.full((3, 4), i, "float32") for i in itertools.count())
    single = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    assert samples.representative(single, endless)[0].shape == (500, 4)
    assert samples.representative(single, [(a, y)])[0].shape == samples.representative(single, a)[0].shape == (40, 4)
    if not JAX:  # ranges of the two inputs that were mixed up would cut off the second
        report = export_tflite(model, tmp_path / "model.tflite", encoding="int8", representative_data=[a, b])
        assert report.chosen["runs"] and report.chosen["relative_difference"] < 0.05
        interpreter = litert.interpreters().Interpreter(model_path=str(report.path))
        assert {each["dtype"] for each in interpreter.get_input_details() + interpreter.get_output_details()} == {np.float32}


@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_int8_of_a_static_batch_is_calibrated_in_whole_batches(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(3, 6)), layers.Dense(20, activation="relu"), layers.Dense(7)])
    x = np.random.default_rng(0).standard_normal((32, 6)).astype("float32")  # 32 is no multiple of 3
    report = export_tflite(model, tmp_path / "model.tflite", encoding="int8", representative_data=x)
    assert report.chosen["runs"] and report.chosen["relative_difference"] < 0.05


@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_an_int8_file_holds_equal_lists_once_and_is_otherwise_the_converters(convnet, tmp_path, monkeypatch):
    before = []
    monkeypatch.setattr(conversion, "shared", lambda content: before.append(content) or sharing.shared(content))
    x = np.random.default_rng(0).standard_normal((8, 8, 8, 3)).astype("float32")
    report = export_tflite(convnet, tmp_path / "model.tflite", encoding="int8", representative_data=x, verbose=0)
    assert report.chosen["runs"]
    contents = before[-1], report.path.read_bytes()
    again = 16 + 16 + 16 + 64 + 10  # zero points of eight bytes: of kernels and biases, less the first list of each length
    assert len(contents[0]) - len(contents[1]) > 0.8 * 8 * again  # the rest aligns constants
    predictions = [litert.run(content, [x], ["input_1"], None)[0][0] for content in contents]
    np.testing.assert_array_equal(*predictions)
    for one, other in zip(*(graph.tensors for content in contents for graph in tflite_file.read(content)), strict=True):
        assert (one.name, one.shape, one.dtype) == (other.name, other.shape, other.dtype)
        np.testing.assert_array_equal(one.values, other.values)
    model = tflite_file.schema().Model.GetRootAs(contents[1], 0)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    starts = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()]
    assert len(starts) > 8 and not any(start % 16 for start in starts)  # as the format asks
    assert sharing.shared(contents[1]) == contents[1]


ADVICE = Advice(rows=[], share=0.9, fails="", change="", promised=0.9, speed=3.0)


def rows_of(**sizes):
    keys = {"runs": True, "problem": "", "relative_difference": 0.0, "accuracy": None}
    return [{"encoding": name, "raw_bytes": raw, "gzip_bytes": gzip, **keys} for name, (raw, gzip) in sizes.items()]


def test_prefer_decides_by_what_it_names():
    rows = rows_of(dense=(9, 4), sparse=(5, 5), dynamic_int8=(6, 3), int8=(7, 6))

    def chosen(prefer, advice=ADVICE):
        return choice.choose(rows, "auto", prefer, None, advice)[0]["encoding"]

    assert chosen("raw") == "sparse" and chosen("gzip") == "dynamic_int8"
    assert chosen("arm64") == "sparse"
    assert chosen("arm64", dataclasses.replace(ADVICE, speed=1.4)) == "int8"
    assert chosen("arm64", dataclasses.replace(ADVICE, share=0.0, speed=1.0)) == "int8"
    rows.pop()
    assert chosen("arm64", dataclasses.replace(ADVICE, share=0.0, speed=1.0)) == "dynamic_int8"
    rows.pop()
    row, reason, _ = choice.choose(rows, "auto", "arm64", None, dataclasses.replace(ADVICE, share=0.0, speed=1.0))
    assert row["encoding"] == "dense" and "0% would run sparse" in reason  # a sparse file off the sparse path is slower than a dense one


@pytest.mark.parametrize(
    "size, ready, encoding",
    [(102, 3.0, "sparse_ready"), (103, 3.0, "sparse"), (97, 0.8, "sparse_ready"), (102, 0.9, "sparse")],  # of 100 bytes, at a speed of 1.0
)
def test_of_forms_that_are_as_small_the_faster_one_is_written(size, ready, encoding):
    rows = rows_of(dense=(200, 200), sparse=(100, 100), sparse_ready=(size, size))
    advice, ready = (dataclasses.replace(ADVICE, speed=speed) for speed in (1.0, ready))
    for prefer in ("raw", "gzip"):
        assert choice.choose(rows, "auto", prefer, None, advice, ready)[0]["encoding"] == encoding
    assert choice.worth_rewriting(rows[:2], rows[1], "raw") == "sparse_ready" and choice.worth_rewriting(rows[:2], rows_of(int8=(50, 50))[0], "raw") is None


@pytest.mark.parametrize(
    "fault, why",
    [
        ({"runs": False, "problem": "LiteRT does not run it"}, "does not run it"),
        ({"relative_difference": 0.06}, "differ by 6.0% of the largest one, more than 5%"),
        ({"accuracy": 0.88}, "loses 2.00% accuracy, more than 1%"),
        ({"runs": None}, "not checked"),
    ],
)
def test_auto_does_not_choose_a_file_that_is_off_and_says_why(fault, why):
    rows = rows_of(dense=(9, 9), dynamic_int8=(1, 1))
    rows[1] |= fault
    row, _, notes = choice.choose(rows, "auto", "raw", 0.9, ADVICE)
    assert row["encoding"] == "dense" and len(notes) == 1 and "dynamic_int8" in notes[0] and why in notes[0]
    assert choice.choose(rows[1:], "dynamic_int8", "raw", 0.9, ADVICE)[0] is rows[1]
    with pytest.raises(RuntimeError, match="'auto' found no encoding.*Ask for one by name"):
        choice.choose(rows[1:], "auto", "raw", 0.9, ADVICE)


def test_auto_does_not_choose_a_sparse_file_that_fails_on_arm64():
    rows = rows_of(dense=(9, 9), sparse=(5, 5), sparse_float16=(3, 3))
    row, _, notes = choice.choose(rows, "auto", "raw", None, dataclasses.replace(ADVICE, fails="LiteRT fails on ARM64", share=0.0))
    assert row["encoding"] == "dense" and len(notes) == 2


def test_sparse_forms_that_are_no_smaller_are_left_out():
    rows = rows_of(dense=(9, 4), sparse=(10, 5), int8=(4, 4), sparse_int8=(3, 5))
    kept, notes = tflite._without_larger_sparse_forms(rows, "raw")
    assert kept == rows and not notes
    kept, notes = tflite._without_larger_sparse_forms(rows, "gzip")
    assert [row["encoding"] for row in kept] == ["dense", "sparse", "int8"] and "sparse_int8 (5 bytes)" in notes[0]


def stored(values):
    """A constant of a file."""
    return tflite_file.Tensor("", values.shape, np.float32, values, values == 0, False, 1)


def test_a_zero_lost_in_conversion_is_an_error(convnet):
    kernels = [np.moveaxis(keras.ops.convert_to_numpy(weight), -1, 0).copy() for weight in convnet.weights if len(weight.shape) >= 2]
    rows = zeros.zeros_kept(convnet, [stored(kernel) for kernel in kernels])
    assert sum(row["kept"] for row in rows) == convnet.zeros and {row["checked"] for row in rows} == {"position"}
    kernels[2].ravel()[np.argmin(np.abs(kernels[2]))] = 1e-9
    with pytest.raises(RuntimeError, match="must be zero in the file.*conv2d"):
        zeros.zeros_kept(convnet, [stored(kernel) for kernel in kernels])
    rows = zeros.zeros_kept(convnet, [])
    assert len(rows) == 4 and {(row["kept"], row["checked"]) for row in rows} == {(0, None)}


def test_zeros_that_moved_are_counted_and_not_called_checked_by_position():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    sparsify(model, 0.5)
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    [row] = zeros.zeros_kept(model, [stored(np.roll(kernel.T, 1, axis=1))])
    assert row["checked"] == "count" and row["kept"] == row["zeros"] == row["file_zeros"]


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_without_litert_the_report_says_what_was_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "interpreters", lambda: None)
    model = keras.Sequential([keras.Input((40,)), layers.Dense(60)])
    wanted = sparsify(model)
    report = export_tflite(model, tmp_path / "model.tflite")
    assert report.chosen["encoding"] == "sparse" and report.chosen["zeros"] == wanted  # nothing lossy is written unchecked
    assert {row["runs"] for row in report.rows} == {None} and {row["max_difference"] for row in report.rows} == {None}
    assert "Not checked: predictions of the sparse file (LiteRT is not installed; run `pip install keras_gibbs[litert]`)." in str(report)


@pytest.mark.parametrize("fault", [RuntimeError("it broke"), KeyboardInterrupt("it broke")])
def test_a_conversion_that_fails_or_is_interrupted_leaves_the_old_files(fault, convnet, tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(b"old file")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"old model")
    before = untouched(tmp_path)

    def break_conversion(model, folder, *args):
        (folder / "dense.tflite").write_bytes(b"half a file")
        raise fault

    def break_export(model, folder, names):
        os.mkdir(folder)
        raise fault

    def break_move(source, target):
        if source.name == "new":
            raise fault
        move(source, target)

    move = os.replace
    with monkeypatch.context() as patch, pytest.raises(type(fault), match="it broke"):
        patch.setattr(tflite, "convert", break_conversion)
        export_tflite(convnet, tmp_path / "model.tflite")
    with monkeypatch.context() as patch, pytest.raises(type(fault), match="it broke"):
        patch.setattr(saved_model, "save_inference", break_export)
        export_saved_model(convnet, saved)
    with monkeypatch.context() as patch, pytest.raises(type(fault), match="it broke"):
        patch.setattr(saved_model, "save_inference", lambda model, folder, names: os.mkdir(folder))
        patch.setattr(files, "_exchanged", lambda *_: False)  # as on a system that cannot
        patch.setattr(os, "replace", break_move)
        export_saved_model(convnet, saved)
    assert untouched(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ["model.tflite", "saved"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "model.lite"}, r"must end in `.tflite`.*model.lite.*Use '.*model.tflite'"),
        ({"encoding": "float17"}, r"must be one of 'auto', 'dense', 'sparse', 'float16'.*'float17'"),
        ({"prefer": "small"}, r"`prefer` must be one of 'raw', 'gzip', 'arm64'.*'small'"),
        ({"encoding": "int8"}, r"'int8' needs `representative_data`.*None"),
        ({"encoding": "dense", "representative_data": [1]}, r"'int8', 'sparse_int8' and 'auto' only.*Leave it out"),
        ({"representative_data": np.zeros((5, 8, 8, 1))}, r"shapes \[\(5, 8, 8, 1\)\] for inputs of shapes \[\(None, 8, 8, 3\)\]"),
        ({"representative_data": np.zeros((8, 8, 3))}, r"shapes \[\(8, 8, 3\)\] for inputs.*first axis counts samples"),
        ({"representative_data": iter([])}, r"no samples"),
        ({"representative_data": 3}, r"Received: int"),
        ({"representative_data": np.full((1, 8, 8, 3), np.nan)}, r"must be finite"),
        ({"data": [1]}, r"pair \(x, y\)"),
        ({"data": (np.zeros((3, 8, 8, 3)), np.zeros(2))}, r"one length.*\[3, 2\]"),
        ({"data": (np.zeros((3, 8, 8, 3)), np.zeros((3, 4)))}, r"integer labels or one-hot.*\(3, 4\)"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(convnet, tmp_path, arguments, message):
    path = tmp_path / "folder" / arguments.pop("path", "model.tflite")
    with pytest.raises(ValueError, match=message):
        export_tflite(convnet, path, **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_models_and_folders_are_named(convnet, tmp_path):
    with pytest.raises(TypeError, match="must be a Keras 3 model.*list"):
        export_tflite([1], tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="must be built"):
        export_tflite(keras.Sequential([layers.Dense(1)]), tmp_path / "model.tflite")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="must lie in a folder that can be written.*model.tflite"):
        export_tflite(convnet, tmp_path / "file" / "model.tflite")
    with pytest.raises(OSError, match="must lie in a folder that can be written.*saved"):
        export_saved_model(convnet, tmp_path / "file" / "saved")
    with pytest.raises(ValueError, match="holds other files"):
        export_saved_model(convnet, tmp_path)
    assert (tmp_path / "file").read_text() == "not a folder"


@keras.saving.register_keras_serializable("tests")
class IncompleteBeta(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.raw_ops.Betainc(a=tf.abs(x), b=tf.abs(x), x=tf.sigmoid(x))

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("tests")
class CumulativeProduct(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.cumprod(x, axis=1)


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_auto_goes_on_without_an_encoding_that_cannot_be_built(tmp_path):
    model = keras.Sequential([keras.Input((6,)), CumulativeProduct(), layers.Dense(3)])
    x = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    report = export_tflite(model, tmp_path / "model.tflite", representative_data=x)
    assert [row["encoding"] for row in report.rows] == ["dense", "float16", "dynamic_int8"]
    assert report.chosen["encoding"] == "dense" and report.chosen["runs"] is None
    assert "Not checked: predictions of the dense file (it holds operators that only TensorFlow's Flex delegate runs: FlexCumprod)." in report.notes
    assert any(note.startswith("Left out: int8. Ranges cannot be measured") for note in report.notes)


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the layer is TensorFlow's")
def test_an_operator_that_tflite_lacks_is_named_with_its_layer(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"old file")
    inner = keras.Sequential([keras.Input((8,)), IncompleteBeta(name="strange"), layers.Dense(2)])
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), inner])
    with pytest.raises(RuntimeError, match=r"no operator for tf.Betainc in layer 'strange'.*Build the layer from others.$") as failure:
        export_tflite(model, tmp_path / "model.tflite")
    assert "neither a custom op nor a flex op" in str(failure.value.__cause__)
    assert untouched(tmp_path) == {"model.tflite": b"old file"}


SERVE = """
import sys
sys.modules["keras_gibbs"] = sys.modules["keras"] = sys.modules["tf_keras"] = None  # as if they were not installed
import numpy as np, tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[2], served.serve(tf.constant(np.load(sys.argv[3]))).numpy())
"""


@pytest.mark.once
def test_a_saved_model_serves_in_a_process_without_keras_gibbs_and_replaces_the_old_one(convnet, tmp_path):
    pruned, saved = kg.prune(convnet, kg.Magnitude(0.95)), tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"old model")
    (saved / "assets").mkdir()
    (saved / "assets" / "leftover").write_bytes(b"of the old model")
    export_saved_model(pruned, saved)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"] and not (saved / "assets" / "leftover").exists()
    x = np.random.default_rng(2).standard_normal((5, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", SERVE, saved, tmp_path / "y.npy", tmp_path / "x.npy"], check=True)
    expected = keras.ops.convert_to_numpy(pruned(x))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5 * np.abs(expected).max())
    assert not np.allclose(expected, keras.ops.convert_to_numpy(convnet(x)), rtol=0.1)
