"""How the experiments start TensorFlow."""

import os

from tffed.quiet import notes_aside


def start():
    """Loads TensorFlow without its notes, and opens its devices.

    Returns:
        The devices in words.
    """
    with notes_aside():
        import tensorflow as tf

        gpus = tf.config.list_logical_devices("GPU")
    return f"{len(gpus)} GPU" if gpus else f"{os.cpu_count()} processors"
