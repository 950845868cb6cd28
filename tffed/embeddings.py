"""Ids beyond an Embedding's table, at which compiled code stops or takes another row."""

import contextlib

import keras
import tensorflow as tf

from tffed.model_call import layers

_OWN_CALLS = tuple(
    vars(kind)["call"] for kind in (keras.layers.Embedding, keras.layers.ReversibleEmbedding)
)


@contextlib.contextmanager
def checked_ids(model, mask=None):
    """While it lasts, an id that an Embedding has no row for gives NaN.

    TensorFlow ends the whole run at such an id on a CPU; XLA and GPUs take another row, or zeros. A
    NaN leaves out the client that has the id, everywhere. As in Keras, ids below 0 count from the
    table's end.

    Args:
        model: A Keras model; afterwards it is as it was.
        mask: The mask of the batch; with one, the call may be compiled by XLA.
    """
    silent = mask is not None or tf.config.list_logical_devices("GPU")
    chosen = [layer for layer in layers(model) if isinstance(layer, keras.layers.Embedding)]
    # A call of the user's own may make ids of its inputs: it is left alone where TensorFlow stops.
    chosen = [layer for layer in chosen if silent or type(layer).call in _OWN_CALLS]
    before = [(layer, vars(layer).get("call")) for layer in chosen]
    try:
        for layer, _ in before:  # past Keras's __setattr__, which would track the function
            vars(layer)["call"] = _checked(layer)
        yield
    finally:
        for layer, call in before:
            vars(layer).pop("call", None)
            if call is not None:
                vars(layer)["call"] = call


def _checked(layer):
    call, rows, own = layer.call, layer.input_dim, type(layer).call in _OWN_CALLS

    def checked(inputs, *args, **kwargs):
        if own and (any(args) or any(kwargs.values())):
            return call(inputs, *args, **kwargs)  # reverse=True: the inputs are no ids
        ids = inputs if inputs.dtype in (tf.int32, tf.int64) else tf.cast(inputs, tf.int32)
        nearest = tf.clip_by_value(ids, tf.cast(-rows, ids.dtype), tf.cast(rows - 1, ids.dtype))
        outputs = call(nearest if own else inputs, *args, **kwargs)
        # To add -0.0 changes no bit, and its gradient costs nothing.
        lost = tf.where(ids == nearest, tf.constant(-0.0, outputs.dtype), float("nan"))
        return outputs + lost[..., None]

    return checked
