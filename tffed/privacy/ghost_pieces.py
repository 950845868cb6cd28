"""What ghost norms need of each variable: inner products of its gradients, and their weighted sum.

A piece stands for the gradients g_i of a variable by each example i. `products(pairs)` gives their
squared norms `[examples]`, or with `pairs` all inner products `[examples, examples]`;
`weighted_sum(shares)` gives Σ_i shares[i] g_i, in which an example of share 0 may hold anything.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf


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


class Finite(NamedTuple):
    """Gradients of each example, zeros where not finite, and their squared norms before that."""

    rows: Any
    squares: Any

    def products(self, pairs):
        if not pairs:
            return self.squares
        return tf.linalg.set_diag(tf.matmul(self.rows, self.rows, transpose_b=True), self.squares)

    def weighted_sum(self, shares):
        return tf.linalg.matvec(self.rows, shares, transpose_a=True)


class Outer(NamedTuple):
    """Σ_t a_t d_tᵀ: `a` is `[examples, places, in]`, `d` `[examples, places, out]`."""

    a: Any
    d: Any

    def products(self, pairs):
        if self.a.shape[1] == 1:
            left, right = (Explicit(tf.reshape(x, [-1, x.shape[-1]])) for x in self)
            return left.products(pairs) * right.products(pairs)
        if pairs:
            return Explicit(_multiplied(*self)).products(True)
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


def product(a, d):
    """The piece of a matrix, by examples and places; gradients themselves where that is cheaper."""
    places, (n_in, n_out) = a.shape[1], (a.shape[-1], d.shape[-1])
    if places != 1 and (places is None or n_in * n_out <= places * (n_in + n_out)):
        return Explicit(_multiplied(a, d))
    return Outer(a, d)


def summed(d, shape):
    """The piece of a variable that is broadcast to its layer's outputs from the right."""
    kept = [1] * (d.shape.rank - len(shape)) + list(shape)
    axes = [k for k in range(1, d.shape.rank) if kept[k] == 1]
    return Explicit(tf.reshape(tf.reduce_sum(d, axes) if axes else d, [-1, math.prod(shape)]))


def by_places(x):
    """`[examples, …, width]` as `[examples, places, width]`, with what is known of its shape."""
    places = math.prod(x.shape[1:-1]) if None not in x.shape[1:-1] else None
    rows = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    shaped = tf.reshape(x, [rows, -1 if places is None else places, x.shape[-1]])
    shaped.set_shape([x.shape[0], places, x.shape[-1]])
    return shaped


class Arranged(NamedTuple):
    """A piece of a kernel whose dimensions are in another order."""

    piece: Any
    shape: list
    back: list

    def products(self, pairs):
        return self.piece.products(pairs)

    def weighted_sum(self, shares):
        return tf.transpose(tf.reshape(self.piece.weighted_sum(shares), self.shape), self.back)
