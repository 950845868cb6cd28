"""Settings of all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _same_start():
    """Gives every test the same initial weights, whatever ran before it."""
    import keras

    keras.utils.set_random_seed(0)
