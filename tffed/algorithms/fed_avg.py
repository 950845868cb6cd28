"""Federated averaging (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1)."""

import tensorflow as tf

from tffed import tree
from tffed.algorithm import LocalUpdate, Recipe
from tffed.algorithms.adaptive import AdaptiveSteps
from tffed.algorithms.arguments import check_local_work, uses
from tffed.composition import compose
from tffed.local import local_training


def fed_avg(local_epochs=None, *, local_steps=None, batch_size=None) -> Recipe:
    """Federated averaging.

    Client k trains from the global weights w on its own n_k examples to w_k and sends w_k - w. The
    server moves by the mean, weighted as the aggregator says: w ← w + Σ_k (n_k / n)(w_k - w).

    Args:
        local_epochs: Passes over a client's examples in a round; 1 if `local_steps` is not given.
        local_steps: Number of batches instead, the same for every client; or `adaptive_steps(…)`.
        batch_size: Examples in a local batch; None takes all a client has (B = ∞ in the paper).

    Returns:
        A `Recipe`, for `tffed.Federated` or to be called with a `FunctionalModel`.

    Raises:
        ValueError: A number is not a positive integer, or both epochs and steps are given.
    """
    work = check_local_work(local_epochs, local_steps, batch_size)
    return Recipe(
        "fed_avg",
        lambda *parts: averaging("fed_avg", *parts, **work),
        work,
        uses=uses(work),
    )


def averaging(
    name,
    model,
    client_optimizer,
    server_optimizer,
    aggregator,
    *,
    local_epochs,
    local_steps,
    batch_size,
    correct=None,
):
    """The `Algorithm` of averaged local training, with a gradient correction if there is one."""
    adaptive = isinstance(local_steps, AdaptiveSteps)
    hooks = {}
    if adaptive:
        hooks = {
            "server_init": local_steps.init,
            "server_update": local_steps.update,
            "server_metrics": local_steps.metrics,
            "renew": lambda weights, total, population: local_steps.init(weights, population),
        }
    train = local_training(
        model,
        client_optimizer,
        epochs=local_epochs,
        steps=local_steps,
        batch_size=batch_size,
        correct=correct,
    )

    def work(bc, state, data, seed):
        result = train(bc, data, seed)
        return LocalUpdate(
            update=tree.subtract(result.weights.trainable, bc.weights.trainable),
            non_trainable=result.weights.non_trainable,
            extra=result.sums[:2] if adaptive else (),
            state=state,
            examples=tf.cast(data.count, tf.float32),
            sums=result.sums,
        )

    return compose(
        name,
        work,
        model=model,
        server_optimizer=server_optimizer,
        aggregator=aggregator,
        learning_rate=client_optimizer.learning_rate,
        maskable=None if batch_size is None else model.maskable,
        **hooks,
    )
