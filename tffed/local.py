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
        rows: int32 `[n_k]`: the rows that are this client's.
    """

    arrays: Any
    rows: Any

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
        initial = bc.weights
        count = tf.size(data.rows)
        batch = count if batch_size is None else tf.minimum(batch_size, count)
        per_epoch = (count + batch - 1) // batch
        total = per_epoch * epochs if steps is None else tf.constant(steps)

        def run_step(order, t, weights, opt, sums):
            start = (t % per_epoch) * batch
            picked = data.take(order[start : tf.minimum(start + batch, count)])
            grads, non_trainable, new = model.grad(weights, picked, random.model_seed(seed, t))
            if correct is not None:
                grads = correct(grads, weights.trainable, initial.trainable, extra)
            opt, trainable = optimizer.step(opt, weights.trainable, grads)
            return t + 1, ModelWeights(trainable, non_trainable), opt, tree.add(sums, new)

        def run_epoch(t, *carry):
            order = random.shuffle(data.rows, random.shuffle_seed(seed, t // per_epoch))
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
