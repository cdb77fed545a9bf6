"""Which tests `make test` runs, and what they leave behind."""

import contextlib
import ctypes
import gc

import keras
import pytest

from keras_gibbs.compiled_masks import compiled_masks, traced_masks

LONG = tuple(f"test_{file}.py" for file in ("distribution", "killed", "training", "coupled", "edropout", "kinds"))  # however few tests they have


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items):
    """Marks that leave a test to `make test-all` become `slow`; what takes long comes first, so that no worker ends alone with it."""
    items.sort(key=lambda item: item.path.name not in LONG)
    backend, cases = keras.backend.backend(), {}
    for item in items:
        few = item.get_closest_marker("few")
        chosen = few.kwargs.get(backend) if few else None
        if chosen is not None:
            cases.setdefault((item.nodeid.split("[")[0], tuple(chosen)), []).append(item.callspec.id)
        if (chosen is not None and item.callspec.id not in chosen) or (backend == "jax" and item.get_closest_marker("once")):
            item.add_marker(pytest.mark.slow)
    for (test, chosen), known in cases.items():
        if len(known) > 1 and not set(chosen) <= set(known):
            raise pytest.UsageError(f"`few` of {test} names {sorted(set(chosen) - set(known))}, which are none of its cases: {known}.")


def pytest_collection_finish():
    """What was imported stays: TensorFlow's converter collects garbage every time, and would look through all of it. Tracing leaves little of it."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """Compiled programs go with the file that needed them: a worker of all tests would grow to several GB. What stays is not looked through again."""
    yield
    compiled_masks.cache_clear()
    traced_masks.cache_clear()
    keras.utils.clear_session()
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # on Linux: what is free goes back to the system, or a worker only grows
        ctypes.CDLL("libc.so.6").malloc_trim(0)
