"""Checks of arguments, which name the argument, what it is to be and what came."""

import math
import numbers
import os

import numpy as np


def require_number(**values) -> None:
    """Raise unless every value is a finite number: `TypeError` for None, a string, a bool or an array, `ValueError` for NaN or infinity."""
    for name, value in values.items():
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} of type {type(value).__name__}.")
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number. Received: {name}={value!r}.")


def require_count(**values) -> None:
    """Raise `ValueError` unless every value is a positive int that fits into 31 bits."""
    for name, value in values.items():
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral) or not 1 <= value < 2**31:
            raise ValueError(f"`{name}` must be a positive int. Received: {name}={value!r}.")


def require_flag(**values) -> None:
    """Raise `TypeError` unless every value is True or False."""
    for name, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}.")


def require_seed(seed) -> None:
    """Raise `TypeError` unless `seed` is an int or None."""
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (numbers.Integral, type(None))):
        raise TypeError(f"`seed` must be an int, or None to draw one from Python's `random`. Received: seed={seed!r}.")


def require_path(path) -> None:
    """Raise `TypeError` unless `path` can name a file."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a string or a `pathlib.Path`. Received: path={path!r}.")
