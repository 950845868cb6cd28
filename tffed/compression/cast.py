"""Half-precision floats on the wire."""

import tensorflow as tf

from tffed import tree
from tffed.aggregation.stage import Coded, Stage
from tffed.compression.layout import packed_as

# By which factor rounding can lengthen a vector: all numbers of bfloat16 that matter are within
# 2⁻⁸ of the number itself; the smallest that float16 does not round to zero can double.
_LONGER = {"bfloat16": 1 + 2**-8, "float16": 2.0}


def cast(dtype) -> Stage:
    """Sends each entry in 16 bits, rounded to the nearest: `"float16"` or `"bfloat16"`.

    float16 keeps 11 significant bits of numbers from 6e-5 to 65504, fewer below and none below
    3e-8, which become zero; bfloat16 keeps 8 of any float32 above 1e-38. An entry that float16
    cannot hold becomes infinite, and its client is left out and counted, rather than made smaller
    in silence: such an update is one that has diverged.

    It leaves nothing to the stages after it: put those that choose entries before it.

    Raises:
        ValueError: `dtype` is neither.
    """
    if dtype not in _LONGER:
        raise ValueError(f"`dtype` must be one of {tuple(_LONGER)}. Received: dtype={dtype!r}")

    def encode(shared, client_state, value, seed):
        del shared, seed
        values = tuple(tf.cast(x, dtype) for x in tree.leaves(value))
        return Coded((), {"values": values}), client_state, {}

    def decode(shared, payload, like):
        del shared
        return packed_as(like, payload.side["values"])

    return Stage(
        encode=encode,
        decode=decode,
        passes=lambda like: (),
        bound=lambda bound: None if bound is None else bound * _LONGER[dtype],
        ends=True,
        weights=True,
        name=f"cast({dtype})",
    )
