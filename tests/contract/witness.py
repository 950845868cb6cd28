"""The outside witness: what Keras itself makes of a round of federated averaging."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

import tffed
from tests.helpers import SEED, batches

TOLERANCE = 2e-6
LEAST = 1e-2  # of a movement: of what moves less, rounding of the weights themselves is seen


class Trial(NamedTuple):
    """A model and what it is trained with; made afresh for tffed and for the witness.

    Attributes:
        model: A built `keras.Model`.
        data: `(x, y[, sample_weight])` of each client.
        loss: As in `keras.Model.compile`.
        optimizer: `() -> ` the clients' Keras optimizer.
        compiled: Other arguments of `keras.Model.compile`: metrics, loss weights.
        class_weight: As in `keras.Model.fit`.
        batch_norm: As in `tffed.Federated.compile`.
        batch_size: Examples in a batch.
        steps: Local steps of each client.
        rounds: Rounds of all clients.
        gradients: Whether clients send the gradient of all their examples (`fed_sgd`) instead of
            training; the optimizer, plain gradient descent, is then the server's.
        tolerance: What the weights may differ by, relative to the largest movement.
        after_compile: `(model) -> None`: what the user does between `compile` and `fit`.
    """

    model: Any
    data: list
    loss: Any = "mse"
    optimizer: Callable = lambda: keras.optimizers.SGD(0.3)
    compiled: dict = {}
    class_weight: dict | None = None
    batch_norm: str = "average"
    batch_size: int = 4
    steps: int = 2
    rounds: int = 1
    gradients: bool = False
    tolerance: float = TOLERANCE
    after_compile: Callable = lambda model: None


class Outcome(NamedTuple):
    """What a training run ended with.

    Attributes:
        weights: `[(path, array)]` of the floating weights.
        moved: The largest change of a trainable weight.
        logs: `{metric: value}` of the last round.
        pooled: `{metric: value}` of an evaluation of all examples together.
        by_client: `{metric: [value of each client]}`.
    """

    weights: list
    moved: float
    logs: dict
    pooled: dict
    by_client: dict


def compare(make, *, by_client=False, **path) -> Outcome:
    """Trains a `Trial` with tffed and with Keras, and asserts that all numbers are the same.

    Args:
        make: `() -> Trial`, a fresh one at each call.
        by_client: Whether to evaluate client by client, too.
        **path: Arguments of `Federated.compile` that say how the clients are run.

    Returns:
        What Keras ended with.
    """
    theirs, ours = fresh(make), fresh(make)
    for old, new in zip(ours.model.variables, theirs.model.variables, strict=True):
        new.assign(old)
    got = federated(ours, by_client, **path)
    expected = witness(theirs, by_client)
    wrong = [*_weights(got, expected, ours.tolerance), *_metrics(got, expected, ours.tolerance)]
    assert not wrong, "; ".join(wrong)
    return expected


def fresh(make):
    """A `Trial` made with the same names and initial weights each time."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    return make()


def federated(trial, by_client=False, **path) -> Outcome:
    """Trains with tffed."""
    recipe = tffed.fed_avg(local_steps=trial.steps, batch_size=trial.batch_size)
    optimizer = {"client_optimizer": trial.optimizer()}
    if trial.gradients:
        recipe, optimizer = tffed.fed_sgd(), {"server_optimizer": trial.optimizer()}
    fed = tffed.Federated(trial.model, recipe, seed=SEED)
    fed.compile(
        **optimizer,
        loss=trial.loss,
        class_weight=trial.class_weight,
        batch_norm=trial.batch_norm,
        **trial.compiled,
        **path,
    )
    trial.after_compile(trial.model)
    clients = dict(enumerate(trial.data))
    history = fed.fit(clients, rounds=trial.rounds, verbose=0).history
    found = fed.evaluate(*_all_examples(trial.data))
    each = fed.evaluate(tffed.data.from_dict(clients)).metrics if by_client else {}
    logs = {name: values[-1] for name, values in history.items()}
    return Outcome(_floating(trial.model), 0.0, logs, found, each)


def witness(trial, by_client=False) -> Outcome:
    """Trains a Keras model as each client in turn by Keras's own step, and averages by n_k."""
    model = trial.model
    model.compile(trial.optimizer(), trial.loss, run_eagerly=True, **trial.compiled)
    trial.after_compile(model)
    first = [v.numpy() for v in model.trainable_variables]
    sizes = [_size(one) for one in trial.data]
    for number in range(trial.rounds):
        model.reset_metrics()
        initial = [v.numpy() for v in model.variables]
        ends = [
            _client(trial, initial, one, batches(number, k, size, **_loop(trial)))
            for k, (one, size) in enumerate(zip(trial.data, sizes, strict=True))
        ]
        for variable, *values in zip(model.variables, initial, *ends, strict=True):
            variable.assign(_mean(variable, values[0], values[1:], sizes))
    logs = _numbers(model.get_metrics_result())
    moved = max(
        float(np.abs(np.asarray(v.numpy() - w, np.float64)).max(initial=0))
        for v, w in zip(model.trainable_variables, first, strict=True)
    )
    each = [_evaluated(model, one) for one in trial.data] if by_client else []
    return Outcome(
        _floating(model),
        moved,
        logs,
        _evaluated(model, _all_examples(trial.data)),
        {name: np.stack([one[name] for one in each]) for name in (each[0] if each else ())},
    )


def _loop(trial):
    if trial.gradients:
        return {"steps": 1}
    return {"batch_size": trial.batch_size, "steps": trial.steps}


def _client(trial, initial, data, positions):
    """The variables after a client's steps, each one Keras's `train_step`, with a new optimizer."""
    model = trial.model
    for variable, value in zip(model.variables, initial, strict=True):
        variable.assign(value)
    model.optimizer = trial.optimizer()
    if model.dtype_policy.name == "mixed_float16":  # as `Model.compile` does
        model.optimizer = keras.optimizers.LossScaleOptimizer(model.optimizer)
    for rows in positions:
        batch = tf.nest.map_structure(lambda a: tf.convert_to_tensor(a[rows]), _cut(data))  # noqa: B023
        if trial.class_weight:
            weights = class_weight_to_sample_weights(batch[1], trial.class_weight)
            batch = (*batch, tf.convert_to_tensor(weights))
        model.train_step(batch)
    return [v.numpy() for v in model.variables]


def _mean(variable, start, ends, sizes):
    """The clients' values weighted by their examples, within the weight's constraint.

    What is not a floating number, such as a seed or a counter, stays as it was, and so does what
    no client has changed.
    """
    changed = any((end != start).any() for end in ends)
    if not changed or not tf.as_dtype(variable.dtype).is_floating:
        return start
    mean = np.average(np.stack(ends).astype(np.float64), axis=0, weights=sizes)
    if variable.constraint is not None and variable.trainable:
        mean = variable.constraint(tf.constant(mean, variable.dtype))
    return tf.cast(mean, variable.dtype)


def _evaluated(model, data):
    x, y, *weights = _cut(data)
    found = model.evaluate(
        x,
        y,
        batch_size=256,
        sample_weight=weights[0] if weights else None,
        return_dict=True,
        verbose=0,
    )
    return _numbers(found)


def _numbers(logs):
    """Metrics as arrays; one that is a dictionary as the metrics that it holds."""
    found = {}
    for name, value in logs.items():
        found |= _numbers(value) if isinstance(value, dict) else {name: np.asarray(value)}
    return found


def _size(data):
    return len(tf.nest.flatten(data)[0])


def _all_examples(data):
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *data)


def _cut(data):
    """Floating numbers of Keras's default precision, as Keras makes those that it is given."""
    real = keras.config.floatx()
    return tf.nest.map_structure(lambda a: a.astype(real) if a.dtype.kind == "f" else a, data)


def _floating(model):
    return [
        (v.path, np.asarray(v.numpy(), np.float64))
        for v in model.weights
        if tf.as_dtype(v.dtype).is_floating
    ]


def _weights(got, expected, tolerance):
    """A line for each weight that differs."""
    for (name, value), (_, found) in zip(expected.weights, got.weights, strict=True):
        error = np.abs(found - value).max(initial=0) / max(expected.moved, LEAST)
        if not error <= tolerance:
            yield f"weight {name}: {error:.2g} of the largest movement"


def _metrics(got, expected, tolerance):
    """A line for each metric that is missing or differs.

    What is undefined, such as a precision without positives, is NaN here and 0 in Keras.
    """
    bound = max(1e-5, 5 * tolerance)
    for kind in ("logs", "pooled", "by_client"):
        found = getattr(got, kind)
        for name, value in getattr(expected, kind).items():
            if name not in found:
                yield f"{kind} {name}: missing"
                continue
            mine = np.where((value == 0) & np.isnan(found[name]), 0, found[name])
            if not np.allclose(mine, value, rtol=bound, atol=bound, equal_nan=True):
                yield f"{kind} {name}: {found[name]}, Keras {value}"
