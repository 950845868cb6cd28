"""How stages lay tensors out, and compile their arithmetic."""

import functools
import math

import tensorflow as tf

from tffed import tree

_WORTH_COMPILING = 20_000


def fused(function):
    """A pure function of tensors as one compiled pass over them, inside a graph too.

    A graph would write every step of an elementwise chain to memory. Small tensors are not worth
    the time to compile. Arguments are nests of tensors, and hashable constants.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(tensors, *others):
        if tree.size(tensors) < _WORTH_COMPILING:
            return function(tensors, *others)
        # Calling `compiled` itself would warn of tracing, once for each of five stages.
        return compiled.get_concrete_function(tensors, *others)(tensors, *others)

    return call


def at_unit_scale(x, axis=-1):
    """`(x / unit, unit)`, with which squares of small numbers do not underflow.

    `unit` is the largest magnitude along `axis`, which stays as a dimension of 1, or 1 if that is
    smaller: numbers that are too large still overflow, which has a client left out.
    """
    unit = tf.minimum(tf.reduce_max(tf.abs(x), axis, keepdims=True), 1.0)
    return tf.math.divide_no_nan(x, unit), unit


def as_rows(tensors, block, edge=False):
    """All tensors one after the other, float32 `[rows, block]`; the last row is filled up.

    Args:
        tensors: Float tensors of static shapes.
        block: Entries of a row.
        edge: Whether to fill with the last entry instead of zeros.
    """
    vector = tf.concat([tf.reshape(tf.cast(x, tf.float32), [-1]) for x in tensors], 0)
    missing = -vector.shape[0] % block
    if missing:
        filling = tf.fill([missing], vector[-1]) if edge else tf.zeros([missing])
        vector = tf.concat([vector, filling], 0)
    return tf.reshape(vector, [-1, block])


def from_rows(rows, shapes):
    """The tensors of these shapes whose `as_rows` gives `rows`, as a tuple."""
    vector, found, start = tf.reshape(rows, [-1]), [], 0
    for shape in shapes:
        size = math.prod(shape)
        found.append(tf.reshape(vector[start : start + size], shape))
        start += size
    return tuple(found)


def shapes_of(like):
    """The shapes of the leaves of a nest, as tuples of integers."""
    return tuple(tuple(leaf.shape) for leaf in tree.leaves(like))


def packed_as(like, tensors):
    """The nest `like` of these tensors, each in its dtype."""
    leaves = [tf.cast(x, leaf.dtype) for x, leaf in zip(tensors, tree.leaves(like), strict=True)]
    return tf.nest.pack_sequence_as(like, leaves)
