"""What each kind of layer contributes to ghost norms.

A tap is one call of a layer: the tensors watched in it, and from the gradients d by these the
pieces of the layer's gradient, one a variable. A piece gives the inner products of the examples'
gradients and their weighted sum.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from keras import layers as L
from keras import ops

from tffed.recurrent import WATCH


class Tap(NamedTuple):
    """A call of a layer: `watched` tensors and `pieces`: `(d) -> [(variable, piece)]`."""

    watched: Any
    pieces: Callable


class Explicit(NamedTuple):
    """Gradients of each example: `[examples, values]`."""

    rows: Any

    def products(self, pairs):
        if pairs:
            return tf.matmul(self.rows, self.rows, transpose_b=True)
        return tf.reduce_sum(self.rows * self.rows, 1)

    def weighted_sum(self, shares):
        rows = tf.where(shares[:, None] > 0, self.rows, 0.0)  # what has no share may be NaN
        return tf.linalg.matvec(rows, shares, transpose_a=True)


class Outer(NamedTuple):
    """Σ_t a_t d_tᵀ: `a` is `[examples, places, in]`, `d` `[examples, places, out]`."""

    a: Any
    d: Any

    def products(self, pairs):
        if pairs or self.a.shape[1] == 1:
            left, right = self.a, self.d
            if not pairs:
                return tf.reduce_sum(left * left, [1, 2]) * tf.reduce_sum(right * right, [1, 2])
            if left.shape[1] == 1:
                left, right = left[:, 0], right[:, 0]
                return tf.matmul(left, left, transpose_b=True) * tf.matmul(
                    right, right, transpose_b=True
                )
            return Explicit(_multiplied(left, right)).products(True)
        grams = (tf.matmul(x, x, transpose_b=True) for x in self)
        return tf.reduce_sum(tf.multiply(*grams), [1, 2])

    def weighted_sum(self, shares):
        shares = shares[:, None, None]
        a = tf.where(shares > 0, self.a, 0.0)
        d = tf.math.multiply_no_nan(self.d, shares)
        a, d = (tf.reshape(x, [-1, x.shape[-1]]) for x in (a, d))
        return tf.matmul(a, d, transpose_a=True)


class Rows(NamedTuple):
    """Rows of a table: `index` is `[examples, places]`, `d` `[examples, places, width]`."""

    index: Any
    d: Any
    size: int

    def products(self, pairs):
        index, d = self.index, self.d
        if not pairs:
            same = tf.cast(index[:, :, None] == index[:, None, :], d.dtype)
            return tf.reduce_sum(same * tf.matmul(d, d, transpose_b=True), [1, 2])
        same = tf.cast(index[:, None, :, None] == index[None, :, None, :], d.dtype)
        return tf.reduce_sum(same * tf.einsum("itk,jsk->ijts", d, d), [2, 3])

    def weighted_sum(self, shares):
        d = tf.math.multiply_no_nan(self.d, shares[:, None, None])
        d = tf.reshape(d, [-1, d.shape[-1]])
        return tf.math.unsorted_segment_sum(d, tf.reshape(self.index, [-1]), self.size)


def _multiplied(a, d):
    """Σ_t a_t d_tᵀ of each example as `[examples, in · out]`."""
    return tf.reshape(tf.matmul(a, d, transpose_a=True), [-1, a.shape[-1] * d.shape[-1]])


def _product(a, d):
    """The piece of a matrix, by examples and places; gradients themselves where that is cheaper."""
    places, (n_in, n_out) = a.shape[1], (a.shape[-1], d.shape[-1])
    if places != 1 and (places is None or n_in * n_out <= places * (n_in + n_out)):
        return Explicit(_multiplied(a, d))
    return Outer(a, d)


def _summed(d, shape):
    """The piece of a variable that is broadcast to its layer's outputs from the right."""
    kept = [1] * (d.shape.rank - len(shape)) + list(shape)
    axes = [k for k in range(1, d.shape.rank) if kept[k] == 1]
    return Explicit(tf.reshape(tf.reduce_sum(d, axes), [-1, math.prod(shape)]))


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
            yield layer.bias, _summed(d, layer.bias.shape)

    activation = layer.activation or (lambda x: x)
    return {"activation": None}, lambda raw: (raw, activation), pieces


def _dense(layer, x, d):
    width = math.prod(x.shape[1:-1]) if x.shape.rank > 1 and None not in x.shape[1:-1] else -1
    places = [tf.shape(x)[0] if x.shape[0] is None else x.shape[0], width]
    return _product(*(_shaped(v, places) for v in (x, d)))


def _shaped(x, places):
    """`x` as `[examples, places, width]`."""
    shaped = tf.reshape(x, [*places, x.shape[-1]])
    shaped.set_shape([x.shape[0], None if places[1] == -1 else places[1], x.shape[-1]])
    return shaped


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
    piece = _product(*(_dense_places(v) for v in flat))
    sizes = dict(zip(kernel, layer.kernel.shape, strict=True))
    back = [[*from_in, *to_out].index(c) for c in kernel]
    return _Arranged(piece, [sizes[c] for c in (*from_in, *to_out)], back)


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


def _dense_places(x):
    known = None not in x.shape[1:-1]
    count = math.prod(x.shape[1:-1]) if known else -1
    return _shaped(x, [x.shape[0] or tf.shape(x)[0], count])


class _Arranged(NamedTuple):
    """A piece of a kernel whose dimensions are in another order."""

    piece: Any
    shape: list
    back: list

    def products(self, pairs):
        return self.piece.products(pairs)

    def weighted_sum(self, shares):
        return tf.transpose(tf.reshape(self.piece.weighted_sum(shares), self.shape), self.back)


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
        return _product(*(_dense_places(v) for v in (x, d)))
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
        return tf.reshape(tape.gradient(outputs, kernel, element[1][None]), [-1])

    like = tf.TensorSpec([math.prod(shape)], tf.float32)
    return Explicit(tf.map_fn(one, (x, d), fn_output_signature=like, parallel_iterations=1))


def _embedding(layer, inputs):
    def pieces(_, d):
        index = inputs if inputs.dtype.is_integer else tf.cast(inputs, tf.int32)
        count = tf.shape(index)[0] if index.shape[0] is None else index.shape[0]
        known = None not in index.shape[1:]
        places = math.prod(index.shape[1:]) if known else -1
        index, rows = tf.reshape(index, [count, places]), _shaped(d, [count, places])
        yield layer.embeddings, Rows(index, rows, layer.input_dim)

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
            yield gamma, _summed(d * raw, gamma.shape)
        if beta is not None:
            yield beta, _summed(d, beta.shape)

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
            yield cell.kernel, _product(tf.transpose(x, [1, 0, 2]), ds[0])
            yield cell.recurrent_kernel, _product(tf.transpose(before, [1, 0, 2]), ds[-1])
            if cell.use_bias:
                biases = tf.stack([tf.reduce_sum(d, 1) for d in ds], 1)
                yield cell.bias, Explicit(tf.reshape(biases, [-1, math.prod(cell.bias.shape)]))

        add(Tap(watched, pieces))
        return outputs

    return projected, inner, seen
