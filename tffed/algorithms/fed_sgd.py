"""Federated SGD (McMahan et al. 2017, section 2)."""

import tensorflow as tf

from tffed import random, tree
from tffed.algorithm import LocalUpdate, Recipe, Uses
from tffed.arguments import positive_integer
from tffed.composition import compose
from tffed.local import dense


def fed_sgd(*, batch_size=None) -> Recipe:
    """Federated SGD: clients send gradients, the server takes the step.

    Client k sends g_k = ∇ loss(w) over all its examples; the server steps with Σ_k (n_k / n) g_k.
    With every client and weighting by examples that is one centralised full-batch step, if the loss
    is the mean over a batch's examples. It is not where the loss is the mean over valid steps of
    masked sequences, or over labels other than its `ignore_class`, whose numbers differ from client
    to client (`compile` warns of these), nor for layers that couple a batch's examples (BatchNorm),
    as each client has a batch of its own.

    Args:
        batch_size: None takes a client's examples as one batch. A number adds up the gradients of
            batches of that size, each times its share of the examples: the same gradient in less
            memory, but for layers that couple a batch's examples, such as BatchNorm.

    Raises:
        ValueError: `batch_size` is not a positive integer.
    """
    if batch_size is not None:
        batch_size = positive_integer("batch_size", batch_size)

    def build(model, client_optimizer, server_optimizer, aggregator):
        del client_optimizer
        gradient = _full_gradient(model, batch_size)

        def work(bc, state, data, seed):
            noise = random.client_noise(bc.noise, seed)
            grads, non_trainable, sums = gradient(bc.weights, data, seed, noise)
            examples = tf.cast(data.count, tf.float32)
            return LocalUpdate(tree.scale(grads, -1.0), non_trainable, (), state, examples, sums)

        return compose(
            "fed_sgd", work, model=model, server_optimizer=server_optimizer, aggregator=aggregator
        )

    config = {"batch_size": batch_size}
    return Recipe(
        "fed_sgd",
        build,
        config,
        local_training=False,
        needs_server_optimizer=True,
        uses=lambda clients: Uses(1),
    )


def _full_gradient(model, batch_size):
    """`(weights, data, seed, noise) -> (gradients, non_trainable, sums)` over a client's rows."""

    def one(weights, batch, seed, noise, t):
        grads, after, sums = model.grad(
            weights, batch, random.model_seed(seed, t), noise=random.noise_seed(noise, t)
        )
        if any(a is not b for a, b in zip(after.trainable, weights.trainable, strict=True)):
            raise ValueError(
                "fed_sgd's clients send gradients. Received: a model whose training call assigns "
                "weights that are trained (as SpectralNormalization does), which would be lost. "
                "Use fed_avg."
            )
        # Gradients of matrix products over time have lost their shapes.
        pairs = zip(dense(grads, weights.trainable), weights.trainable, strict=True)
        return tuple(tf.ensure_shape(g, w.shape) for g, w in pairs), after, sums

    def full_batch(weights, data, seed, noise):
        def gradient():
            grads, after, sums = one(model.begin(weights), data.take(data.rows), seed, noise, 0)
            return grads, model.end(after).non_trainable, sums

        def nothing():
            zeros = tuple(tree.zeros_like(weights.trainable))
            return zeros, weights.non_trainable, model.zeros(data.arrays)

        return tf.cond(data.count > 0, gradient, nothing)

    def in_batches(weights, data, seed, noise):
        count = data.count

        def body(t, total, weights, sums):
            rows = data.rows[t * batch_size : tf.minimum((t + 1) * batch_size, count)]
            grads, weights, new = one(weights, data.take(rows), seed, noise, t)
            total = tree.add(total, tree.scale(grads, tf.size(rows) / count))
            return t + 1, total, weights, tree.add(sums, new)

        zeros = tree.zeros_like(weights.trainable)
        _, total, after, sums = tf.while_loop(
            lambda t, *_: t * batch_size < count,
            body,
            (tf.constant(0), zeros, model.begin(weights), model.zeros(data.arrays)),
            parallel_iterations=1,
        )
        return total, model.end(after).non_trainable, sums

    return full_batch if batch_size is None else in_batches
