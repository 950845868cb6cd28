"""The factor on a float16 model's loss, as in `keras.optimizers.LossScaleOptimizer`."""

from typing import Any, NamedTuple

import tensorflow as tf

from tffed import tree

_FIRST, _STEPS_TO_GROW = 2.0**15, 2000


class LossScale(NamedTuple):
    """What a client carries from step to step.

    Attributes:
        factor: float32 scalar: the loss is multiplied by it, the gradient divided by it.
        since: int32 scalar, the steps since it last changed.
        taken: int32 scalar, the steps that were not skipped.
    """

    factor: Any
    since: Any
    taken: Any


def first() -> LossScale:
    """The scale that a client begins a round with, as its optimizer does."""
    return LossScale(tf.constant(_FIRST), tf.constant(0), tf.constant(0))


def after(scale, grads):
    """`(whether the step counts, the next LossScale)` of a step with such gradients.

    Gradients that overflow halve the factor, and the step is skipped; after 2000 steps without
    it is doubled.
    """
    finite = tree.all_finite(grads)
    grown = scale.since == _STEPS_TO_GROW - 1
    factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5) * scale.factor
    since = tf.where(finite & ~grown, scale.since + 1, 0)
    return finite, LossScale(factor, since, scale.taken + tf.cast(finite, tf.int32))
