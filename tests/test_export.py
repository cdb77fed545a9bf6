"""Export: what is written is read back, run, and compared with the Keras model."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_gibbs.export as export
from keras_gibbs.export import export_saved_model, export_tflite

pytest.importorskip("tensorflow")
layers = keras.layers


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


def test_auto_writes_the_smaller_file_with_every_zero_and_equal_predictions(convnet, tmp_path):
    path = tmp_path / "new" / "model.tflite"
    report = export_tflite(convnet, path)
    dense, sparse = report.rows
    assert (dense["encoding"], sparse["encoding"]) == ("dense", "sparse")
    assert sparse["chosen"] and not dense["chosen"]
    assert sparse["raw_bytes"] < 0.5 * dense["raw_bytes"] and path.stat().st_size == sparse["raw_bytes"]
    assert dense["densify"] == 0 and sparse["densify"] > 0
    for row in report.rows:
        assert row["zeros"] == convnet.zeros
        assert row["max_difference"] < 1e-4
        assert row["accuracy"] is None
    assert report.path == path and list(path.parent.iterdir()) == [path]
    assert "sparse (written)" in str(report) and "random samples" in str(report) and f"{convnet.zeros:,}" in str(report)


def test_accuracy_is_that_of_the_file_for_labels_and_one_hot_rows(convnet, tmp_path):
    x = np.random.default_rng(1).standard_normal((300, 8, 8, 3)).astype("float32")  # more than two batches
    labels = convnet.predict(x, verbose=0).argmax(-1)
    labels[:75] = (labels[:75] + 1) % 10
    report = export_tflite(convnet, tmp_path / "model.tflite", encoding="sparse", data=(x, labels))
    assert [row["encoding"] for row in report.rows] == ["sparse"]
    assert report.rows[0]["accuracy"] == pytest.approx(0.75, abs=0.01) and report.accuracy == pytest.approx(0.75)
    scores = [np.eye(10)[labels]]
    assert export._accuracy(scores, np.eye(10)[labels], scores) == export._accuracy(scores, labels[:, None], scores) == 1.0


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


def test_prefer_decides_by_the_size_it_names():
    rows = [
        {"encoding": "dense", "raw_bytes": 9, "gzip_bytes": 3, "max_difference": 0.0},
        {"encoding": "sparse", "raw_bytes": 5, "gzip_bytes": 4, "max_difference": 0.0},
    ]
    assert export._choose(rows, "auto", "raw")[0]["encoding"] == "sparse"
    assert export._choose(rows, "auto", "gzip")[0]["encoding"] == "dense"
    rows[1]["max_difference"] = None
    row, reason = export._choose(rows, "auto", "raw")
    assert row["encoding"] == "dense" and "does not run sparse" in reason


def test_a_zero_lost_in_conversion_is_an_error(convnet):
    tensors = [(int(np.prod(weight.shape)), 0) for weight in convnet.weights]
    with pytest.raises(RuntimeError, match="must be zero in the file"):
        export._zeros_kept(convnet, tensors)
    kept, unpaired = export._zeros_kept(convnet, [])
    assert kept == 0 and len(unpaired) == 4


def test_without_litert_the_report_says_what_was_not_checked(convnet, tmp_path, monkeypatch):
    import tensorflow as tf

    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setattr(tf, "lite", object())
    content = b"never read"
    assert export._run(content, [np.zeros((1, 2))], ["x"], None) == (None, "LiteRT is not installed; run `pip install keras_gibbs[litert]`")


def test_a_failed_conversion_leaves_the_old_files(convnet, tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(b"old file")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"old model")
    before = untouched(tmp_path)

    def broken(*args, **kwargs):
        raise RuntimeError("converter broke")

    monkeypatch.setattr(export, "_convert", broken)
    monkeypatch.setattr(keras.Model, "export", broken)
    with pytest.raises(RuntimeError, match="converter broke"):
        export_tflite(convnet, tmp_path / "model.tflite")
    with pytest.raises(RuntimeError, match="converter broke"):
        export_saved_model(convnet, saved)
    assert untouched(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ["model.tflite", "saved"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "model.lite"}, r"must end in `.tflite`.*model.lite.*Use '.*model.tflite'"),
        ({"encoding": "float17"}, r"must be one of 'auto', 'dense', 'sparse'.*'float17'"),
        ({"prefer": "small"}, r"`prefer` must be 'raw' or 'gzip'.*'small'"),
        ({"representative_data": [1]}, r"integer encodings only.*Leave it out"),
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
    with pytest.raises(ValueError, match="holds other files"):
        export_saved_model(convnet, tmp_path)
    assert (tmp_path / "file").read_text() == "not a folder"


SERVE = """
import sys
sys.modules["keras_gibbs"] = None
import numpy as np, tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[2], served.serve(tf.constant(np.load(sys.argv[3]))).numpy())
"""


def test_a_saved_model_serves_in_a_process_without_keras_gibbs_and_replaces_the_old_one(convnet, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"old model")
    (saved / "leftover").write_bytes(b"of the old model")
    export_saved_model(convnet, saved)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"] and not (saved / "leftover").exists()
    x = np.random.default_rng(2).standard_normal((5, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", SERVE, saved, tmp_path / "y.npy", tmp_path / "x.npy"], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), convnet.predict(x, verbose=0), atol=1e-4)


def test_a_pruned_model_is_stripped_first(tmp_path):
    kg = pytest.importorskip("keras_gibbs")
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(16, 3, activation="relu"), layers.Flatten(), layers.Dense(10)])
    pruned = kg.prune(model, kg.Magnitude(0.9))
    kernels = [layer.kernel.shape for layer in model.layers if hasattr(layer, "kernel")]
    zeros = sum(int(np.prod(shape)) - max(1, int(np.prod(shape)) - int(0.9 * np.prod(shape) + 0.5)) for shape in kernels)
    report = export_tflite(pruned, tmp_path / "model.tflite")
    assert all(row["zeros"] >= zeros and row["max_difference"] < 1e-4 for row in report.rows)
    assert len(kg.model.pruned_layers(pruned)) == 2
