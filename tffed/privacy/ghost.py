"""Clipped sums of gradients without the gradients: ghost norms.

The gradient of a weight matrix by one example is Σ_t a_t d_tᵀ over the places t where the layer
applies it (one, for a vector): a its input, d the gradient of that example's loss by its output. So
one backward pass, to the layers' outputs, gives the norms of all examples' gradients and, with each
d multiplied by its example's share, their clipped sum (Goodfellow 2015; Li et al. 2022; Bu et al.
2023).
"""

import contextlib

import keras
import tensorflow as tf

from tffed.maskable import gives_each_a_value
from tffed.model_call import layers
from tffed.privacy.ghost_layers import taps_of


def check(model):
    """Checks what does not show on random examples: how the loss is put together.

    Raises:
        ValueError: The loss or its computation is not Keras's own, or works on other floats.
    """
    foreign = [layer for layer in layers(model) if not _known(layer)]
    if foreign:
        raise ValueError(
            f"{type(foreign[0]).__name__} is no layer of Keras's, and what it makes of an example "
            "may depend on how many others there are"
        )
    own = type(model).compute_loss.__module__.startswith("keras.")
    if not own or not all(gives_each_a_value(loss) for loss in tf.nest.flatten(model.loss)):
        raise ValueError("the loss is not one of Keras's that give each example a value")
    if any(getattr(layer, "mask_zero", False) or _masks(layer) for layer in layers(model)):
        raise ValueError("Keras's masks weigh the examples of a batch by one another")


def _known(layer):
    """Whether a layer is known to treat the examples of a batch apart, however many they are."""
    code = [type(layer).call, type(layer).__call__]
    keras_own = all(getattr(one, "__module__", "").startswith("keras.") for one in code)
    return keras_own and not isinstance(layer, keras.layers.Lambda)


def _masks(layer):
    own = type(layer).compute_mask.__module__.startswith("keras.")
    return isinstance(layer, keras.layers.Masking) or not own


def clipped_sum(model, keras_model, weights, batch, seed, mask, clipping):
    """The clipped sum of a batch, by variables, and the sums of `FunctionalModel.grad`.

    Raises:
        ValueError: A trainable variable is not used exactly once, in a layer known here.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        with tapped(keras_model, tape) as taps:
            loss, _, sums = model.forward(weights, batch, seed, mask)
        value = loss * sums[1]  # the number of examples
    watched = [tap.watched for tap in taps]
    errors = tape.gradient(value, watched, unconnected_gradients="zero")
    found = [pair for tap, d in zip(taps, errors, strict=True) for pair in tap.pieces(d)]
    pieces = {id(variable): piece for variable, piece in found}
    if len(pieces) < len(found) or not pieces.keys() >= {id(v) for v in model.variables}:
        raise ValueError("a trainable variable is not used once, by a layer with ghost norms")
    pieces = [pieces[id(variable)] for variable in model.variables]
    shares = clipping.shares(tf.add_n([piece.products(clipping.pairs) for piece in pieces]))
    shapes = [variable.shape for variable in model.variables]
    total = [tf.reshape(p.weighted_sum(shares), s) for p, s in zip(pieces, shapes, strict=True)]
    return total, sums


@contextlib.contextmanager
def tapped(model, tape):
    """While it lasts, the calls of a model's layers that have weights are recorded in a list."""
    taps, undo = [], []
    try:
        for layer in layers(model):
            for name, value in (taps_of(layer, tape, taps.append) or {}).items():
                vars(layer)[name] = value  # past Keras's __setattr__, which would track it
                undo.append((layer, name))
        yield taps
    finally:
        for layer, name in undo:
            vars(layer).pop(name, None)
