"""Federated averaging by hand, and whether the designs of a benchmark do the same.

Every client takes two steps, each on all its examples, so that no result depends on the order in
which a client's examples are shuffled; dropout is switched off. What is left is exact up to
rounding: w ← Σ_k (n_k / n) w_k for tffed, and w_1 for centralised training on the first client's
examples.
"""

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks import designs

_CLIENTS, _STEPS = 3, 2
_TOLERANCE, _LEAST_MOVE = 1e-5, 1e-4
# BatchNorm magnifies rounding: at a rate of 0.05 two orders of one sum are 4e-4 apart in two steps.
_SMALLER_RATE = 1 / 20


class WrongResultError(ValueError):
    """A design's result is not that of federated averaging."""


def check(task, names):
    """Compares designs with federated averaging written by hand, on the three smallest clients.

    Args:
        task: A `designs.Task`.
        names: Names of `designs.DESIGNS`.

    Returns:
        `{name: largest error}`, relative for values above one.

    Raises:
        WrongResultError: An error is above 1e-5, or nothing was learnt.
    """
    few = np.argsort(task.clients.sizes(), kind="stable")[:_CLIENTS]
    clients = task.clients.subset([task.clients.ids[k] for k in few])
    work = {"local_epochs": _STEPS, "batch_size": int(clients.sizes().max())}
    statistics = task.model().non_trainable_weights
    task = task._replace(
        model=lambda make=task.model: without_dropout(make()),
        learning_rate=task.learning_rate * (_SMALLER_RATE if statistics else 1),
        clients=clients,
        clients_per_round=len(clients),
        work=work,
    )
    start, each = locally_trained(task)
    mean = average(each, clients.sizes())
    if not any(np.abs(a - b).max() > _LEAST_MOVE for a, b in zip(mean, start, strict=True)):
        raise WrongResultError(f"Expected weights to move by {_LEAST_MOVE}. Received: none did.")
    alone = _alone(task)
    errors = {}
    for name in names:
        central = name.startswith("floor")
        design = designs.DESIGNS[name](alone if central else task)
        design.run(1)
        errors[name] = compare(name, design.weights(), each[0] if central else mean)
    return errors


def _alone(task):
    """The task of the first client alone."""
    clients = task.clients.subset([task.clients.ids[0]])
    work = task.work | {"batch_size": int(clients.sizes()[0])}
    return task._replace(clients=clients, clients_per_round=1, work=work)


def locally_trained(task):
    """Each client's weights after its steps on all its examples, one operation at a time.

    Returns:
        `(start, each)`: a list of arrays, and such a list a client.
    """
    model = task.model()
    trainable = [tf.identity(v.value) for v in model.trainable_variables]
    others = [tf.identity(v.value) for v in model.non_trainable_variables]
    kept = {id(v) for v in model.non_trainable_weights}
    is_weight = [id(v) in kept for v in model.non_trainable_variables]

    def numbers(trainable, others):
        statistics = [v for v, weight in zip(others, is_weight, strict=True) if weight]
        return [np.asarray(v, np.float64) for v in (*trainable, *statistics)]

    each = []
    for client in task.clients:
        x, y = tf.nest.map_structure(tf.constant, task.clients[client])
        state = trainable, others
        for _ in range(task.work["local_epochs"]):
            state = designs.sgd_step(model, task.loss, *state, x, y, task.learning_rate)
        each.append(numbers(*state))
    return numbers(trainable, others), each


def average(each, sizes):
    """The clients' weights averaged by their numbers of examples."""
    share = sizes / sizes.sum()
    return [np.tensordot(share, np.stack(same), 1) for same in zip(*each, strict=True)]


def compare(name, found, expected):
    """The largest error of a design's weights.

    Raises:
        WrongResultError: It is above 1e-5, or not a number.
    """
    error = max(
        float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))
        for a, b in zip(found, expected, strict=True)
    )
    if not error <= _TOLERANCE:
        raise WrongResultError(
            f"Expected {name} to give federated averaging's weights within {_TOLERANCE}. Received: "
            f"an error of {error:.2g}. No times are worth reading until it does."
        )
    return error


def same_bits(names, results):
    """Checks that designs gave identical weights.

    Raises:
        WrongResultError: They did not.
    """
    first, *rest = results
    for name, other in zip(names[1:], rest, strict=True):
        if any(a.tobytes() != b.tobytes() for a, b in zip(first, other, strict=True)):
            apart = max(np.abs(a - b).max() for a, b in zip(first, other, strict=True))
            raise WrongResultError(
                f"Expected {names[0]} and {name} to give the same bits after a round. Received: "
                f"weights up to {apart:.2g} apart."
            )


def without_dropout(model):
    """The model with the rate of its dropout layers set to zero."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model
