"""The runner of the comparisons and its report, on a few images of noise."""

import dataclasses
import multiprocessing
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import JAX, xla

import keras_gibbs as kg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy import budgets, compare, experiment, levels, methods, plots, regimes, report, runs, suites, survey, tables, train_tfmot, training
from benchmarks.common import data, networks, results

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


def perform(suite, out, *only):
    """Make the runs of a suite with seed 0."""
    variants = [variant for variant in suite.variants if not only or variant.name in only]
    return compare.perform([runs.Run("tiny", suite, variant, 0) for variant in variants], out, lambda suite: images())


@pytest.mark.skipif(JAX, reason="the runner has nothing of its own on a backend")
def test_a_suite_is_run_once_and_reported_at_any_time(suite, tmp_path, capsys):
    assert perform(suite, tmp_path, "magnitude") == 0
    assert "it follows ['edropout']" in capsys.readouterr().out
    assert perform(suite, tmp_path) == 4
    assert perform(suite, tmp_path) == 0
    found = tables.finished(tmp_path / "tiny.jsonl")
    assert set(found) == {"dense", "edropout", "magnitude", "random"}
    final = {name: runs[0]["final"] for name, runs in found.items()}
    assert final["dense"]["sparsity"] == 0 and final["dense"]["test_unmasked"] is None
    for name in ("magnitude", "random"):
        assert abs(final[name]["sparsity"] - final["edropout"]["sparsity"]) < 0.06
    run = found["edropout"][0]
    assert run["configuration"]["method"] == "EDropout()" and len(run["history"]["best_energy"]) == 2
    assert not any((tmp_path / "unfinished").iterdir())
    table = report.rows(suite, found)
    assert [row["variant"] for row in table] == ["dense", "edropout", "magnitude", "random"]
    assert table[1]["epochs to 0 %"] == "1" and "top-1 to dense, points" in table[1] and "top-1 to dense, points" not in table[0]
    assert tables.markdown(table).count("\n") == 5
    tables.show(table, tables.describe(found))
    pytest.importorskip("matplotlib")
    plots.curves(found, suite, "tiny", tmp_path / "tiny.png")
    assert (tmp_path / "tiny.png").stat().st_size > 10_000


tfmot = pytest.mark.skipif(train_tfmot.obstacle() is not None, reason=str(train_tfmot.obstacle()))


@pytest.mark.slow
@tfmot
def test_tfmot_trains_on_the_same_terms():
    """At sparsity 0 it takes the steps of the dense Keras 3 network: the same weights, images, order, penalty and learning rates."""
    network = networks.Network("resnet", {"depth": 8, "widths": (4, 4, 8)})
    suite = suites.Suite(network, "cifar10", 2, (), batch=16, augmented=True, where=networks.prunable)

    def run(method):
        return experiment.train(suite, suites.Variant("one", method, 2e-3), 0, {}, images())[0]

    dense, same = run(None), run(train_tfmot.TFMOT(0.0, frequency=1))
    for name, tolerance in (("loss", 1e-3), ("val_loss", 0.1)):  # Keras 2 takes the variance of a batch for one of the data that it is drawn from
        assert np.allclose(dense["history"][name], same["history"][name], atol=tolerance)
    assert dense["history"]["loss"][1] < dense["history"]["loss"][0] - 0.01
    assert same["final"]["sparsity"] == 0 and same["configuration"]["method"].startswith("TFMOT(sparsity=0.0")


@pytest.mark.skipif(JAX, reason="the runner has nothing of its own on a backend")
@pytest.mark.parametrize("name", ["snip", "lottery"])
def test_masks_found_on_data_and_in_rounds_are_trained_on_the_same_terms(suite, name):
    variant = suites.Variant(name, methods.SURVEY[name](0.75), 2e-3)
    result, final = experiment.train(suite, variant, 0, {}, images())
    assert abs(result["final"]["pruned_sparsity"] - 0.75) < 0.01 and len(result["history"]["val_accuracy"]) == suite.epochs
    assert kg.sparsity(final) == result["final"]["sparsity"]


def test_tfmots_last_update_falls_on_a_step_of_its_frequency():
    assert train_tfmot.TFMOT(0.9).steps(4212) == (0, 2100)
    assert train_tfmot.TFMOT(0.9, begin=0.25, end=0.5, frequency=7).steps(100) == (25, 53)
    with pytest.raises(ValueError, match="12 steps"):
        train_tfmot.TFMOT(0.9).steps(12)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of results of the smoke budget, run on parts of noise as a machine without tensorflow-datasets would."""
    folder = tmp_path_factory.mktemp("smoke")
    rng = np.random.default_rng(0)
    for split, number in (("train", 5600), ("test", 300)):
        data.write_parts(folder, "cifar10", split, rng.integers(0, 256, (number, 32, 32, 3), dtype="uint8"), np.arange(number) % 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", "--budget", "smoke", "--data", str(folder), "--out", str(folder / "results")])
        compare.main()
    return folder / "results"


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="TensorFlow writes the files, and TF-MOT needs it")
def test_the_smoke_budget_trains_strips_exports_and_reports(smoke, monkeypatch, capsys):
    results = tables.finished(smoke / "resnet8-smoke.jsonl")
    families = {"gibbs"} | ({"tfmot"} if train_tfmot.obstacle() is None else set())
    assert set(results) == {f"{family}-90" for family in families}
    for family in families:
        run = results[f"{family}-90"][0]
        assert run["final"]["pruned_sparsity"] == pytest.approx(0.9, abs=1e-3)
        assert run["final"]["sparsity"] == pytest.approx(run["history"]["sparsity"][-1], abs=1e-6)
        forms = run["final"]["files"]["forms"]
        assert forms["sparse"]["raw_bytes"] < forms["dense"]["raw_bytes"] / 2 and forms[run["final"]["files"]["auto"]]["runs"]
        assert forms["dense"]["accuracy"] == pytest.approx(run["final"]["test"]["top1"], abs=0.01)
        assert len(run["history"]["val_accuracy"]) == 2 and run["cpu_seconds"] > 0 and run["environment"]["versions"]["tensorflow"]
    assert results["gibbs-90"][0]["history"]["beta"][-1] == 1e4
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["report.py", "resnet8-smoke", "--results", str(smoke), "--markdown"])
    report.main()
    printed = capsys.readouterr().out
    assert "| gibbs |" in printed and ("less TF-MOT" in printed) == ("tfmot" in families)
    for name in ("sparsity", "bytes", "epochs"):
        assert (smoke / f"resnet8-smoke-{name}.png").stat().st_size > 10_000
    check_update(smoke, monkeypatch)


def check_update(smoke, monkeypatch):
    """The tables between marks in a Markdown file are written anew, and nothing else of it is."""
    page = smoke / "page.md"
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(smoke), "--update", str(page)])
    marks = "# Page\n<!-- report resnet8-smoke accuracy -->{}<!-- end -->\nText.\n<!-- report resnet8-smoke -->{}<!-- end -->\n"
    page.write_text(marks.format("", "\nold\n"))
    report.main()
    first = page.read_text()
    report.main()
    assert page.read_text() == first  # and again comes to the same
    one, both = re.findall("smoke[ a-z]*-->(.*?)<!-- end", first, re.DOTALL)
    assert "| gibbs |" in one and "auto kB" not in one and "auto kB" in both and "old" not in both
    assert marks.format(one, both) == first
    broken = {
        "# Page\n": "0 such pairs",
        marks.replace("<!-- end -->", "", 1): "1 such pairs and 2",
        marks.replace("accuracy", "nothing"): "no table `nothing`",
    }
    for text, message in broken.items():
        page.write_text(text)
        with pytest.raises(SystemExit, match=message):
            report.main()
        assert page.read_text() == text


@pytest.mark.parametrize("name", budgets.BUDGETS)
def test_a_budget_names_runs_that_there_are_and_none_twice(name):
    runs = list(budgets.BUDGETS[name].runs())
    places = [run.unfinished("results") for run in runs]
    assert len(set(places)) == len(places) > 1
    if name == "full":
        assert {run.suite.epochs for run in runs} == {200} and runs[0].variant.name == "gibbs-recommended-90" and runs[0].name == "resnet56-full"
    if name == "long":
        assert {run.variant.level for run in runs[:40]} == {90, None} and all(run.suite.minutes < 20 for run in runs)
        starts = {run.start("results") for run in runs if run.suite.start}
        assert starts and starts <= {run.weights("results") for run in runs}
        plan = budgets.BUDGETS[name].plan()
        assert sum(int(row["runs"]) for row in plan[:-1]) == len(runs) and float(plan[-1]["minutes"]) <= 12 * 60


def test_tfmot_is_left_out_with_a_statement_where_it_cannot_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "obstacle", lambda: "TF-MOT is TensorFlow's")
    suite = suites.SUITES["resnet8"]
    assert compare.perform([runs.Run("resnet8", suite, suite.variant("tfmot-98"), 0)], tmp_path, None) == 0
    assert "Left out: resnet8, tfmot-98, seed 0: TF-MOT is TensorFlow's." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="test_resume.py has what depends on the backend")
def test_a_run_that_is_cut_off_goes_on_with_its_whole_history(suite, tmp_path, monkeypatch):
    longer, variant = dataclasses.replace(suite, epochs=3), suites.Variant("gibbs", kg.Gibbs(0.5), 1e-2)
    begin, stop = training.Record.begin, [None]

    def cut(record, epoch, logs=None):
        if epoch == stop[0]:
            raise KeyboardInterrupt
        begin(record, epoch)

    def train(name):
        return experiment.train(longer, variant, 0, {}, images(), tmp_path / name)[0]

    monkeypatch.setattr(training.Record, "begin", cut)
    whole = train("whole")
    stop[0] = 2
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    stop[0] = 0  # an epoch that is not trained again
    resumed = train("cut")
    assert resumed["history"] == whole["history"] and len(whole["history"]["beta"]) == 3
    assert resumed["final"] == whole["final"]


def fake(accuracies, removed=0.9):
    """Results of one variant, by seed."""
    return {seed: {"final": {"test": {"top1": value / 100}, "pruned_sparsity": removed}} for seed, value in enumerate(accuracies)}


def test_differences_are_paired_and_a_verdict_needs_five_seeds():
    results = {"tfmot-90": fake([60, 62, 64, 66, 68]), "gibbs-90": fake([61, 64, 65, 68, 69.5]), "magnitude-90": fake([59, 61]), "edropout-90": fake([50], 0.7)}
    table = levels.against_rival(suites.SUITES["resnet8"], results)
    assert [row["less TF-MOT, points"] for row in table] == ["gibbs", "magnitude", "edropout"]
    assert [row["90 %"] for row in table] == ["+1.5 ± 0.6 (5), ahead", "-1.0 (2)", "-10.0 (1) at 70.0 %"]
    noisy = {"magnitude-shape-90": results["tfmot-90"], "gibbs-recommended-90": results["gibbs-90"], "gibbs-90": results["gibbs-90"]}
    assert levels.noise(suites.SUITES["resnet8"], noisy) == [{"less no noise, points": "gibbs-recommended", "90 %": "+1.5 ± 0.6 (5), ahead"}]
    other = dataclasses.replace(suites.SUITES["resnet8"], rival="magnitude")
    assert [row["90 %"] for row in levels.against_rival(other, results)] == ["+1.0 (2)", "+2.5 (2)", "-9.0 (1) at 70.0 %"]
    assert levels.verdict([1.0, -1.0, 1.0, -1.0, 0.5]).endswith("undecided") and levels.verdict([-1.0, -1.1, -1.2, -1.0, -0.9]).endswith("behind")
    rows = levels.accuracies(suites.SUITES["resnet8"], results)
    assert rows[0] == {"test accuracy, %": "tfmot", "90 %": "64.0 ± 3.2 (5)"} and rows[-1]["90 %"] == "50.0 (1) at 70.0 %"


def test_the_survey_is_a_table_of_three_seeds_with_the_best_method_first():
    def run(top1):
        return {"final": {"test": {"top1": top1}, "pruned_sparsity": 0.9}}

    known = {"dense": {0: run(0.7)}, "tfmot-90": {0: run(0.6), 1: run(0.62)}, "set-90": {0: run(0.58)}, "lottery-90": {0: run(0.63), 1: run(0.64), 7: run(0.1)}}
    assert survey.table({name: known[name] for name in ("dense", "tfmot-90")}) == []
    rows = survey.table(known)
    assert [row["method"] for row in rows] == ["not pruned", "lottery", "tfmot", "set"]
    assert rows[1]["test accuracy at 90 %"] == "63.5 ± 0.7 (2)" and rows[1]["less TF-MOT at 90 %"] == "+2.5 (2)" and rows[1]["trainings"] == "4"
    assert rows[3]["less TF-MOT at 90 %"] == "-2.0 (1)" and not rows[3]["test accuracy at 95 %"]
    assert set(survey.NEW) == set(methods.SURVEY)


def test_regimes_stand_in_one_table_and_one_plot(tmp_path, monkeypatch, capsys):
    for name, ahead in (("few-images", 1.5), ("pretrained", -0.5)):
        rival = f"{suites.SUITES[name].rival}-90"
        for variant, others in (("magnitude-shape-90", [60, 62, 64, 66, 68]), ("gibbs-recommended-90", [60 + ahead, 62 + ahead]), (rival, [60])):
            for seed, result in fake(others).items():
                results.append(tmp_path / f"{name}.jsonl", {"suite": name, "variant": variant, "seed": seed} | result)
    rows = regimes.table(regimes.found(tmp_path))
    assert [row["the noise adds"] for row in rows] == ["+1.5 (2)", "-0.5 (2)"] and [row["ahead of TF-MOT"] for row in rows] == ["+1.5 (1)", "-0.5 (1)"]
    page = tmp_path / "page.md"
    page.write_text("<!-- report regimes --><!-- end -->")
    monkeypatch.setattr(sys, "argv", ["report.py", "regimes", "--markdown", "--results", str(tmp_path), "--update", str(page)])
    report.main()
    assert tables.markdown(rows) in capsys.readouterr().out and tables.markdown(rows) in page.read_text()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "regimes.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "words, message",
    [
        (["resnet8", "--only", "gibbs"], "unknown variants ['gibbs']"),
        (["resnet8", "--budget", "cpu"], "a budget says by itself"),
        ([], "name a suite"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err


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
    assert tables.spread([0.5], 100) == "50.0"
    assert tables.spread([0.5, 0.6], 100) == "55.0 (50.0 to 60.0)"
    assert tables.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.0 ± 2.0"  # t(0.975, 4) = 2.776 times the standard error 0.707


def test_the_epochs_to_an_accuracy():
    run = {"history": {"val_accuracy": [0.1, 0.5, 0.4]}}
    assert [report.epochs_to(run, at) for at in (0.05, 0.5, 0.6)] == [1, 2, None]


def test_a_report_without_runs_says_what_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "extraction", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="compare.py extraction"):
        report.main()


@pytest.mark.skipif(JAX, reason="counts of a network that no backend changes")
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
    assert experiment.accuracy(Scores([[3, 2, 1, 0, -1, -2, 5], [0, 9, 1, 2, 3, 4, 5]]), None, labels) == {"top1": 0.5, "top5": 1.0}
    assert experiment.accuracy(Scores(np.zeros((2, 7))), None, labels) == {"top1": 0.5, "top5": 1.0}
    assert experiment.accuracy(Scores(np.zeros((2, 7))), None, labels + 5) == {"top1": 0.0, "top5": 0.0}
    assert experiment.accuracy(Scores(np.full((2, 7), np.nan)), None, labels) == {"top1": 0.0, "top5": 0.0}


def write_lines(file, process):
    for number in range(20):
        results.append(file, {"process": process, "number": number, "text": "x" * 5000})


def test_processes_side_by_side_write_whole_lines_to_one_file(tmp_path):
    file, context = tmp_path / "new" / "suite.jsonl", multiprocessing.get_context("fork")
    processes = [context.Process(target=write_lines, args=(file, process)) for process in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = [(line["process"], line["number"]) for line in results.read(file)]
    assert sorted(found) == [(process, number) for process in range(3) for number in range(20)]
    assert list(file.parent.iterdir()) == [file]


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "suite.jsonl"
    results.append(file, {"one": 1})
    with pytest.raises(TypeError):
        results.append(file, {"two": object()})
    assert results.read(file) == [{"one": 1}] and results.read(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(JAX, reason="the runner has nothing of its own on a backend")
def test_a_run_that_another_process_is_at_is_left_to_it(suite, tmp_path, capsys):
    run = runs.Run("tiny", suite, suite.variant("dense"), 0)
    with compare.taken(run, tmp_path) as mine:
        assert mine and perform(suite, tmp_path, "dense") == 0
    assert "Left to another process: tiny, dense, seed 0." in capsys.readouterr().out
    assert perform(suite, tmp_path, "dense") == 1


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the runner has nothing of its own on a backend")
def test_all_variants_of_a_seed_start_from_one_trained_network(suite, tmp_path, monkeypatch, capsys):
    variants = (suites.Variant("dense", None, 0.0), suites.Variant("magnitude", kg.Magnitude(0.0), 0.0))
    never = dataclasses.replace(suite, start="tiny", epochs=1, variants=variants)
    monkeypatch.setitem(suites.SUITES, "later", never)
    later = [runs.Run("later", never, variant, 0) for variant in never.variants]
    assert compare.perform(later, tmp_path, lambda suite: images()) == 0
    assert "it starts from the trained network of `compare.py tiny --only dense --seeds 0`" in capsys.readouterr().out
    assert perform(suite, tmp_path, "dense") == 1
    assert compare.perform(later, tmp_path, lambda suite: images()) == 2
    trained = tables.finished(tmp_path / "tiny.jsonl")["dense"][0]
    for variant in tables.finished(tmp_path / "later.jsonl").values():  # at a learning rate of 0 nothing moves
        assert variant[0]["final"]["test"] == trained["final"]["test"] and variant[0]["configuration"]["start"] == "tiny"
    (tmp_path / "weights" / "tiny-seed0.npz").unlink()
    assert perform(suite, tmp_path, "dense") == 1  # the weights are made again


def test_training_images_are_limited_and_the_others_are_not(tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", 30), ("test", 10)):
        data.write_parts(tmp_path, "cifar10", split, rng.integers(0, 256, (number, 32, 32, 3), dtype="uint8"), np.arange(number) % 10)
    few = dataclasses.replace(suites.SUITES["few-images"], validation=8, images=5)
    training_images, validation, test = compare.load_images(few, tmp_path)
    assert [len(part[0]) for part in (training_images, validation, test)] == [5, 8, 10]
    assert training_images[0].shape[1:] == (16, 16, 3) and test[0].dtype == "uint8"


def test_halved_images_are_means_of_four_pixels():
    pixels = np.array([[0, 1, 255, 255], [1, 0, 255, 254]], "uint8")[None, :, :, None]
    assert data.halved(pixels).tolist() == [[[[1], [255]]]]  # 0.5 is rounded up


def test_every_line_of_results_names_its_suite_and_its_versions():
    for file in results.RESULTS.glob("*.jsonl"):
        lines = results.read(file)
        assert lines
        if "variant" in lines[0]:
            assert {line["suite"] for line in lines} == {file.stem} and all(line["seed"] >= 0 for line in lines)
            assert all(line["environment"]["versions"]["keras"] for line in lines)
