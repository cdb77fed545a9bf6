"""tf_keras models that version 0.1.0 saved load, fold and strip as they did."""

from pathlib import Path

import numpy as np
import pytest
from golden.tfmot.readings import read

FOLDER = Path(__file__).parents[1] / "golden" / "tfmot"
NAMES = sorted(path.name.removesuffix(".npz") for path in FOLDER.glob("*.npz"))


def test_the_files_are_there():
    assert len(NAMES) == 5 and all((FOLDER / name).is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_predicts_folds_strips_and_trains_as_it_did(name):
    recorded = np.load(FOLDER / f"{name}.npz")
    found = read(FOLDER / name, recorded["inputs"], recorded["labels"])
    assert np.array_equal(found["zeros"], recorded["zeros"]) and found["zeros"].sum() > 0
    assert np.array_equal(found["stripped"], found["folded"])
    for key in ("loaded", "folded", "loss"):  # to a few roundings, which differ between processors
        np.testing.assert_allclose(found[key], recorded[key], rtol=1e-5, atol=1e-5, err_msg=key)
