"""Stages that bound the norm of each client's update."""

import tensorflow as tf

from tffed import tree
from tffed.aggregation.stage import Stage
from tffed.arguments import norm_bound, open_fraction, positive


def clip(norm) -> Stage:
    """Scales each update to an L2 norm of at most `norm`: u ← u · min(1, norm / ‖u‖₂).

    The norm is over all trainable weights together. Reports `clipped`, the fraction of clients
    that were scaled down.

    Args:
        norm: The largest norm, positive.

    Raises:
        ValueError: `norm` is not positive and finite.
    """
    norm = norm_bound("norm", norm)

    def encode(shared, client_state, value, seed):
        del shared, seed
        value, was_clipped = _clip(value, norm)
        return value, client_state, {"clipped": was_clipped}

    def finish(state, total, stats, clients, seed):
        del seed
        return total, state, {"clipped": tf.math.divide_no_nan(stats["clipped"], clients)}

    return Stage(
        encode=encode,
        finish=finish,
        bound=lambda bound: norm if bound is None else min(bound, norm),
        name=f"clip({norm})",
        partial=True,
    )


def adaptive_clip(norm=0.1, quantile=0.5, learning_rate=0.2) -> Stage:
    """Clips at a norm that follows a quantile of the clients' update norms (Andrew et al. 2021).

    After each round, with b the fraction of clients whose update was within the bound C:
    C ← C · exp(-learning_rate · (b - quantile)). Not private by itself: b is released exactly.
    Reports the bound used as `clip_norm`.

    Args:
        norm: The first bound, positive.
        quantile: The fraction of updates that should not be clipped, in (0, 1).
        learning_rate: The geometric step, positive.

    Raises:
        ValueError: An argument is outside its range.
    """
    norm = norm_bound("norm", norm)
    learning_rate = positive("learning_rate", learning_rate)
    quantile = open_fraction("quantile", quantile)

    def encode(bound, client_state, value, seed):
        del seed
        value, was_clipped = _clip(value, bound)
        return value, client_state, {"within": 1.0 - was_clipped}

    def finish(bound, total, stats, clients, seed):
        del seed
        within = tf.math.divide_no_nan(stats["within"], clients)
        moved = bound * tf.exp(-learning_rate * (within - quantile))
        return total, tf.where(clients > 0, moved, bound), {"clip_norm": bound}

    return Stage(
        init=lambda like: tf.constant(norm),
        shared=lambda bound: bound,
        encode=encode,
        finish=finish,
        name=f"adaptive_clip({norm}, {quantile}, {learning_rate})",
        leaks=True,
        partial=True,
    )


def _clip(value, bound):
    norm = tree.global_norm(value)
    # A norm that is zero may be one that underflows. One that overflows float32 must not clip to
    # zero: NaN has the client left out and counted.
    factor = tf.where(norm > bound, tf.math.divide_no_nan(bound, norm), 1.0)
    factor = tf.where(tf.math.is_finite(norm), factor, float("nan"))
    return tree.scale(value, factor), tf.cast(norm > bound, tf.float32)
