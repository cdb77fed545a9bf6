"""Run TF-MOT's own tests on the adapter: its `prune_low_magnitude` and its wrapper class replaced by those of `keras_gibbs.tfmot`.

    git clone https://github.com/tensorflow/model-optimization
    python benchmarks/tfmot_own_tests.py model-optimization          # on the adapter
    python benchmarks/tfmot_own_tests.py model-optimization --own    # on TF-MOT itself

The tests are not in TF-MOT's wheel, and the tree must be of the version that is installed or newer. One test is left out on the adapter: it asks that
a wrapped model cannot be loaded without `prune_scope`, and ours can. Needs pytest and tensorboard beside the tfmot extra.
"""

import argparse
import importlib
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

PACKAGE = "tensorflow_model_optimization.python.core.sparsity.keras"
FILES = ("prune_test", "prune_integration_test", "pruning_wrapper_test", "pruning_callbacks_test", "pruning_policy_test")
LEFT_OUT = "testPruneScope_NeededForKerasModel"


class Replace:
    """A pytest plugin that puts the adapter's names into the modules of the tests. TF-MOT's own modules stay as they are: the adapter is built on them."""

    def __init__(self):
        from keras_gibbs import tfmot as adapter

        self.prune = importlib.import_module(f"{PACKAGE}.prune")
        self.wrapper = importlib.import_module(f"{PACKAGE}.pruning_wrapper")
        self.names = {
            "prune": _with(self.prune, prune_low_magnitude=adapter.prune_low_magnitude),
            "pruning_wrapper": _with(self.wrapper, PruneLowMagnitude=adapter.Pruned),
            "Prune": adapter.Pruned,
        }
        self.replace(importlib.import_module(f"{PACKAGE}.test_utils"))

    def replace(self, module):
        """Give `module` the adapter's objects under the names by which it knows TF-MOT's."""
        theirs = (self.prune, self.wrapper, self.wrapper.PruneLowMagnitude)
        for name, ours in self.names.items():
            if any(getattr(module, name, None) is their for their in theirs):
                setattr(module, name, ours)

    def pytest_collection_modifyitems(self, items):
        for module in {item.module for item in items}:
            self.replace(module)


def _with(module, **names):
    """A module like `module` with some of its names replaced."""
    return types.SimpleNamespace(**{**vars(module), **names})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tree", type=Path, help="a checkout of TF-MOT")
    parser.add_argument("--own", action="store_true", help="run them on TF-MOT itself")
    arguments = parser.parse_args()
    folder = arguments.tree.resolve() / PACKAGE.replace(".", "/")
    if not (folder / "test_utils.py").exists():
        parser.error(f"there are no tests of TF-MOT in {arguments.tree}: clone https://github.com/tensorflow/model-optimization")
    sys.path.insert(0, str(arguments.tree.resolve()))

    import pytest

    options = ["-q", "-W", "ignore", "--rootdir", str(arguments.tree), "-p", "no:cacheprovider"]
    if not arguments.own:
        options += ["--deselect", f"{folder.relative_to(arguments.tree.resolve())}/prune_test.py::PruneTest::{LEFT_OUT}"]
    files = [str(folder / f"{name}.py") for name in FILES]
    sys.exit(pytest.main(options + files, plugins=[] if arguments.own else [Replace()]))


if __name__ == "__main__":
    main()
