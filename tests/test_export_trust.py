"""Exports in situations that once went wrong: what cannot be trusted is not written, and what lies beside a file stays."""

import os
import re
import signal
import sys
import threading

import keras
import numpy as np
import pytest
from cases import JAX, xla

import keras_gibbs as kg
from keras_gibbs.export import choice, comparison, files, saved_model, tflite

pytest.importorskip("tensorflow")
layers = keras.layers
without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
converts = pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")


@pytest.fixture(autouse=True)
def same_weights_every_time():
    keras.utils.set_random_seed(0)


def sparse_dense(inputs, units=160):
    """A Dense layer whose kernel is 90 % zeros."""
    model = keras.Sequential([keras.Input((inputs,)), layers.Dense(units)])
    kernel = model.layers[0].kernel
    kernel.assign(keras.ops.convert_to_numpy(kernel) * (np.random.default_rng(0).random(kernel.shape) < 0.1))
    return model


# --- files that are wrong


@converts
def test_a_sparse_file_that_does_not_hold_the_weights_is_refused_by_name_and_left_out_by_auto(tmp_path):
    model, path = sparse_dense(7), tmp_path / "model.tflite"  # stored in blocks of 4 inputs, of which the last one does not fit
    path.write_bytes(b"old file")
    with pytest.raises(RuntimeError, match="sparse file does not hold the weights of the dense file"):
        kg.export_tflite(model, path, encoding="sparse", verbose=0)
    with pytest.raises(RuntimeError, match=r"cannot be read: its sparse storage reaches beyond a kernel of shape \(160, 7\)"):
        kg.export_tflite(model, path, encoding="sparse_dynamic_int8", verbose=0)
    assert path.read_bytes() == b"old file" and list(tmp_path.iterdir()) == [path]
    report = kg.export_tflite(model, path, verbose=0)
    assert not report.chosen["encoding"].startswith("sparse") and sum(note.startswith("Left out: sparse") for note in report.notes) == 3


@converts
@pytest.mark.parametrize("layer", [layers.Conv2DTranspose(8, 4, strides=2, padding="same"), layers.Conv2DTranspose(24, (1, 3))])
def test_a_sparse_file_predicts_what_its_plain_form_predicts_or_is_refused(layer, tmp_path):
    model = keras.Sequential([keras.Input((5, 5, 12)), layer])
    layer.kernel.assign(keras.ops.convert_to_numpy(layer.kernel) * (np.random.default_rng(0).random(layer.kernel.shape) < 0.1))
    with pytest.raises(RuntimeError, match="sparse_float16 file does not predict"):
        kg.export_tflite(model, tmp_path / "model.tflite", encoding="sparse_float16", verbose=0)
    assert kg.export_tflite(model, tmp_path / "model.tflite", encoding="sparse", verbose=0).chosen["relative_difference"] < 1e-6


@pytest.mark.parametrize(
    "output, expected, wanted",
    [
        ([1.0, 2.0], [1.0, 4.0], (2.0, 0.5)),
        ([np.nan, 4.0], [1.0, 4.0], (np.inf, np.inf)),
        ([np.inf, 4.0], [1.0, 4.0], (np.inf, np.inf)),
        ([1.0, 4.0], [np.nan, 4.0], (np.inf, np.inf)),
        ([np.nan, 3.0], [np.nan, 4.0], (1.0, 0.25)),
        ([-np.inf, 3.0], [-np.inf, 4.0], (1.0, 0.25)),
        ([-np.inf, 3.0], [np.inf, 4.0], (np.inf, np.inf)),
    ],
)
def test_a_difference_that_is_not_finite_is_infinite(output, expected, wanted):
    assert comparison.differences([np.array(output, "float32")], [np.array(expected, "float32")]) == wanted


@converts
def test_a_model_that_predicts_nan_itself_is_compared_on_the_rest(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.log(inputs))
    x = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
    report = kg.export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(x, None), verbose=0)
    assert report.chosen["relative_difference"] < 1e-5 and f"predicts NaN {np.sum(x < 0)} times" in report.notes[0]
    report = kg.export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(-np.abs(x), None), verbose=0)
    assert report.chosen["runs"] is None and "Not checked: predictions (the Keras model predicts nothing but NaN" in report.notes[0]


@converts
def test_an_encoding_asked_for_by_name_that_is_far_off_is_written_with_a_note(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[0.0], [1.0]])  # the feature that counts has a thousandth of the range of the other one
    x = (np.random.default_rng(0).standard_normal((64, 2)) * [1000.0, 1.0]).astype("float32")
    report = kg.export_tflite(model, tmp_path / "model.tflite", encoding="int8", representative_data=x, verbose=0)
    assert report.chosen["relative_difference"] > choice.LARGEST_DIFFERENCE
    assert any("'auto' would not write int8, because its outputs differ by" in note for note in report.notes)


@pytest.mark.slow
@converts
def test_a_norm_in_int8_is_called_coarse_and_not_chosen(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.UnitNormalization()])  # squares are summed in 256 steps up to the largest: short vectors are lost
    x = np.random.default_rng(0).standard_normal((64, 8, 8, 4)).astype("float32")
    report = kg.export_tflite(model, tmp_path / "model.tflite", representative_data=x, verbose=0)
    assert report.chosen["encoding"] != "int8"
    assert any(note.startswith("Coarse in the int8 file") for note in report.notes) and any(note.startswith("Not chosen: int8") for note in report.notes)


# --- the inference function


@pytest.mark.once
def test_both_exports_serve_inference_whatever_training_does(tmp_path):
    import tensorflow as tf

    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.RandomTranslation(0.3, 0.3), layers.GaussianNoise(1.0), layers.Conv2D(4, 3)])
    inputs = keras.Input((8, 8, 3))
    outputs = layers.Dense(3)(layers.Dropout(0.5)(layers.Flatten()(inner(layers.RandomBrightness(0.5, value_range=(0, 1))(inputs)))))
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).random((5, 8, 8, 3)).astype("float32")
    wanted = model.predict(x, verbose=0)
    kg.export_saved_model(model, tmp_path / "saved")
    served = tf.saved_model.load(tmp_path / "saved")
    for _ in range(2):
        np.testing.assert_allclose(served.serve(x), wanted, atol=1e-5)
    if not JAX:
        assert kg.export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(x, None), verbose=0).chosen["relative_difference"] < 1e-5


@converts
def test_files_have_the_shapes_of_the_model(tmp_path):
    import tensorflow as tf

    from keras_gibbs.export import tflite_file

    first, second = keras.Input(batch_shape=(3, 6, 4), name="a"), keras.Input(batch_shape=(3, 5), name="b")
    model = keras.Model({"a": first, "b": second}, layers.concatenate([layers.LSTM(16)(first), layers.Dense(2)(second)]))
    x = {"a": np.ones((6, 6, 4), "float32"), "b": np.ones((6, 5), "float32")}
    report = kg.export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(x, None), verbose=0)
    graphs = tflite_file.read(report.path.read_bytes())
    assert report.chosen["runs"] and not tflite_file.flex_operators(graphs)
    assert {graphs[0].tensors[number].shape for number in graphs[0].inputs} == {(3, 6, 4), (3, 5)}
    kg.export_saved_model(model, tmp_path / "saved")
    [signature] = tf.saved_model.load(tmp_path / "saved").signatures["serve"].structured_input_signature[1:]
    assert {tuple(spec.shape) for spec in signature.values()} == {(3, 6, 4), (3, 5)}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.noise, self.dense = layers.GaussianNoise(1.0), layers.Dense(3)

    def call(self, x):
        return self.dense(self.noise(x))


@converts
def test_a_subclassed_model_serves_any_batch(tmp_path):
    model = Subclassed()
    x = np.random.default_rng(0).standard_normal((7, 4)).astype("float32")
    wanted = keras.ops.convert_to_numpy(model(x))
    report = kg.export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(x[:5], None), verbose=0)
    assert report.chosen["runs"] and report.chosen["relative_difference"] < 1e-5
    import tensorflow as tf

    kg.export_saved_model(model, tmp_path / "saved")
    served = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(served.serve(x), wanted, atol=1e-5)


# --- what is said about it


@pytest.mark.parametrize(
    "labels, scores, classes",
    [
        ([0, 1, 1], (3, 1), True),
        ([[-1.0], [1.0], [1.0]], (3, 1), True),
        ([True, False, True], (3, 1), True),
        ([0.3, 1.0, 0.0], (3, 1), False),
        ([12.0, 7.0, 3.0], (3, 1), False),
        ([0, 3, 2], (3, 4), True),
        ([0, 4, 2], (3, 4), False),
        ([0, -1, 2], (3, 4), False),
        ([0.5, 1.0, 2.0], (3, 4), False),
        ([[0, 1], [1, 0], [0.9, 0.1]], (3, 2), True),
        ([[0, 1], [1, 1], [0, 0]], (3, 2), False),
        ([[2.5, -1.5], [1.0, 0.0], [0.0, 1.0]], (3, 2), False),
        ([np.nan, 1.0, 0.0], (3, 1), False),
    ],
)
def test_targets_are_classes_only_where_they_are(labels, scores, classes):
    assert comparison.are_classes(np.array(labels), np.zeros(scores)) == classes


@converts
def test_a_regression_has_no_accuracy_and_a_note(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 7)).astype("float32")
    model = keras.Sequential([keras.Input((7,)), layers.Dense(2)])
    report = kg.export_tflite(model, tmp_path / "model.tflite", encoding="dense", data=(x, x[:, :2]), verbose=0)
    assert report.accuracy is None and report.chosen["accuracy"] is None and report.chosen["relative_difference"] < 1e-5
    assert "No accuracy: y of `data` holds no classes" in report.notes[0]


@pytest.mark.slow
@converts
def test_advice_that_fails_costs_no_file(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("an operator nobody has seen")

    monkeypatch.setattr(tflite, "advise_file", fail)
    for prefer in ("raw", "arm64"):
        report = kg.export_tflite(sparse_dense(16), tmp_path / "model.tflite", prefer=prefer, verbose=0)
        assert report.path.exists() and report.advice is None and not report.chosen["encoding"].startswith("sparse")
    assert "Not found out: what runs sparse on a phone (KeyError while advising)." in str(report)


@pytest.mark.slow
@converts
def test_a_line_for_every_encoding_or_silence(tmp_path, capfd):
    report = kg.export_tflite(sparse_dense(7), tmp_path / "model.tflite")
    lines = capfd.readouterr().out.splitlines()
    assert [re.match(r"  (\w+): ", line)[1] for line in lines[1:]] == ["dense", "sparse", "float16", "sparse_float16", "dynamic_int8", "sparse_dynamic_int8"]
    assert f"  dense: {report.rows[0]['raw_bytes']:,} bytes, off by" in lines[1] and "left out" in lines[2]
    kg.export_tflite(sparse_dense(7), tmp_path / "model.tflite", encoding="dense", verbose=0)
    assert capfd.readouterr().out == ""


# --- folders, kills, threads


@pytest.mark.parametrize("other", ["README.md", ".git/HEAD", "variables/mine.txt", "assets.extra/labels.txt"])
def test_other_files_beside_a_saved_model_stay(other, tmp_path):
    saved = tmp_path / "saved"
    for name in ("saved_model.pb", other):
        (saved / name).parent.mkdir(parents=True, exist_ok=True)
        (saved / name).write_text("mine")
    with pytest.raises(ValueError, match="holds other files.*Choose a folder of its own"):
        kg.export_saved_model(sparse_dense(4), saved)
    assert (saved / other).read_text() == "mine" and (saved / "saved_model.pb").read_text() == "mine"


def test_a_link_to_a_saved_model_stays_a_link(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    kg.export_saved_model(sparse_dense(4), tmp_path / "current")
    assert (tmp_path / "current").is_symlink() and (tmp_path / "v1" / "saved_model.pb").exists()


def killed(path, exchange, die_after):
    """Replace the folder at `path` in a process that is killed after so many moves."""
    if os.fork():
        return os.waitstatus_to_exitcode(os.wait()[1])
    try:
        moves, move, swap = [], os.replace, files._exchanged

        def counted(step):
            def moved(*paths):
                done = step(*paths)
                moves.append(paths)
                if len(moves) > die_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return moved

        os.replace = counted(move)
        files._exchanged = counted(swap) if exchange else lambda *_: False
        with files.folder_beside(path) as work:
            (work / "new").mkdir()
            (work / "new" / "saved_model.pb").write_text("new")
            saved_model.replace_folder(work / "new", path, work)
    finally:
        os._exit(0)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("exchange, die_after, at_once", [(True, 0, {"old", "new"}), (False, 0, {None}), (False, 1, {"new"})])
def test_a_kill_leaves_the_old_or_the_new_model_or_the_next_export_brings_it_back(exchange, die_after, at_once, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "saved_model.pb").write_text("old")
    (tmp_path / ".model.settings").mkdir()  # of somebody else
    assert killed(path, exchange, die_after) == -signal.SIGKILL
    content = (path / "saved_model.pb").read_text() if path.exists() else None
    if exchange and content is None:
        pytest.skip("the file system cannot exchange folders")
    assert content in at_once
    with files.folder_beside(path) as mine, files.folder_beside(path):  # the second one lets the first one be
        assert (path / "saved_model.pb").read_text() == (content or "old")
        assert mine.exists() and len(list(tmp_path.iterdir())) == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".model.settings", "model"]


@converts
def test_a_full_disk_is_an_os_error(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = sparse_dense(256, 256)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # no file may grow beyond it: as if the disk were full
        with pytest.raises(OSError, match="must lie on a disk with room.*model.tflite"):
            kg.export_tflite(model, tmp_path / "model.tflite", verbose=0)
        with pytest.raises(OSError, match="must lie on a disk with room.*saved"):
            kg.export_saved_model(model, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@converts
def test_threads_may_export_at_once_and_everybody_may_print(tmp_path, capfd):
    stop, problems = threading.Event(), []

    def chat():
        count = 0
        while not stop.wait(0.01):
            count += 1
            os.write(1, f"said {count}\n".encode())
            os.write(2, f"said {count}\n".encode())
        os.write(1, f"in all {count}\n".encode())

    def export(units):
        try:
            kg.export_saved_model(sparse_dense(8, units), tmp_path / f"{units}")
            kg.export_tflite(sparse_dense(8, units), tmp_path / f"{units}.tflite", encoding="float16", verbose=0)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=export, args=(units,)) for units in (8, 300)]
    talker = threading.Thread(target=chat)
    for thread in (talker, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    talker.join()
    os.write(1, b"the end\n")
    captured = capfd.readouterr()
    count = int(re.search(r"in all (\d+)", captured.out)[1])
    assert not problems and captured.out.endswith("the end\n")
    assert captured.out.count("said") == captured.err.count("said") == count > 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["300", "300.tflite", "8", "8.tflite"]
