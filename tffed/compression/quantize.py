"""Uniform quantisation: each entry as one of a few evenly spaced numbers."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import Coded, Stage, travels
from tffed.arguments import positive, positive_integer
from tffed.compression.layout import (
    as_rows,
    at_unit_scale,
    from_rows,
    fused,
    packed_as,
    shapes_of,
)
from tffed.wire import Bits, Digits, Entropy


class Grid(NamedTuple):
    """Evenly spaced numbers for the rows of a matrix.

    Attributes:
        scales: `(x) -> scales`: from `[rows, n]` to `[rows, k]`, what the server has to know.
        place: `(x, scales) -> place`: where on the grid each |entry| lies, from 0 to `steps`.
        number: `(codes, scales) -> x`, the numbers that codes stand for.
        steps: The largest code; if `signed`, that of entries that are not negative.
        signed: Whether codes are `steps + sign(x) · place`, else just the place.
        coarse: `(n, stochastic) -> bool`: whether, in error feedback, residuals of rows of n
            entries would grow without end.
        error: `(n) -> float`: about E‖x̂ - x‖² / ‖x‖² of n normal numbers, rounded at random.
    """

    scales: Callable
    place: Callable
    number: Callable
    steps: int
    signed: bool
    coarse: Callable
    error: Callable


def quantize(bits=8, *, scale="range", block=None, stochastic=True, entropy=False) -> Stage:
    """Sends each entry as one of evenly spaced numbers, a code of `bits` bits.

    With a row of n entries x, a tensor or a block, and s = 2**(bits - 1) - 1:

    - `scale="range"`: the 2**bits numbers from min x to max x (Suresh et al. 2017; with 1 bit it
      is their stochastic binary quantisation). E‖x̂ - x‖² ≤ n Δ² / 4 with Δ = (max x - min x) /
      (2**bits - 1).
    - `scale="l2"`: QSGD (Alistarh et al. 2017), ‖x‖₂ · {-s, …, s} / s, with
      E‖x̂ - x‖² ≤ min(n / s², √n / s) ‖x‖².
    - `scale="max"`: the same with max |x| in place of ‖x‖₂: Δ = max |x| / s.

    An entry between two numbers becomes the upper one with the probability that makes x̂ unbiased,
    or the nearest one. A constant row is exact with "range", a zero row with all. A row that holds
    a NaN or an infinity, or whose range or norm overflows float32, comes out as NaN: its client is
    left out and counted.

    Args:
        bits: 1 to 16; at least 2 with "l2" and "max", whose numbers have signs.
        scale: What spans the numbers, one (or, with "range", two) float32 a row beside the codes.
        block: Entries of a row, of all tensors laid out as one vector; None: a tensor is a row.
        stochastic: Whether to round at random, without bias; else to the nearest.
        entropy: Whether codes are compressed further, which pays where most are alike: many bits
            of "l2", or few of any. Needs zstandard.

    Raises:
        ValueError: An argument is outside its range.
    """
    bits = positive_integer("bits", bits)
    if scale not in _GRIDS:
        raise ValueError(f"`scale` must be one of {tuple(_GRIDS)}. Received: scale={scale!r}")
    least = 1 if scale == "range" else 2
    if not least <= bits <= 16:
        raise ValueError(
            f"`bits` must be {least} to 16 with scale={scale!r}. Received: bits={bits}"
        )
    bits = int(bits)
    if block is not None:
        block = positive_integer("block", block)
    codec = Entropy(bits) if entropy else Bits(bits)
    extras = ("" if stochastic else ", nearest") + (", entropy" if entropy else "")
    name = f"quantize({bits}, {scale}, {block}{extras})"
    return _on_grid(_GRIDS[scale](bits), codec, name, block, stochastic)


def ternary(clip=None) -> Stage:
    """TernGrad (Wen et al. 2017): x̂ = s · sign(x) · b with s = max |x| and P(b = 1) = |x| / s.

    Unbiased, each tensor with its own s; five entries travel a byte.

    Args:
        clip: c > 0: entries are first clipped to ±c σ of their tensor, with σ its standard
            deviation (2.5 in the paper), or the size of its mean where that is larger: else alike
            entries would be clipped to nothing. That makes s, and so the variance, smaller, and
            biases the few large entries.

    Raises:
        ValueError: `clip` is not positive.
    """
    if clip is not None:
        clip = positive("clip", clip)

    def clipped(x):
        scaled, unit = at_unit_scale(x)
        size = tf.maximum(tf.math.reduce_std(scaled), tf.abs(tf.reduce_mean(scaled)))
        most = clip * size * unit
        return tf.where(tf.abs(x) <= most, x, tf.sign(x) * most)  # NaN where that is NaN

    before = clipped if clip is not None else tf.identity
    return _on_grid(_by_max(1), Digits(3), f"ternary({clip})", before=before)


def _on_grid(grid, codec, name, block=None, stochastic=True, before=tf.identity):
    """The stage that sends codes on a grid."""
    coded, numbers = _coder(grid, block, stochastic, before), _decoder(grid, block)

    def longest(like):
        if block is None:
            return max(tree.size(x) for x in tree.leaves(like))
        return min(block, tree.size(like))

    def error(like):
        if grid.signed and not stochastic:  # 0 is on the grid: no error exceeds its entry
            return 0.0
        return grid.error(longest(like)) * (1.0 if stochastic else 0.5)

    def encode(shared, client_state, value, seed):
        del shared
        codes, scales = coded(tuple(tree.leaves(value)), seed)
        return Coded((), {"codes": codes, "scales": scales}), client_state, {}

    def decode(shared, payload, like):
        del shared
        side = payload.side
        return packed_as(like, numbers(side["codes"], side["scales"], shapes_of(like)))

    return Stage(
        encode=encode,
        decode=decode,
        passes=lambda like: (),
        wire=travels(codes=codec),
        ends=True,
        weights=True,
        name=name,
        expands=lambda like: grid.coarse(longest(like), stochastic),
        error=error,
    )


def _coder(grid, block, stochastic, before):
    """`(tensors, seed) -> (codes, scales)`, the codes of each tensor or, with blocks, of all."""

    def rows_of(tensors):
        if block is not None:
            return [as_rows(tensors, block, edge=not grid.signed)]
        return [tf.reshape(tf.cast(x, tf.float32), [1, -1]) for x in tensors]

    @fused
    def coded(tensors, seed):
        codes, scales, start = [], [], 0
        for x in rows_of(tensors):
            x = before(x)
            size = tree.size(x)
            finite = tf.reduce_all(tf.math.is_finite(x), -1, keepdims=True)
            found = grid.scales(x if size else tf.zeros([1, 1]))  # no entries have no range
            scales.append(tf.where(finite, found, float("nan")))
            # A half rounds to the nearest.
            u = tf.reshape(random.uniform(size, seed, start), x.shape) if stochastic else 0.5
            codes.append(_code(grid, x, scales[-1], u))
            start += size
        if block is not None:
            codes = from_rows(codes[0], [(sum(tree.size(x) for x in tensors),)])
        else:
            codes = [tf.reshape(c, x.shape) for c, x in zip(codes, tensors, strict=True)]
        return tuple(codes), tf.concat(scales, 0)

    return coded


def _decoder(grid, block):
    """`(codes, scales, shapes) -> tensors`."""

    @fused
    def numbers(codes, scales, shapes):
        if block is not None:
            return from_rows(grid.number(as_rows(codes, block), scales), shapes)
        return tuple(
            tf.reshape(grid.number(tf.cast(c, tf.float32), s), shape)
            for c, s, shape in zip(codes, tf.unstack(scales), shapes, strict=True)
        )

    return numbers


def _code(grid, x, scales, u):
    """The codes of the entries, uint8 or uint16; an entry that is not finite has any."""
    place = grid.place(x, scales)
    low = tf.floor(place)
    code = low + tf.cast(place - low > u, tf.float32)
    code = tf.where(code <= grid.steps, code, float(grid.steps))
    if grid.signed:
        code = grid.steps + tf.where(x < 0, -code, code)
    return tf.cast(code, tf.uint8 if grid.steps * (1 + grid.signed) < 256 else tf.uint16)


def _by_range(bits):
    steps = 2**bits - 1

    def scales(x):
        return tf.stack([tf.reduce_min(x, -1), tf.reduce_max(x, -1)], -1)

    def low_and_step(scales):
        low, high = scales[..., :1], scales[..., 1:]
        return low, (high - low) / steps

    def place(x, scales):
        low, step = low_and_step(scales)
        return tf.math.divide_no_nan(x - low, step)

    def number(codes, scales):
        low, step = low_and_step(scales)
        return low + codes * step

    # An error is less than a step. So with two steps or more the range of the residuals becomes at
    # most 2 / 3 of that of the row, plus what the next update adds: it stays bounded. With one it
    # may double; n <= 2 entries are exact.
    return Grid(
        *(scales, place, number, steps, False),
        coarse=lambda n, stochastic: steps == 1 and n > 2,
        error=lambda n: _of_spacing(2 * _largest_of(n) / steps),
    )


def _by_norm(norm, steps, coarse, error):
    def place(x, scales):
        # Not |x| · (steps / scale): that factor overflows for the smallest scales.
        return tf.math.divide_no_nan(tf.abs(x), scales) * steps

    def number(codes, scales):
        return (codes - steps) / steps * scales

    return Grid(norm, place, number, steps, True, coarse, error)


def _largest(x):
    return tf.reduce_max(tf.abs(x), -1, keepdims=True)


def _length(x):
    x, unit = at_unit_scale(x)
    return tf.norm(x, axis=-1, keepdims=True) * unit


def _by_max(steps):
    # Again errors are less than a step: bounded with two and more. With one, E‖x̂ - x‖² is
    # max |x| ‖x‖₁ - ‖x‖² <= (√n - 1) / 2 · ‖x‖², less than ‖x‖² up to n = 8; measured, residuals
    # are below 6 updates up to n = 63, and grow as √n. The nearest number is exact for the largest.
    return _by_norm(
        _largest,
        steps,
        coarse=lambda n, stochastic: stochastic and steps == 1 and n >= 64,
        error=lambda n: _of_spacing(_largest_of(n) / steps),
    )


def _by_length(steps):
    # E‖x̂ - x‖² <= n Δ² / 4 = n / (4 s²) ‖x‖². And with all |x| <= Δ / 2 the nearest number is zero
    # for each, in all rounds to come.
    return _by_norm(
        _length,
        steps,
        coarse=lambda n, stochastic: n >= 4 * steps**2,
        error=lambda n: _of_spacing(math.sqrt(n) / steps),
    )


def _of_spacing(step):
    """About E Δ² f (1 - f) of a standard normal number at f between two that are Δ apart."""
    return max(step**2 / 6, math.sqrt(2 / math.pi) * step - 1)


def _largest_of(n):
    """About the largest magnitude of n standard normal numbers."""
    return statistics.NormalDist().inv_cdf(1 - 1 / (2 * n + 1))


_GRIDS = {
    "range": _by_range,
    "max": lambda bits: _by_max(2 ** (bits - 1) - 1),
    "l2": lambda bits: _by_length(2 ** (bits - 1) - 1),
}
