"""DRIVE and EDEN: a random rotation, then a few bits an entry."""

import functools
import math
import statistics

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import Coded, Stage, travels
from tffed.arguments import positive_integer
from tffed.compression.layout import (
    as_rows,
    at_unit_scale,
    from_rows,
    fused,
    packed_as,
    shapes_of,
)
from tffed.compression.rotation import BLOCK, block_for, checked_block, rotated, rotated_back
from tffed.wire import Bits

_SCALES = ("unbiased", "min_error")
_CELLS, _CELL = 512, 1 / 64


def drive(scale="unbiased", block=BLOCK) -> Stage:
    """DRIVE (Vargaftik et al. 2021): one bit an entry, the signs of the rotated update.

    Each block x of d entries is rotated, R x, and comes back as R⁻¹(S · sign(R x)) with one of

    - `"unbiased"`: S = ‖x‖² / ‖R x‖₁. Then ⟨x̂, x⟩ = ‖x‖², E x̂ = x for a uniformly random rotation,
      and E‖x̂ - x‖² → (π/2 - 1) ‖x‖², d → ∞. The mean of K clients' errors falls with K.
    - `"min_error"`: S = ‖R x‖₁ / d, and (1 - 2/π) ‖x‖²: for a single client, or error feedback.

    R is two rotations of `rotate`, one after the other, with signs of their own. After one alone
    all that is said holds of blocks without dominant entries, but [1, 1/2, 0, …] comes back as
    [5/4, 0, 0, …] on average, whatever d. After two no bias was found in 1000 draws, whatever x
    was, in blocks of 16 entries and more (it is less than 1 % of ‖x‖); in models of fewer entries
    it is up to a third.

    An update that is not finite, or whose squares overflow float32, has its client left out and
    counted.

    Args:
        scale: Which S.
        block: d, a power of two; one float32 each, 0.8 % of the bits with 4096.

    Raises:
        ValueError: An argument is outside its range.
    """
    return _rotated_codes(1, scale, block, f"drive({scale}, {block})")


def eden(bits=1, scale="unbiased", block=BLOCK) -> Stage:
    """EDEN (Vargaftik et al. 2022): `bits` bits an entry of the rotated update.

    As `drive`, whose one bit it generalises, and with its rotations R: each entry of η R x, with
    η = √d / ‖x‖, becomes the nearest of the 2**bits numbers Q that have the least mean squared
    error D for a standard normal variable (Lloyd 1982, Max 1960), and a block comes back as
    R⁻¹(S · Q), with one of

    - `"unbiased"`: S = ‖x‖² / ⟨R x, Q⟩, and E‖x̂ - x‖² → D / (1 - D) ‖x‖² as d → ∞: 0.571, 0.133,
      0.0358, 0.0096 with 1 to 4 bits;
    - `"min_error"`: S = ⟨R x, Q⟩ / ‖Q‖², and D ‖x‖²: 0.363, 0.1175, 0.0345, 0.0095.

    Args:
        bits: 1 to 8.
        scale: Which S.
        block: d, a power of two.

    Raises:
        ValueError: An argument is outside its range.
    """
    bits = positive_integer("bits", bits)
    if bits > 8:
        raise ValueError(f"`bits` must be 1 to 8. Received: bits={bits}")
    return _rotated_codes(bits, scale, block, f"eden({bits}, {scale}, {block})")


def _rotated_codes(bits, scale, block, name):
    if scale not in _SCALES:
        raise ValueError(f"`scale` must be one of {_SCALES}. Received: scale={scale!r}")
    block = checked_block(block)

    @fused
    def coded(tensors, seed):
        rows, unit = at_unit_scale(as_rows(tensors, block_for(tensors, block)))
        y = _rotated_twice(rows, seed)
        square = tf.reduce_sum(y * y, 1, keepdims=True)
        codes = _codes(y * tf.sqrt(tf.math.divide_no_nan(float(y.shape[1]), square)), bits)
        q = _numbers(codes, bits)
        along = tf.reduce_sum(y * q, 1, keepdims=True)
        if scale == "unbiased":
            s = tf.math.divide_no_nan(square, along)
        else:
            s = along / tf.reduce_sum(q * q, 1, keepdims=True)
        # Where squares overflow all codes are alike, and their scale can be anything.
        return codes, tf.where(tf.math.is_finite(square), s * unit, float("nan"))[:, 0]

    @fused
    def numbers(codes, scales, seed, shapes):
        y = _numbers(codes, bits) * scales[:, None]
        return from_rows(rotated_back(rotated_back(y, _second(seed)), seed), shapes)

    def encode(shared, client_state, value, seed):
        del shared
        seed = random.public(seed)
        codes, scales = coded(tuple(tree.leaves(value)), seed)
        return Coded((), {"codes": codes, "scales": scales, "seed": seed}), client_state, {}

    def decode(shared, payload, like):
        del shared
        side = payload.side
        found = numbers(side["codes"], side["scales"], side["seed"], shapes_of(like))
        return packed_as(like, found)

    return Stage(
        encode=encode,
        decode=decode,
        passes=lambda like: (),
        wire=travels(codes=Bits(bits)),
        bound=(lambda bound: bound) if scale == "min_error" else (lambda bound: None),
        ends=True,
        weights=True,
        name=name,
        error=lambda like: _distortion(bits) if scale == "unbiased" else 0.0,
    )


def _rotated_twice(rows, seed):
    return rotated(rotated(rows, seed), _second(seed))


def _second(seed):
    return random.fold_in(seed, 1)


def _codes(z, bits):
    """The number of the centroid nearest to each entry, from the smallest, uint8."""
    half = 2 ** (bits - 1)
    if bits == 1:
        return tf.cast(z >= 0, tf.uint8)
    centroids = lloyd_max(bits)[half:]
    bounds = (centroids[1:] + centroids[:-1]) / 2
    # No cell of the table has two bounds in it: one comparison tells on which side an entry is.
    below = np.searchsorted(bounds, np.arange(_CELLS) * _CELL)
    size = tf.abs(z)
    cell = tf.cast(tf.where(size < _CELLS * _CELL, size / _CELL, _CELLS - 1.0), tf.int32)
    code = tf.gather(tf.constant(below, tf.int32), cell)
    bound = tf.gather(tf.constant([*bounds, np.inf], tf.float32), code)
    code += tf.cast(size > bound, tf.int32)
    return tf.cast(tf.where(z >= 0, half + code, half - 1 - code), tf.uint8)


def _numbers(codes, bits):
    if bits == 1:  # the size of the two is the scale's
        return 2.0 * tf.cast(codes, tf.float32) - 1.0
    return tf.gather(tf.constant(lloyd_max(bits), tf.float32), tf.cast(codes, tf.int32))


def _distortion(bits):
    """D / (1 - D): by Lloyd and Max's condition, 1 - D is the variance of Q."""
    c = lloyd_max(bits)
    normal = np.vectorize(statistics.NormalDist().cdf)
    mass = np.diff(normal(np.concatenate([[-40.0], (c[1:] + c[:-1]) / 2, [40.0]])))
    return 1 / np.sum(mass * c**2) - 1


@functools.cache
def lloyd_max(bits):
    """The 2**bits numbers of least mean squared error for a standard normal variable, ascending.

    Each is the mean of the variable between its two bounds, and each bound lies in the middle of
    two numbers (Max 1960); by Newton's method.
    """
    normal, count = statistics.NormalDist(), 2**bits
    probability, density = np.vectorize(normal.cdf), np.vectorize(normal.pdf)
    # Where many numbers lie: their density is that of √3 times the variable (Panter & Dite 1951).
    c = math.sqrt(3) * np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    for _ in range(20):
        bounds = np.concatenate([[-40.0], (c[1:] + c[:-1]) / 2, [40.0]])
        mass, edge = np.diff(probability(bounds)), density(bounds)
        mean = -np.diff(edge) / mass
        # How the mean of a cell moves with its lower and its upper bound.
        lower = edge[:-1] * (mean - bounds[:-1]) / mass / 2
        upper = edge[1:] * (bounds[1:] - mean) / mass / 2
        slope = np.diag(1 - lower - upper) - np.diag(lower[1:], -1) - np.diag(upper[:-1], 1)
        c = c - np.linalg.solve(slope, c - mean)
    return (c - c[::-1]) / 2
