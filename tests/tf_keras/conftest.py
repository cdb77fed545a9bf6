"""Importing TF-MOT changes which Keras TensorFlow has: these tests run in a process of their own, `pytest tests/tf_keras`."""

import importlib.util

import keras
import pytest
from cases import xla

MISSING = [package for package in ("tensorflow_model_optimization", "tf_keras") if importlib.util.find_spec(package) is None]
collect_ignore_glob = ["test_*.py"] if MISSING or keras.backend.backend() != "tensorflow" else []

without_xla = pytest.fixture(scope="session", autouse=True)(xla(on=False))
