"""Where training can run at all: not in a forked process, and not while a graph is traced."""

import os

import tensorflow as tf

_home = []


def check(what):
    """Checks that this is the process that tffed was first used in, outside of any graph.

    Args:
        what: What is to be done, for the message.

    Raises:
        RuntimeError: It is not.
    """
    if not _home:
        _home.append(os.getpid())
    if os.getpid() != _home[0]:
        raise RuntimeError(
            f"Expected {what} in the process that first used tffed. Received: a process that was "
            "forked from it, in which TensorFlow's threads are missing, so that it would wait for "
            "ever. Start processes with multiprocessing.get_context('spawn')."
        )
    if tf.inside_function():
        raise RuntimeError(
            f"Expected {what} in Python. Received: a call inside a tf.function, of which a graph "
            "is made once, and nothing is trained. Call it outside."
        )
