"""Reducers: the end of a chain."""

import tensorflow as tf

from tffed import tree
from tffed.aggregation.chain import Reducer

_WEIGHTS = {
    "examples": lambda examples: examples,
    "uniform": lambda examples: tf.ones_like(examples),
}


def mean(weighting="examples") -> Reducer:
    """The weighted mean Σ_k p_k u_k, with p_k = n_k / Σ n_j or 1 / K.

    Sums as reports arrive: memory does not grow with the number of clients. A client that was left
    out counts in neither sum; of no clients the mean is zero.

    Args:
        weighting: `"examples"` (McMahan et al. 2017) or `"uniform"`.

    Raises:
        ValueError: `weighting` is neither.
    """

    def finish(total, weight):
        return tree.scale(total, tf.math.divide_no_nan(1.0, weight))

    return Reducer(_weighting(weighting), finish, False, f"mean({weighting})")


def median() -> Reducer:
    """The coordinate-wise median (Yin et al. 2018), for up to half of the clients being faulty.

    Every client counts alike. Needs all updates at once: memory grows with the cohort. Of an even
    number of clients it is the mean of the two in the middle; of none, zero.
    """

    def finish(values, weight):
        kept = tf.where(weight > 0)[:, 0]
        count = tf.size(kept)

        def middle(stacked):
            ordered = tf.sort(tf.gather(stacked, kept), axis=0)
            low, high = ordered[(count - 1) // 2], ordered[count // 2]
            return (low + high) / 2

        return tree.map(
            lambda v: tf.cond(count > 0, lambda: middle(v), lambda: tf.zeros(v.shape[1:], v.dtype)),
            values,
        )

    return Reducer(_WEIGHTS["uniform"], finish, True, "median")


def _weighting(name):
    if name not in _WEIGHTS:
        raise ValueError(
            f"`weighting` must be one of {tuple(_WEIGHTS)}. Received: weighting={name!r}"
        )
    return _WEIGHTS[name]
