"""Reducers: the end of a chain."""

import tensorflow as tf

from tffed import tree
from tffed.aggregation.chain import Reducer
from tffed.arguments import plain, positive

_WEIGHTS = {
    "examples": lambda examples: examples,
    "uniform": lambda examples: tf.ones_like(examples),
}


def mean(weighting="examples", *, max_weight=None, denominator=None) -> Reducer:
    """The weighted mean Σ_k p_k u_k, with p_k = n_k / Σ n_j or 1 / K.

    Sums as reports arrive: memory does not grow with the number of clients. A client that was left
    out counts in neither sum; of no clients the mean is zero.

    Private sums need parts that are bounded and, where the number of clients is a secret too, a
    divisor that does not depend on them: Σ_k w_k u_k / D with w_k = 1 or min(n_k, m) / m.

    Args:
        weighting: `"examples"` (McMahan et al. 2017) or `"uniform"`.
        max_weight: With `"examples"`, the number m of examples from which on a client counts no
            more.
        denominator: The divisor D, e.g. the expected number of clients; None: Σ_k w_k.

    Raises:
        ValueError: `weighting` is neither, or a number is not positive, or `max_weight` is given
            where all clients count alike.
    """
    weight = _weighting(weighting)
    max_weight, denominator = plain(max_weight), plain(denominator)
    for name, value in (("max_weight", max_weight), ("denominator", denominator)):
        if value is not None:
            positive(name, value)
    if max_weight is not None:
        if weighting == "uniform":
            raise ValueError(
                "`max_weight` bounds the weights of mean('examples'). Received: "
                f"weighting='uniform', max_weight={max_weight}. Leave it out."
            )

        def weight(examples):
            return tf.minimum(examples, float(max_weight)) / float(max_weight)

    def finish(total, weight):
        if denominator is None:
            return tree.scale(total, tf.math.divide_no_nan(1.0, weight))
        return tree.scale(total, 1.0 / float(denominator))

    extras = f", max_weight={max_weight}" if max_weight is not None else ""
    extras += f", denominator={denominator}" if denominator is not None else ""
    bounded = weighting == "uniform" or max_weight is not None
    moves = (lambda bound, clients: bound / (denominator or clients)) if bounded else None
    name = f"mean({weighting}{extras})"
    return Reducer(weight, finish, False, name, bounded, denominator, moves=moves)


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


def majority() -> Reducer:
    """The sign of most clients, by entry: sign(Σ_k sign(u_k)), and 0 where votes are even.

    signSGD with majority vote (Bernstein et al. 2019): `chain(sign(scale=None), majority())`. Each
    client has one vote, whatever its examples; the step is the learning rate of plain SGD at the
    server. Without that stage it is the sign of the sum.
    """

    def finish(total, weight):
        del weight
        return tree.map(tf.sign, total)

    return Reducer(_WEIGHTS["uniform"], finish, False, "majority", bounded=True, adds=False)


def _weighting(name):
    if name not in _WEIGHTS:
        raise ValueError(
            f"`weighting` must be one of {tuple(_WEIGHTS)}. Received: weighting={name!r}"
        )
    return _WEIGHTS[name]
