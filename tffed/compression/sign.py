"""One bit an entry: its sign."""

import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import Coded, Stage, travels
from tffed.compression.layout import fused, packed_as
from tffed.wire import Bits


def sign(scale="mean") -> Stage:
    """signSGD (Bernstein et al. 2018): each entry's sign, one bit.

    With `scale="mean"`, x̂ = mean |x| · sign(x) for each tensor, of all numbers c · sign(x) the
    nearest to x: ‖x̂ - x‖² = ‖x‖² - (Σ |x|)² / n. Biased, so put it into `error_feedback`.
    With `scale=None` only signs arrive, for `majority()`.

    An entry that is exactly zero gets either sign at random, so that units that no client uses
    drift nowhere. NaN and infinity have the client left out and counted.

    Raises:
        ValueError: `scale` is neither.
    """
    if scale not in ("mean", None):
        raise ValueError(f"`scale` must be 'mean' or None. Received: scale={scale!r}")

    @fused
    def coded(tensors, seed):
        codes, scales, start = [], [], 0
        for x in tensors:
            coin = tf.reshape(random.uniform(tree.size(x), seed, start) < 0.5, x.shape)
            codes.append(tf.cast((x > 0) | ((x == 0) & coin), tf.uint8))
            size = tf.reduce_sum(tf.abs(tf.cast(x, tf.float32)))
            scales.append(size / max(tree.size(x), 1))
            start += tree.size(x)
        scales = tf.stack(scales)
        if scale is None:  # nothing else would tell of a NaN
            scales = tf.where(tf.reduce_all(tf.math.is_finite(scales)), 1.0, float("nan"))
        return tuple(codes), scales

    @fused
    def numbers(codes, scales):
        if scale is None:  # a vote counts once, whatever was sent
            scales = tf.where(tf.math.is_finite(scales), 1.0, float("nan"))
            return tuple(tf.where(code > 0, scales, -scales) for code in codes)
        pairs = zip(codes, tf.unstack(scales), strict=True)
        return tuple(tf.where(code > 0, s, -s) for code, s in pairs)

    def encode(shared, client_state, value, seed):
        del shared
        codes, scales = coded(tuple(tree.leaves(value)), seed)
        return Coded((), {"signs": codes, "scales": scales}), client_state, {}

    def decode(shared, payload, like):
        del shared
        return packed_as(like, numbers(payload.side["signs"], payload.side["scales"]))

    return Stage(
        encode=encode,
        decode=decode,
        passes=lambda like: (),
        wire=travels(signs=Bits(1)),
        bound=(lambda bound: bound) if scale else (lambda bound: None),
        ends=True,
        weights=scale is not None,
        name=f"sign({scale})",
    )
