"""The order of the tests, and what they all share."""

import gc

LONGEST = (
    "test_tf_keras_models",
    "test_masks_of_a_random_network_read_digits",
    "test_joint_training_at_ninety_percent",
    "test_half_of_a_network_that_reads_digits",
)


def pytest_collection_modifyitems(items):
    """The longest ones first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not item.name.startswith(LONGEST))


def pytest_collection_finish():
    """What was imported stays: TensorFlow's converter collects garbage every time, and would look through all of it. Tracing leaves little of it."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
