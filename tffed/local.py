"""The client's training loop: one loop for every algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import loss_scale, random, tree
from tffed.model import ModelWeights


class LocalData(NamedTuple):
    """A client's examples: some rows of shared arrays.

    Attributes:
        arrays: `(x, y)` or `(x, y, sample_weight)`: nests of tensors with one leading dimension.
        rows: int32: the rows that are this client's.
        valid: int32 scalar, how many rows count if the others are padding, as XLA needs; None if
            there is no padding.
        most: int32 scalar, the examples of the largest client if padded clients are trained side by
            side, in as many steps as that one has; None if this one is trained by itself.
    """

    arrays: Any
    rows: Any
    valid: Any = None
    most: Any = None

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

    Where the client trains part of the model, g is zero elsewhere (`bc.mask`). A weight on which
    the loss does not depend stays as it is, as in Keras, and so do all in a step whose gradient
    overflows in float16, after which the loss has half its factor. A client without examples takes
    no step.
    The last batch of an epoch holds what is left, at its true size. The optimizer starts afresh.
    Where the model is `sampled`, a step instead draws each example with probability
    batch_size / count, from all of them, and g is divided by batch_size.

    Args:
        model: A `FunctionalModel`.
        optimizer: An `Optimizer`.
        epochs: Passes over the client's examples, each in a new order; None with `steps`.
        steps: Number of batches, going on over as many passes as it takes, or `(bc) -> number`;
            None with `epochs`.
        batch_size: Examples in a batch, or None for all the client has.
        correct: `(grads, weights, initial weights, extra) -> grads` on flat tuples, or None.
    """

    def train(bc, data, seed, extra=()):
        initial, count = bc.weights, data.count
        batch = count if batch_size is None else tf.minimum(batch_size, count)
        # A client without examples takes no step, however many the others do.
        some, per_epoch = count > 0, tf.maximum(_batches(count, batch), 1)
        # Side by side all clients go through the same loops: an epoch has the batches of the
        # largest, of which the smaller ones sit some out; or each step draws its order anew.
        alike = data.most is not None
        width = _batches(data.most, batch_size) if alike and steps is None else per_epoch
        stride = 1 if alike and steps is not None else width
        number = steps(bc) if callable(steps) else steps
        total = width * epochs if steps is None else tf.convert_to_tensor(number)
        total = total if alike else tf.where(some, total, 0)
        # Plain SGD touches only the rows of an embedding that the batch does, and other optimizers
        # of Keras tell one use of a row from another.
        sparse = correct is None and not bc.mask and not (alike and optimizer.plain_sgd)
        noise = random.client_noise(bc.noise, seed)

        def run_step(order, i, *carry):
            weights, opt, sums, scale = carry
            epoch, place = i // width, i % width
            step = epoch * per_epoch + place
            seeds = random.model_seed(seed, step), random.noise_seed(noise, step)
            if model.sampled:
                rows = random.sample(data.rows, batch, random.sample_seed(noise, step))
                picked, mask = data.take(rows), None
            else:
                picked, mask = _batch(data, order, place * batch, batch, batch_size)
            scaled = {"scale": scale.factor} if scale else {}
            grads, weights, new = model.grad(
                weights, picked, seeds[0], mask, sparse, seeds[1], **scaled
            )
            used = [g is not None for g in grads]
            grads = dense(grads, weights.trainable)
            if model.sampled:  # by the size that was expected, as the sample's own is a secret
                grads = tree.scale(grads, tf.maximum(tf.size(rows), 1) / batch)
            if correct is not None:
                grads = correct(grads, weights.trainable, initial.trainable, extra)
            if bc.mask:
                grads = tree.multiply(grads, bc.mask)
            moved = optimizer.step(opt, weights.trainable, _of(grads, used))
            if scale:
                finite, scale = loss_scale.after(scale, grads)
                moved = tree.select(finite, moved, (opt, weights.trainable))
            opt, trainable = moved
            weights = weights._replace(trainable=trainable)
            done = weights, opt, tree.add(sums, new), scale
            return i + 1, *(tree.select(some & (place < per_epoch), done, carry) if alike else done)

        def run_stride(i, *carry):
            epoch_seed = random.shuffle_seed(seed, i // width)
            order = random.shuffle(data.rows, epoch_seed, data.valid, whole=alike)
            end = tf.minimum(i + stride, total)
            return tf.while_loop(
                lambda i, *_: i < end,
                lambda *carry: run_step(order, *carry),
                (i, *carry),
                parallel_iterations=1,
            )

        start = (
            tf.constant(0),
            model.begin(initial),
            optimizer.init(initial.trainable, bc.learning_rate),
            model.zeros(data.arrays),
            loss_scale.first() if model.scaled else (),
        )
        _, weights, _, sums, scale = tf.while_loop(
            lambda i, *_: i < total, run_stride, start, parallel_iterations=1
        )
        taken = per_epoch * epochs if steps is None else total
        taken = scale.taken if scale else tf.where(some, taken, 0)
        return LocalResult(model.end(weights), sums, taken)

    return train


def dense(grads, weights):
    """Gradients with zeros for weights that have none; `tf.IndexedSlices` stay as they are."""
    return tuple(tf.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True))


def _of(grads, used):
    """The gradients of the weights that have one, and None for the others."""
    return tuple(g if u else None for g, u in zip(grads, used, strict=True))


def _batches(count, batch):
    return (count + batch - 1) // tf.maximum(batch, 1)


def _batch(data, order, start, batch, batch_size):
    """A batch of the order's examples from `start` on, and its mask (None: all rows count)."""
    if data.valid is None:
        return data.take(order[start : tf.minimum(start + batch, data.count)]), None
    positions = start + tf.range(batch_size)
    there = positions < data.count
    # Padding repeats the batch's first example: a row of no other client, and of no other batch.
    positions = tf.minimum(tf.where(there, positions, start), order.shape[0] - 1)
    return data.take(tf.gather(order, positions)), tf.cast(there, tf.float32)
