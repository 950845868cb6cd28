"""SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378)."""

import tensorflow as tf

from tffed import tree
from tffed.algorithm import LocalUpdate, Recipe
from tffed.algorithms.adaptive import AdaptiveSteps
from tffed.algorithms.arguments import check_local_work, uses
from tffed.arguments import positive_integer
from tffed.composition import compose
from tffed.local import local_training


def scaffold(local_epochs=None, *, local_steps=None, batch_size=None) -> Recipe:
    """Federated averaging with control variates against client drift.

    Client k keeps c_k, the server c, all zero at first. A local step is v ← v - η (g - c_k + c);
    after K steps (option II of the paper) c_k⁺ = c_k - c + (w - v) / (K η). The server averages the
    updates v - w, uniformly in the paper, and sets c ← c + (1/N) Σ_k (c_k⁺ - c_k), N being the
    number of clients in the population. A `fit` over another population begins with its own N, and
    with c = (1/N) Σ_k c_k over the clients of this one that have taken part. The same id is the
    same client.

    Args:
        local_epochs: As in `fed_avg`.
        local_steps: As in `fed_avg`.
        batch_size: As in `fed_avg`.

    Raises:
        ValueError: An argument is wrong, or the client optimizer is not plain SGD.
    """
    if isinstance(local_steps, AdaptiveSteps):
        positive_integer("local_steps", local_steps)
    work = check_local_work(local_epochs, local_steps, batch_size)
    return Recipe("scaffold", lambda *parts: _build(*parts, **work), work, uses=uses(work))


def _build(
    model, client_optimizer, server_optimizer, aggregator, *, local_epochs, local_steps, batch_size
):
    if not client_optimizer.plain_sgd:
        raise ValueError(
            "SCAFFOLD's control variates hold for plain SGD on the clients. Received: another "
            "client optimizer. Use keras.optimizers.SGD(learning_rate) with a constant rate, "
            "without momentum, decay or clipping."
        )
    if aggregator.part.partial:
        raise ValueError(
            "SCAFFOLD's control variates are of the whole model. Received: an aggregator with "
            f"{aggregator.part.name}. Use another algorithm, or leave that out."
        )
    train = local_training(
        model,
        client_optimizer,
        epochs=local_epochs,
        steps=local_steps,
        batch_size=batch_size,
        correct=lambda g, v, w, variates: tree.add(g, tree.subtract(*variates)),
    )

    def work(bc, own, data, seed):
        shared, _ = bc.extra
        result = train(bc, data, seed, (shared, own))
        update = tree.subtract(result.weights.trainable, bc.weights.trainable)
        factor = 1.0 / (tf.cast(tf.maximum(result.steps, 1), tf.float32) * bc.learning_rate)
        new = tree.subtract(tree.subtract(own, shared), tree.scale(update, factor))
        new = tree.select(result.steps > 0, new, own)  # without examples there is no step
        examples = tf.cast(data.count, tf.float32)
        moved = tree.subtract(new, own)
        return LocalUpdate(update, result.weights.non_trainable, moved, new, examples, result.sums)

    def server_init(weights, population):
        return tree.zeros_like(weights.trainable), tf.constant(population, tf.float32)

    def renew(weights, total, population):
        """c is the mean of the c_k of the clients there are; of new ones c_k is zero."""
        shared, count = server_init(weights, population)
        return shared if total is None else tree.scale(total, 1 / population), count

    def server_update(extra, total, clients):
        del clients
        shared, population = extra
        return tree.add(shared, tree.scale(total, 1.0 / population)), population

    return compose(
        "scaffold",
        work,
        model=model,
        server_optimizer=server_optimizer,
        aggregator=aggregator,
        learning_rate=client_optimizer.learning_rate,
        maskable=None if batch_size is None else model.maskable,
        client_init=lambda bc: tree.zeros_like(bc.weights.trainable),
        server_init=server_init,
        server_update=server_update,
        renew=renew,
    )
