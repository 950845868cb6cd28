"""How a case of the zoo is written: a function that makes a `Trial`, and what is expected."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

SIZES = (9, 6, 3)  # of the clients; with batches of 4: 4 and 4, 4 and 2, 3 and 3 examples
CASES = {}


class Case(NamedTuple):
    """A case of the zoo.

    Attributes:
        name: Its name, that of the function.
        make: `() -> Trial`.
        refused: The message that tffed refuses it with, a pattern, if it does.
    """

    name: str
    make: Callable
    refused: str | None


def case(function=None, *, refused=None, name=None):
    """Puts a function that makes a `Trial` among the cases."""

    def register(function):
        key = name or function.__name__
        assert key not in CASES, f"two cases are called {key}"
        CASES[key] = Case(key, function, refused)
        return function

    return register if function is None else register(function)


def chain(shape, *layers, dtype=None):
    """A Sequential model for examples of a shape."""
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


# Data: each argument is a function of a generator and a number of examples, or a nest of such.


def clients(*parts, sizes=SIZES, seed=0):
    """`(x, y[, sample_weight])` of clients of these sizes."""
    rng = np.random.default_rng(seed)
    return [tf.nest.map_structure(lambda make, n=n: make(rng, n), parts) for n in sizes]


def real(*shape, scale=1.0, shift=0.0, dtype="float32"):
    return lambda rng, n: (shift + scale * rng.normal(size=(n, *shape))).astype(dtype)


def share(*shape, dtype="float32"):
    """Numbers between 0.05 and 0.95."""
    return lambda rng, n: rng.uniform(0.05, 0.95, (n, *shape)).astype(dtype)


def whole(high, *shape, low=0, dtype="int32"):
    return lambda rng, n: rng.integers(low, high, (n, *shape)).astype(dtype)


def one_hot(classes, *shape):
    return lambda rng, n: np.eye(classes, dtype="float32")[rng.integers(0, classes, (n, *shape))]


def either(a, b, *shape, dtype="float32"):
    return lambda rng, n: np.where(rng.integers(0, 2, (n, *shape)), a, b).astype(dtype)


def padded(high, length, value=0, dtype="int32"):
    """Sequences of ids from 1, of unequal length, filled up at the end."""

    def make(rng, n):
        ids = rng.integers(1, high, (n, length))
        ends = rng.integers(1, length + 1, (n, 1))
        return np.where(np.arange(length) < ends, ids, value).astype(dtype)

    return make


def holes(make, value, every=3, first=0):
    """What another maker gives, with every so many entries replaced by a value."""

    def filled(rng, n):
        array = make(rng, n)
        array.reshape(-1)[first::every] = value
        return array

    return filled
