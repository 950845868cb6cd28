"""Adaptive communication intervals: AdaComm (Wang and Joshi 2019, arXiv:1810.08313)."""

from typing import Any, NamedTuple

import tensorflow as tf

from tffed.arguments import open_fraction, positive_integer


class _State(NamedTuple):
    """The algorithm's server state: τ, F_0, and the sums of the interval so far."""

    steps: Any
    first: Any
    rounds: Any
    loss: Any
    examples: Any


class AdaptiveSteps(NamedTuple):
    """Local steps that follow the training loss; see `adaptive_steps`.

    Clients send `(sum of the losses, number of examples)` beside the update.
    """

    initial: int
    least: int
    most: int
    every: int
    decay: float | None

    def __call__(self, bc):
        """The steps of a round, an int32 scalar, from its broadcast."""
        return bc.extra.steps

    def init(self, weights, population):
        """The server state before the first round."""
        del weights, population
        zero = tf.constant(0.0)
        return _State(tf.constant(self.initial), zero, tf.constant(0), zero, zero)

    def update(self, state, total, clients):
        """The server state after a round, from the sums that the clients sent."""
        del clients
        loss, examples = state.loss + total[0], state.examples + total[1]
        rounds = state.rounds + 1
        mean = tf.math.divide_no_nan(loss, examples)
        starts = state.first == 0
        ends = (rounds >= self.every) & (examples > 0) & ~(starts & (mean <= 0))
        ratio = tf.maximum(tf.math.divide_no_nan(mean, state.first), 0.0)
        adapted = tf.where(starts, self.initial, self._adapt(state.steps, ratio))
        return _State(
            tf.where(ends, adapted, state.steps),
            tf.where(ends & starts, mean, state.first),
            tf.where(ends, 0, rounds),
            tf.where(ends, 0.0, loss),
            tf.where(ends, 0.0, examples),
        )

    def metrics(self, state):
        """What the history has of a round, from the state before it."""
        return {"local_steps": tf.cast(state.steps, tf.float32)}

    def _adapt(self, steps, ratio):
        wanted = tf.math.ceil(self.initial * tf.sqrt(ratio))
        if self.decay is not None:
            now = tf.cast(steps, tf.float32)
            wanted = tf.where(wanted < now, wanted, tf.math.floor(self.decay * now))
        return tf.cast(tf.clip_by_value(wanted, self.least, self.most), tf.int32)


def adaptive_steps(initial, *, least=1, most=None, every=1, decay=None) -> AdaptiveSteps:
    """Local steps between two communications that become fewer as the loss falls.

    Many local steps make fast progress at first, few reach a lower loss in the end. The first
    interval of `every` rounds has τ_0 = `initial` steps a round; after interval l,

        τ ← ceil(τ_0 sqrt(F_l / F_0)),   not below `least` and not above `most`,

    F_l being the mean training loss over all examples of all local steps in the interval. With a
    `decay` γ, where that is not less than the last τ, floor(γ τ) is taken instead: so τ falls
    also where the loss does not (the paper takes γ = 1/2 and intervals of a minute).

    A `fit` over another population begins again with τ_0 and an F_0 of its own.

    For `local_steps` of `fed_avg`, `fed_prox` and `fed_opt`. The history has `local_steps` of each
    round. Clients send their loss beside the update, so this goes with no noise on updates; nor
    with noise in local steps, whose number must be known before to be accounted for. The paper's
    form for learning rates that change is not in: this is the one for a constant rate.

    Args:
        initial: τ_0.
        least: The smallest number.
        most: The largest number; by default `initial`.
        every: Rounds in an interval: more where cohorts differ much from round to round.
        decay: γ in (0, 1), or None.

    Raises:
        ValueError: A number is not a positive integer, or they are in the wrong order; `decay` is
            outside its range.
    """
    most = initial if most is None else most
    numbers = {"initial": initial, "least": least, "most": most, "every": every}
    initial, least, most, every = (positive_integer(*pair) for pair in numbers.items())
    if not least <= initial <= most:
        raise ValueError(
            "Expected least <= initial <= most. "
            f"Received: least={least}, initial={initial}, most={most}"
        )
    decay = None if decay is None else open_fraction("decay", decay)
    return AdaptiveSteps(initial, least, most, every, decay)
