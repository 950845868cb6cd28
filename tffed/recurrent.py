"""LSTM, GRU and SimpleRNN loops with gradients of their own, for use inside a compiled round.

Keras's loop multiplies one time step's input by the kernel at a time, and TensorFlow differentiates
the loop step by step. Here the inputs of all steps are projected in one product; the loop holds
only the product with the recurrent kernel; the backward loop multiplies by derivatives that were
computed for all steps at once; and the gradient of the recurrent kernel is one product at the end.
"""

import contextlib
import functools

import keras
import tensorflow as tf

from tffed.model_call import layers


@contextlib.contextmanager
def own_loops(model):
    """While it lasts, the model's recurrent layers run these loops where they equal Keras's.

    That is so for `replaceable` layers when they get no mask. Gradients are of first order only.

    Args:
        model: A Keras model; afterwards it is as it was.
    """
    chosen = [layer for layer in layers(model) if replaceable(layer)]
    try:
        for layer in chosen:  # past Keras's __setattr__, which would track the function
            vars(layer)["inner_loop"] = functools.partial(_inner_loop, layer)
        yield
    finally:
        for layer in chosen:
            vars(layer).pop("inner_loop", None)


def replaceable(layer):
    """Whether a loop of this file computes what a layer does, if it gets no mask.

    True for Keras's own LSTM, GRU (`reset_after=True`) and SimpleRNN in float32, with the default
    activations, without dropout or state kept between batches. False where there is a GPU, for
    which Keras has cuDNN.
    """
    if type(layer) not in _RUNS or tf.config.list_logical_devices("GPU"):
        return False
    cell = layer.cell
    gate = getattr(cell, "recurrent_activation", keras.activations.sigmoid)
    return (
        cell.activation is keras.activations.tanh
        and gate is keras.activations.sigmoid
        and getattr(cell, "reset_after", True)
        and not (cell.dropout or cell.recurrent_dropout or layer.stateful)
        and getattr(layer, "use_cudnn", "auto") is not True
        and {layer.compute_dtype, cell.compute_dtype, cell.variable_dtype} == {"float32"}
    )


def _inner_loop(layer, sequences, initial_state, mask, training=False):
    """Stands in for `layer.inner_loop`: `(last output, outputs, states)`, batch first."""
    if any(m is not None for m in tf.nest.flatten(mask)):
        return type(layer).inner_loop(layer, sequences, initial_state, mask, training)
    x = tf.transpose(sequences, [1, 0, 2])
    if layer.go_backwards:
        x = tf.reverse(x, [0])
    watch = vars(layer).get(WATCH, _unwatched)
    outputs, *states = _RUNS[type(layer)](layer.cell, x, *tf.nest.flatten(initial_state), watch)
    last = states[0]
    outputs = tf.transpose(outputs, [1, 0, 2]) if layer.return_sequences else last[:, None]
    return last, outputs, states


def _run_lstm(cell, x, h, c, watch):
    kernel, recurrent, bias = _weights(cell)
    projected, _, seen = watch(x, h, tf.tensordot(x, kernel, 1) + bias)
    return seen(_lstm(projected, recurrent, h, c))


def _run_gru(cell, x, h, watch):
    kernel, recurrent, bias = _weights(cell)
    outer, inner = (bias[0], bias[1]) if cell.use_bias else (bias, bias)
    projected, inner, seen = watch(x, h, tf.tensordot(x, kernel, 1) + outer, inner)
    return seen(_gru(projected, recurrent, inner, h))


def _run_simple(cell, x, h, watch):
    kernel, recurrent, bias = _weights(cell)
    projected, _, seen = watch(x, h, tf.tensordot(x, kernel, 1) + bias)
    return seen(_simple(projected, recurrent, h))


def _unwatched(x, h, projected, inner=None):
    del x, h
    return projected, inner, lambda outputs: outputs


# The name under which a layer may carry what stands in for `_unwatched`.
WATCH = "_watch_loop"
_RUNS = {
    keras.layers.LSTM: _run_lstm,
    keras.layers.GRU: _run_gru,
    keras.layers.SimpleRNN: _run_simple,
}


def _weights(cell):
    kernel, recurrent = map(tf.convert_to_tensor, (cell.kernel, cell.recurrent_kernel))
    bias = tf.convert_to_tensor(cell.bias) if cell.use_bias else tf.zeros(kernel.shape[1])
    return kernel, recurrent, bias


@tf.custom_gradient
def _lstm(projected, recurrent, h, c):
    """`(outputs [time, batch, units], last h, last c)` of inputs projected to [time, batch, 4u]."""
    units = recurrent.shape[0]

    def step(state, projected):
        h, c = state
        i, f, g, o = tf.split(projected + tf.matmul(h, recurrent), 4, -1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        c = f * c + i * g
        h = o * tf.tanh(c)
        return (h, c), (h, c, tf.concat([i, f, g, o], -1))

    last, (hs, cs, gates) = _scan(step, (h, c), [projected], [units, units, 4 * units])

    def grad(d_hs, d_h, d_c):
        i, f, g, o = tf.split(gates, 4, -1)
        tanh_c, transposed = tf.tanh(cs), tf.transpose(recurrent)
        d_o = tanh_c * o * (1 - o)
        slopes = [g * i * (1 - i), _before(c, cs) * f * (1 - f), i * (1 - g * g), d_o]
        inputs = [d_hs, o * (1 - tanh_c * tanh_c), tf.concat(slopes, -1), f]

        def back(state, d_out, through, slopes, f):
            d_h, d_c = state
            d_h += d_out
            d_c += d_h * through
            d_z = tf.concat([d_c, d_c, d_c, d_h], -1) * slopes
            return (tf.matmul(d_z, transposed), d_c * f), (d_z,)

        first, (d_z,) = _scan(back, (d_h, d_c), inputs, [4 * units], reverse=True)
        return d_z, _product(_before(h, hs), d_z), *first

    return (hs, *last), grad


@tf.custom_gradient
def _gru(projected, recurrent, bias, h):
    """`(outputs [time, batch, units], last h)` of inputs projected to [time, batch, 3u].

    The bias is of shape [3u], or one for each time and example: [time, batch, 3u].
    """
    units, apart = recurrent.shape[0], bias.shape.rank == 3

    def step(state, projected, here=bias):
        (h,) = state
        x_z, x_r, x_g = tf.split(projected, 3, -1)
        h_z, h_r, h_g = tf.split(tf.matmul(h, recurrent) + here, 3, -1)
        z, r = tf.sigmoid(x_z + h_z), tf.sigmoid(x_r + h_r)
        g = tf.tanh(x_g + r * h_g)
        h = z * h + (1 - z) * g
        return (h,), (h, tf.concat([z, r, g, h_g], -1))

    inputs = [projected, bias] if apart else [projected]
    last, (hs, gates) = _scan(step, (h,), inputs, [units, 4 * units])

    def grad(d_hs, d_h):
        z, r, g, h_g = tf.split(gates, 4, -1)
        before, transposed = _before(h, hs), tf.transpose(recurrent)
        by_g = (1 - z) * (1 - g * g)
        by_z, by_r = (before - g) * z * (1 - z), by_g * h_g * r * (1 - r)
        slopes = tf.concat([by_z, by_r, by_g * r], -1)

        def back(state, d_out, slopes, z):
            d_h = state[0] + d_out
            d_z = tf.concat([d_h, d_h, d_h], -1) * slopes
            return (tf.matmul(d_z, transposed) + d_h * z,), (d_h,)

        (first,), (d_h,) = _scan(back, (d_h,), [d_hs, slopes, z], [units], reverse=True)
        d_z = tf.concat([d_h, d_h, d_h], -1) * slopes
        d_projected = tf.concat([d_h * by_z, d_h * by_r, d_h * by_g], -1)
        d_bias = d_z if apart else tf.reduce_sum(d_z, [0, 1])
        return d_projected, _product(before, d_z), d_bias, first

    return (hs, *last), grad


@tf.custom_gradient
def _simple(projected, recurrent, h):
    """`(outputs [time, batch, units], last h)` of inputs projected to [time, batch, u]."""
    units = recurrent.shape[0]

    def step(state, projected):
        h = tf.tanh(projected + tf.matmul(state[0], recurrent))
        return (h,), (h,)

    last, (hs,) = _scan(step, (h,), [projected], [units])

    def grad(d_hs, d_h):
        transposed = tf.transpose(recurrent)

        def back(state, d_out, slope):
            d_z = (state[0] + d_out) * slope
            return (tf.matmul(d_z, transposed),), (d_z,)

        (first,), (d_z,) = _scan(back, (d_h,), [d_hs, 1 - hs * hs], [units], reverse=True)
        return d_z, _product(_before(h, hs), d_z), first

    return (hs, *last), grad


def _scan(step, state, inputs, widths, reverse=False):
    """Runs `state, outputs = step(state, *slices)` over the first dimension of the inputs.

    Args:
        step: The function of one time step.
        state: A tuple of tensors `[batch, ...]`.
        inputs: Tensors `[time, batch, ...]`.
        widths: The sizes of the outputs' last dimensions.
        reverse: Whether to begin with the last slices; the outputs keep the order of the inputs.

    Returns:
        `(state, outputs)`: the last state and the outputs stacked to `[time, batch, width]`.
    """
    time, batch = inputs[0].shape[:2]
    steps = time or tf.shape(inputs[0])[0]
    arrays = [tf.TensorArray(tf.float32, steps, element_shape=[batch, w]) for w in widths]

    def body(k, state, arrays):
        t = steps - 1 - k if reverse else k
        state, outputs = step(state, *(x[t] for x in inputs))
        return k + 1, state, [a.write(t, out) for a, out in zip(arrays, outputs, strict=True)]

    _, state, arrays = tf.while_loop(
        lambda k, *_: k < steps, body, (tf.constant(0), state, arrays), parallel_iterations=1
    )
    stacked = [array.stack() for array in arrays]
    for outputs in stacked:  # which have lost their length, and XLA needs it
        outputs.set_shape([time, None, None])
    return state, stacked


def _before(first, series):
    """What each step of a series found: the first value, then all values but the last."""
    return tf.concat([first[None], series[:-1]], 0)


def _product(left, right):
    """The sum over time and batch of the outer products, `[left's width, right's width]`."""
    left, right = (tf.reshape(x, [-1, x.shape[-1]]) for x in (left, right))
    return tf.matmul(left, right, transpose_a=True)
