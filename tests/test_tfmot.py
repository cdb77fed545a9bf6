"""The adapter for TF-MOT. Importing TF-MOT changes which Keras TensorFlow has, so everything that needs it runs in a process of its own."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

on_tensorflow = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not on_tensorflow, reason="tf_keras needs TensorFlow")
def test_tf_keras_models():
    missing = [package for package in ("tensorflow_model_optimization", "tf_keras") if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {missing}; pip install -e '.[tfmot]'")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"KERAS_BACKEND": "tensorflow", "KERAS_GIBBS_XLA": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    command += [str(Path(__file__).with_name(name)) for name in ("in_tf_keras.py", "golden_in_tf_keras.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_keras_gibbs_alone_brings_no_tfmot_and_without_it_the_extra_is_named(monkeypatch):
    importlib.import_module("keras_gibbs")
    assert "tensorflow_model_optimization" not in sys.modules
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"keras_gibbs\[tfmot\]" if on_tensorflow else "KERAS_BACKEND=tensorflow"):
        importlib.import_module("keras_gibbs.tfmot")
