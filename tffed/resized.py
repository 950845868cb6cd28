"""Layers that run with smaller kernels than they were built with."""

import contextlib

import tensorflow as tf

from tffed.model_call import layers

_SIZES = {"_input_spec", "_kernel", "filters"}


@contextlib.contextmanager
def resized(model, values):
    """While it lasts, layers take as many inputs, and give as many outputs, as their values have.

    For Dense layers and convolutions, and those that leave each unit to itself. What a layer knows
    of its size beside its values are the shape of its inputs, which Keras checks; and, if it is a
    convolution, its number of filters, to which it reshapes its bias, and the shape of the
    variable, from which Keras sees whether it is grouped.

    Args:
        model: A Keras model; afterwards it is as it was.
        values: `{id(variable): tensor}` for which the variables stand.
    """
    before = [(layer, dict(vars(layer))) for layer in layers(model)]
    try:
        for layer, known in before:
            sizes = {"_input_spec": None}
            kernel = values.get(id(known.get("_kernel")))
            if kernel is not None and "filters" in known:
                sizes["filters"] = kernel.shape[-1]
                sizes["_kernel"] = tf.cast(kernel, layer.compute_dtype)
            vars(layer).update(sizes)  # past Keras's __setattr__, which would track them
        yield
    finally:
        for layer, known in before:
            vars(layer).update({name: known[name] for name in _SIZES & known.keys()})
