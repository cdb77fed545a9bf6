"""What keras_gibbs does where TF-MOT is not wanted, or not there. What it does with it is tested in `tests/tf_keras`."""

import importlib
import sys

import keras
import pytest

on_tensorflow = keras.backend.backend() == "tensorflow"


def test_keras_gibbs_alone_brings_no_tfmot_and_without_it_the_extra_is_named(monkeypatch):
    importlib.import_module("keras_gibbs")
    assert "tensorflow_model_optimization" not in sys.modules
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"keras_gibbs\[tfmot\]" if on_tensorflow else "KERAS_BACKEND=tensorflow"):
        importlib.import_module("keras_gibbs.tfmot")
