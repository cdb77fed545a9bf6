"""Every `>>>` line of the docstrings and every Python block of the README runs, on a small model and small data; and gives what it says, where it says so.

The lines of the tf_keras adapter need a process that runs tf_keras, and are left to the tests of the adapter; a budget in bytes, which converts the model many
times, to `test_budget.py`.
"""

import doctest
import importlib
import re
import warnings
from pathlib import Path

import cases
import keras
import numpy as np
import pytest

import keras_gibbs as kg

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "tfmot" not in block]

pytestmark = pytest.mark.skipif(cases.JAX, reason="the same lines as on TensorFlow, which exports, too")
without_xla = pytest.fixture(scope="module", autouse=True)(cases.xla(False))


def documented():
    root = Path(kg.__file__).parent  # files, not packages, which would be imported to be walked
    paths = sorted(path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py") if path.relative_to(root).parts[0] != "tfmot")
    modules = [".".join(path.parts) for path in paths if path.name != "__init__" and path.name != "__main__"]
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for name in ["keras_gibbs", *modules] for test in finder.find(importlib.import_module(name)) if test.examples]


def network():
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(8, 3, activation="relu", name="conv"), layers.Flatten(), layers.Dense(10, name="head")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture
def names_in(tmp_path, monkeypatch):
    """From an example to the names that it takes for granted; trainings are of two epochs."""
    monkeypatch.chdir(tmp_path)
    fit = keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda self, *args, epochs=1, **kwargs: fit(self, *args, epochs=min(2, epochs), **kwargs | {"verbose": 0}))
    rng = np.random.default_rng(0)
    x, y = rng.random((256, 8, 8, 1), "float32"), rng.integers(0, 10, 256)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def pruned():
        model = kg.prune(network(), kg.Magnitude(0.9))
        model.compile("adam", loss)
        return model

    given = {"keras": keras, "kg": kg, "np": np, "loss": loss, "x": x, "y": y, "images": x, "train_and_validate": lambda model: None}
    given |= {"tf": pytest.importorskip("tensorflow")}
    given |= {f"{name}_{part}": value for part in ("train", "val", "test") for name, value in (("x", x), ("y", y))}
    made = {"pruned": pruned, "final": lambda: kg.strip_pruning(pruned())} | dict.fromkeys(("model", "trained", "untrained", "fresh_model"), network)
    return lambda source: given | {name: make() for name, make in made.items() if re.search(rf"\b{name}\b", source)}


@pytest.mark.parametrize("test", documented(), ids=lambda test: test.name.removeprefix("keras_gibbs."))
def test_the_lines_of_a_docstring_run(test, names_in):
    names = test.globs | names_in("".join(example.source for example in test.examples))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in test.examples:
            if "tflite_bytes" in example.source:
                continue
            if example.want and "\n" not in example.source.strip():
                assert repr(eval(example.source, names)) == example.want.strip(), example.source
            else:
                exec(example.source, names)


def test_the_blocks_of_the_readme_run(names_in):
    assert len(BLOCKS) == 3
    names = names_in("".join(BLOCKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in BLOCKS:
            exec(block, names)
