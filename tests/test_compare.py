"""The runner of the comparisons and its report, on a few images of noise."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import JAX, xla

import keras_gibbs as kg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import compare  # noqa: E402
import data  # noqa: E402
import networks  # noqa: E402
import report  # noqa: E402
import suites  # noqa: E402
import train_tfmot  # noqa: E402

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


def tiny(shape, classes):
    return networks.convolutions(2, shape, classes) if shape[0] > 8 else networks.mlp(shape, hidden=(12, 8), classes=classes)


@pytest.fixture
def suite(monkeypatch):
    one = suites._filters(tiny, "cifar10", epochs=2)
    one = dataclasses.replace(one, steps=2, batch=16, validated=20, reach=0.0)
    monkeypatch.setitem(suites.SUITES, "tiny", one)
    return one


def images():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (number, 4, 4, 3), dtype="uint8"), (np.arange(number) % 10).astype("int32")) for number in (70, 20, 30)]


@pytest.mark.skipif(JAX, reason="the runner has nothing of its own on a backend")
def test_a_suite_is_run_once_and_reported_at_any_time(suite, tmp_path, capsys):
    assert compare.run("tiny", suite, [0], ["magnitude"], tmp_path, images()) == 0
    assert "it follows ['edropout']" in capsys.readouterr().out
    assert compare.run("tiny", suite, [0], None, tmp_path, images()) == 4
    assert compare.run("tiny", suite, [0], None, tmp_path, images()) == 0
    results = report.finished(tmp_path / "tiny")
    assert set(results) == {"dense", "edropout", "magnitude", "random"}
    final = {name: runs[0]["final"] for name, runs in results.items()}
    assert final["dense"]["sparsity"] == 0 and final["dense"]["test_unmasked"] is None
    for name in ("magnitude", "random"):
        assert abs(final[name]["sparsity"] - final["edropout"]["sparsity"]) < 0.06
    run = results["edropout"][0]
    assert run["configuration"]["method"] == "EDropout()" and len(run["history"]["best_energy"]) == 2
    assert not list(tmp_path.rglob("*.resume")) or not any(path.is_file() for path in (tmp_path / "tiny").glob("*.resume/*"))
    table = report.rows(suite, results)
    assert [row["variant"] for row in table] == ["dense", "edropout", "magnitude", "random"]
    assert table[1]["epochs to 0 %"] == "1" and "top-1 to dense, points" in table[1] and "top-1 to dense, points" not in table[0]
    assert report.markdown(table).count("\n") == 5
    report.show(table, report.describe(results))
    pytest.importorskip("matplotlib")
    report.plot(results, suite, "tiny", tmp_path / "tiny.png")
    assert (tmp_path / "tiny.png").stat().st_size > 10_000


tfmot = pytest.mark.skipif(JAX or bool(train_tfmot.missing()), reason=f"TF-MOT runs on TensorFlow, and needs {train_tfmot.PACKAGES}")


@tfmot
def test_tfmot_trains_on_the_same_terms():
    """At sparsity 0 it takes the steps of the dense Keras 3 network; above it removes as many weights as we do."""
    network = networks.Network("resnet", {"depth": 8, "widths": (4, 4, 8)})
    suite = suites.Suite(network, "cifar10", 2, (), batch=16, augmented=True, where=networks.prunable)

    def run(method):
        return compare.train(suite, suites.Variant("one", suites._fixed(method), 2e-3), 0, {}, images())

    dense, same, half = run(None), run(train_tfmot.TFMOT(0.0, frequency=1)), run(train_tfmot.TFMOT(0.5, frequency=2))
    assert np.allclose(dense["history"]["loss"], same["history"]["loss"], atol=1e-3) and dense["history"]["loss"][1] < dense["history"]["loss"][0]
    assert same["final"]["sparsity"] == 0 and half["final"]["sparsity"] == pytest.approx(half["history"]["sparsity"][-1], abs=1e-6)
    ours = kg.prune(network((4, 4, 3), 10), kg.Magnitude(0.5), where=networks.prunable)
    assert half["final"]["sparsity"] == pytest.approx(kg.sparsity(ours), abs=1e-3)


def test_tfmots_last_update_falls_on_a_step_of_its_frequency():
    assert train_tfmot.TFMOT(0.9).steps(4212) == (0, 2100)
    assert train_tfmot.TFMOT(0.9, begin=0.25, end=0.5, frequency=7).steps(100) == (25, 53)
    assert train_tfmot.TFMOT(0.9, begin=0.5, end=0.5).steps(100) == (50, 150)


def test_batches_that_are_parts_of_a_pass_see_every_image_once_in_it():
    x, labels = np.zeros((48, 2, 2, 3), "uint8"), np.arange(48)
    batches = data.Batches(x, labels, data.Scaling(0.0, 1.0), batch_size=8, augmented=False, steps=4)
    seen = []
    for epoch in range(3):
        batches.go_to(epoch)
        seen += [batches[index][1] for index in range(len(batches))]
    assert sorted(np.concatenate(seen[:6])) == sorted(np.concatenate(seen[6:])) == list(range(48))
    assert not np.array_equal(np.concatenate(seen[:6]), np.concatenate(seen[6:]))


def test_few_seeds_have_a_range_and_five_an_interval():
    assert report.spread([0.5], 100) == "50.0"
    assert report.spread([0.5, 0.6], 100) == "55.0 (50.0 to 60.0)"
    assert report.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.0 ± 2.0"  # t(0.975, 4) = 2.776 times the standard error 0.707


def test_the_epochs_to_an_accuracy():
    run = {"history": {"val_accuracy": [0.1, 0.5, 0.4]}}
    assert [report.epochs_to(run, at) for at in (0.05, 0.5, 0.6)] == [1, 2, None]


def test_a_report_without_runs_says_what_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "extraction", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="compare.py extraction"):
        report.main()


@pytest.mark.parametrize("name, trainable, pruned", [("resnet18", 11_172_170, 20), ("alexnet", 23_272_266, 7), ("squeezenet", 727_626, 25)])
def test_the_networks_for_small_images_are_those_of_their_names(name, trainable, pruned):
    model = getattr(networks, name)()  # ResNet-18 often has BatchNorm on its three projections too, 1,792 more
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == trainable and model.output_shape == (None, 10)
    small = kg.prune(getattr(networks, name)(width=8), kg.EDropout(), seed=0)
    assert len(kg.pruned_layers(small)) == pruned


def test_a_tie_goes_to_the_first_class_and_scores_that_are_no_numbers_are_not_right():
    class Scores:
        def __init__(self, rows):
            self.rows = np.array(rows, "float32")

        def predict(self, images, **kwargs):
            return self.rows

    labels = np.array([0, 1])
    assert compare.accuracy(Scores([[3, 2, 1, 0, -1, -2, 5], [0, 9, 1, 2, 3, 4, 5]]), None, labels) == {"top1": 0.5, "top5": 1.0}
    assert compare.accuracy(Scores(np.zeros((2, 7))), None, labels) == {"top1": 0.5, "top5": 1.0}
    assert compare.accuracy(Scores(np.zeros((2, 7))), None, labels + 5) == {"top1": 0.0, "top5": 0.0}
    assert compare.accuracy(Scores(np.full((2, 7), np.nan)), None, labels) == {"top1": 0.0, "top5": 0.0}


def test_results_are_readable_json(tmp_path):
    compare.write(tmp_path / "a" / "b.json", {"one": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"one": 1}
