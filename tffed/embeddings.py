"""Ids beyond an Embedding's table, which compiled code would silently clamp."""

import contextlib

import keras
import tensorflow as tf

from tffed.model_call import layers


@contextlib.contextmanager
def checked_ids(model, mask):
    """While it lasts, an id that an Embedding has no row for gives NaN where it gave a wrong row.

    TensorFlow raises an error for such an id on a CPU; XLA and GPUs take another row, or zeros. A
    NaN leaves out the client that has the id.

    Args:
        model: A Keras model; afterwards it is as it was.
        mask: The mask of the batch; with one, the call may be compiled by XLA.
    """
    needed = mask is not None or tf.config.list_logical_devices("GPU")
    chosen = [layer for layer in layers(model) if isinstance(layer, keras.layers.Embedding)]
    before = [(layer, vars(layer).get("call")) for layer in chosen if needed]
    try:
        for layer, _ in before:  # past Keras's __setattr__, which would track the function
            vars(layer)["call"] = _checked(layer.call, layer.input_dim)
        yield
    finally:
        for layer, call in before:
            vars(layer).pop("call", None)
            if call is not None:
                vars(layer)["call"] = call


def _checked(call, rows):
    def checked(inputs, *args, **kwargs):
        outputs = call(inputs, *args, **kwargs)
        known = (tf.cast(inputs, tf.int64) >= 0) & (tf.cast(inputs, tf.int64) < rows)
        missing = tf.constant(float("nan"), outputs.dtype)
        return tf.where(known[..., None], outputs, missing)

    return checked
