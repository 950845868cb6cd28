"""What each kind of layer contributes to ghost norms.

A tap is one call of a layer: the tensors watched in it, and from the gradients d by these the
pieces of the layer's gradient, one a variable.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from keras import layers as L
from keras import ops

from tffed.privacy.ghost_pieces import Arranged, Explicit, Finite, Rows, by_places, product, summed
from tffed.recurrent import WATCH


class Tap(NamedTuple):
    """A call of a layer: `watched` tensors and `pieces`: `(d) -> [(variable, piece)]`."""

    watched: Any
    pieces: Callable


def taps_of(layer, tape, add):
    """What to set on a layer so that its calls are taped; None: nothing of this layer is known.

    Args:
        layer: A Keras layer.
        tape: A `tf.GradientTape`, which is to watch what the layer computes.
        add: Called with a `Tap` at each call.
    """
    if not layer.trainable_variables:
        return None
    if type(layer) in (L.LSTM, L.GRU, L.SimpleRNN):
        return {WATCH: functools.partial(_watch_loop, layer, tape, add)}
    for kinds, parts in _KINDS:
        if type(layer) in kinds:
            return {"call": functools.partial(_call, layer, parts, tape, add)}
    return None


def _call(layer, parts, tape, add, inputs, *args, **kwargs):
    """Calls a layer with what `parts` replaces, watches the outputs, and finishes them."""
    replaced, finish, pieces = parts(layer, inputs)
    kept = {name: vars(layer)[name] for name in replaced}
    vars(layer).update(replaced)
    try:
        raw = type(layer).call(layer, inputs, *args, **kwargs)
    finally:
        vars(layer).update(kept)
    outputs, last = finish(raw)
    if outputs.dtype != tf.float32:
        raise ValueError(f"ghost norms are for float32; the layer {layer.name!r} has another")
    tape.watch(outputs)
    add(Tap(outputs, functools.partial(pieces, raw)))
    return last(outputs)


def _linear(kernel_piece, layer, inputs):
    """A layer that multiplies by a kernel, adds a bias and applies an activation."""

    def pieces(_, d):
        kernel = getattr(layer, "_kernel", None)
        yield (layer.kernel if kernel is None else kernel), kernel_piece(layer, inputs, d)
        if layer.bias is not None:
            yield layer.bias, summed(d, layer.bias.shape)

    activation = layer.activation or (lambda x: x)
    return {"activation": None}, lambda raw: (raw, activation), pieces


def _dense(layer, x, d):
    del layer
    return product(by_places(x), by_places(d))


def _einsum(layer, x, d):
    left, outputs = layer.equation.split("->")
    inputs, kernel = left.split(",")
    if "." in layer.equation:
        inputs, outputs = _spelled(inputs, x.shape.rank), _spelled(outputs, d.shape.rank)
    places = [c for c in inputs if c in outputs]
    from_in = [c for c in kernel if c in inputs]
    to_out = [c for c in kernel if c in outputs]
    plain = places[:1] == [inputs[0]] == [outputs[0]] and not set(from_in) & set(to_out)
    if not plain or len(places) + len(from_in) != len(inputs):
        raise ValueError(f"no ghost norms for the equation {layer.equation!r}")
    x = tf.transpose(x, [inputs.index(c) for c in (*places, *from_in)])
    d = tf.transpose(d, [outputs.index(c) for c in (*places, *to_out)])
    flat = [_merged(v, len(places)) for v in (x, d)]
    piece = product(*(by_places(v) for v in flat))
    sizes = dict(zip(kernel, layer.kernel.shape, strict=True))
    back = [[*from_in, *to_out].index(c) for c in kernel]
    return Arranged(piece, [sizes[c] for c in (*from_in, *to_out)], back)


def _spelled(letters, rank):
    """The letters of a term with capitals in place of its ellipsis."""
    missing = rank - len(letters.replace("...", ""))
    return letters.replace("...", "ABCDEFGH"[:missing])


def _merged(x, places):
    """The dimensions after the first `places` as one."""
    shape = tf.shape(x)
    merged = tf.reshape(x, tf.concat([shape[:places], [math.prod(x.shape[places:])]], 0))
    merged.set_shape([*x.shape[:places], math.prod(x.shape[places:])])
    return merged


def _conv(layer, x, d):
    if layer.groups != 1 or layer.data_format != "channels_last":
        raise ValueError(f"no ghost norms for groups or channels first in {layer.name!r}")
    shape = tuple(layer.kernel.shape)
    size = math.prod(shape[:-1])
    if type(layer) is L.Conv1D and layer.padding == "causal":
        x, padding = ops.pad(x, layer._compute_causal_padding()), "valid"
    else:
        padding = layer.padding
    run = functools.partial(
        ops.conv,
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    if size <= 2 * shape[-1]:  # few inputs: a convolution by the identity lays out the patches
        x = run(x, tf.reshape(tf.eye(size), [*shape[:-1], size]))
        return product(*(by_places(v) for v in (x, d)))
    return _kernel_by_example(run, x, d, shape)


def _depthwise(layer, x, d):
    if layer.data_format != "channels_last":
        raise ValueError(f"no ghost norms for channels first in {layer.name!r}")
    run = functools.partial(
        ops.depthwise_conv,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    return _kernel_by_example(run, x, d, tuple(layer.kernel.shape))


def _kernel_by_example(run, x, d, shape):
    """The gradients by a kernel, one example after the other: faster than a patch matrix."""

    def one(element):
        kernel = tf.zeros(shape)  # the gradient does not depend on it
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernel)
            outputs = run(element[0][None], kernel)
        row = tf.reshape(tape.gradient(outputs, kernel, element[1][None]), [-1])
        square = tf.tensordot(row, row, 1)  # while it is in the cache
        return tf.cond(tf.math.is_finite(square), lambda: row, lambda: tf.zeros_like(row)), square

    like = (tf.TensorSpec([math.prod(shape)], tf.float32), tf.TensorSpec([], tf.float32))
    return Finite(*tf.map_fn(one, (x, d), fn_output_signature=like, parallel_iterations=1))


def _embedding(layer, inputs):
    def pieces(_, d):
        index = inputs if inputs.dtype.is_integer else tf.cast(inputs, tf.int32)
        index = by_places(index[..., None])[..., 0]
        yield layer.embeddings, Rows(index, by_places(d), layer.input_dim)

    return {}, lambda raw: (raw, lambda x: x), pieces


def _normalization(scale, center, layer, inputs):
    """A layer that normalizes each example, then scales and shifts it along the last axes."""
    gamma, beta = getattr(layer, scale, None), getattr(layer, center or "", None)
    axes = [axis % inputs.shape.rank for axis in tf.nest.flatten(layer.axis)]
    trailing = axes == list(range(inputs.shape.rank - len(axes), inputs.shape.rank))
    if not trailing or getattr(layer, "rms_scaling", False):
        raise ValueError(f"no ghost norms for the axis of {layer.name!r}")

    def finish(raw):
        outputs = raw if gamma is None else raw * tf.convert_to_tensor(gamma)
        return (outputs if beta is None else outputs + tf.convert_to_tensor(beta)), lambda x: x

    def pieces(raw, d):
        if gamma is not None:
            yield gamma, summed(d * raw, gamma.shape)
        if beta is not None:
            yield beta, summed(d, beta.shape)

    off = {"scale": False, "center": False} if type(layer) is L.GroupNormalization else {}
    none = {name: None for name in (scale, center) if name}
    return off or none, finish, pieces


_KINDS = (
    ((L.Dense,), functools.partial(_linear, _dense)),
    ((L.EinsumDense,), functools.partial(_linear, _einsum)),
    ((L.Conv1D, L.Conv2D, L.Conv3D), functools.partial(_linear, _conv)),
    ((L.DepthwiseConv1D, L.DepthwiseConv2D), functools.partial(_linear, _depthwise)),
    ((L.Embedding,), _embedding),
    (
        (L.LayerNormalization, L.GroupNormalization),
        functools.partial(_normalization, "gamma", "beta"),
    ),
    ((L.RMSNormalization,), functools.partial(_normalization, "scale", None)),
)


def _watch_loop(layer, tape, add, x, h, projected, inner=None):
    """Stands in for a recurrent loop's `watch`: all is `[time, examples, width]`."""
    cell, watched = layer.cell, [projected]
    if inner is not None:
        inner = tf.broadcast_to(inner, tf.shape(projected))
        watched.append(inner)
    tape.watch(watched)

    def seen(outputs):
        before = tf.concat([h[None], outputs[0][:-1]], 0)

        def pieces(ds):
            ds = [tf.transpose(d, [1, 0, 2]) for d in ds]
            yield cell.kernel, product(tf.transpose(x, [1, 0, 2]), ds[0])
            yield cell.recurrent_kernel, product(tf.transpose(before, [1, 0, 2]), ds[-1])
            if cell.use_bias:
                biases = tf.stack([tf.reduce_sum(d, 1) for d in ds], 1)
                yield cell.bias, Explicit(tf.reshape(biases, [-1, math.prod(cell.bias.shape)]))

        add(Tap(watched, pieces))
        return outputs

    return projected, inner, seen
