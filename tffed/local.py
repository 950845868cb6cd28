"""The client's training loop: one loop for every algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.model import ModelWeights


class LocalData(NamedTuple):
    """A client's examples: some rows of shared arrays.

    Attributes:
        arrays: `(x, y)` or `(x, y, sample_weight)`: nests of tensors with one leading dimension.
        rows: int32: the rows that are this client's.
        valid: int32 scalar, how many rows count if the others are padding, as XLA needs; None if
            there is no padding.
    """

    arrays: Any
    rows: Any
    valid: Any = None

    @property
    def count(self):
        """n_k, the client's number of examples, an int32 scalar."""
        return tf.size(self.rows) if self.valid is None else self.valid

    def take(self, positions):
        """The batch of the examples at `positions` of `arrays`."""
        return tree.map(lambda array: tf.gather(array, positions), self.arrays)


class LocalResult(NamedTuple):
    """The end of local training: weights, metric sums, and the number of steps (int32)."""

    weights: ModelWeights
    sums: tuple
    steps: Any


def local_training(model, optimizer, *, epochs, steps, batch_size, correct=None) -> Callable:
    """Builds the loop `(bc, data, seed, extra) -> LocalResult`.

    Starting at w_0 = bc.weights, each step takes the next batch of the client's shuffled examples:

        g = ∇ loss(w, batch);   g ← correct(g, w, w_0, extra);   w ← optimizer step(w, g)

    The last batch of an epoch holds what is left, at its true size. The optimizer starts afresh.

    Args:
        model: A `FunctionalModel`.
        optimizer: An `Optimizer`.
        epochs: Passes over the client's examples, each in a new order; None with `steps`.
        steps: Number of batches, going on over as many passes as it takes; None with `epochs`.
        batch_size: Examples in a batch, or None for all the client has.
        correct: `(grads, weights, initial weights, extra) -> grads` on flat tuples, or None.
    """

    def train(bc, data, seed, extra=()):
        initial, count = bc.weights, data.count
        batch = count if batch_size is None else tf.minimum(batch_size, count)
        per_epoch = (count + batch - 1) // tf.maximum(batch, 1)
        total = per_epoch * epochs if steps is None else tf.constant(steps)

        def run_step(order, t, weights, opt, sums):
            picked, mask = _batch(data, order, (t % per_epoch) * batch, batch, batch_size)
            step_seed = random.model_seed(seed, t)
            grads, non_trainable, new = model.grad(weights, picked, step_seed, mask)
            if correct is not None:
                grads = correct(grads, weights.trainable, initial.trainable, extra)
            opt, trainable = optimizer.step(opt, weights.trainable, grads)
            return t + 1, ModelWeights(trainable, non_trainable), opt, tree.add(sums, new)

        def run_epoch(t, *carry):
            epoch_seed = random.shuffle_seed(seed, t // per_epoch)
            order = random.shuffle(data.rows, epoch_seed, data.valid)
            end = tf.minimum(t + per_epoch, total)
            return tf.while_loop(
                lambda t, *_: t < end,
                lambda *carry: run_step(order, *carry),
                (t, *carry),
                parallel_iterations=1,
            )

        start = (
            tf.constant(0),
            initial,
            optimizer.init(initial.trainable, bc.learning_rate),
            model.zeros(data.arrays),
        )
        t, weights, _, sums = tf.while_loop(
            lambda t, *_: t < total, run_epoch, start, parallel_iterations=1
        )
        return LocalResult(weights, sums, t)

    return train


def _batch(data, order, start, batch, batch_size):
    """A batch of the order's examples from `start` on, and its mask (None: all rows count)."""
    if data.valid is None:
        return data.take(order[start : tf.minimum(start + batch, data.count)]), None
    positions = start + tf.range(batch_size)
    rows = tf.gather(order, tf.minimum(positions, order.shape[0] - 1))
    return data.take(rows), tf.cast(positions < data.count, tf.float32)
