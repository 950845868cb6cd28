"""The designs that a round is timed in: tffed's, and centralised training as the floor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tffed

SEED = 3


class Design(NamedTuple):
    """One way to do the work of rounds.

    Attributes:
        run: `(rounds) -> None`, going on from where the last call ended.
        weights: `() -> list of arrays`, the trainable weights, then BatchNorm's statistics.
    """

    run: Callable
    weights: Callable


class Task(NamedTuple):
    """What all designs are to do.

    Attributes:
        model: `() -> keras.Model`.
        loss: A Keras loss.
        clients: A `ClientData` in memory.
        clients_per_round: Size of a cohort; rounds must all have the same batches.
        learning_rate: Of the clients' SGD.
        work: Named arguments of `tffed.fed_avg`.
    """

    model: Callable
    loss: Any
    clients: Any
    clients_per_round: int
    learning_rate: float
    work: dict


def fit(task) -> Design:
    """tffed as users get it: `Federated.compile` and `Federated.fit`, nothing set but the task."""
    model = task.model()
    federated = tffed.Federated(model, tffed.fed_avg(**task.work), seed=SEED)
    federated.compile(keras.optimizers.SGD(task.learning_rate), loss=task.loss)
    done = 0

    def run(rounds):
        nonlocal done
        federated.fit(
            task.clients,
            rounds=done + rounds,
            initial_round=done,
            clients_per_round=task.clients_per_round,
            verbose=0,
        )
        done += rounds

    return Design(run, lambda: _values(model))


def functional(task) -> Design:
    """tffed's functional layer: an algorithm's record on an engine, through `run_rounds`."""
    keras_model = task.model()
    model = tffed.from_keras(keras_model, task.loss)

    def pure(rate):
        return tffed.optimizers.from_keras(keras.optimizers.SGD(rate), model.variables)

    algorithm = tffed.fed_avg(**task.work)(
        model,
        client_optimizer=pure(task.learning_rate),
        server_optimizer=pure(1.0),
        aggregator=tffed.chain(tffed.mean()),
    )
    engine, sampler = tffed.Embedded(algorithm), tffed.data.Uniform(task.clients_per_round)
    state = algorithm.init(model.init(), len(task.clients))

    def run(rounds):
        nonlocal state
        for new, _ in tffed.run_rounds(
            engine, state, task.clients, sampler, rounds=rounds, seed=SEED
        ):
            state = new

    def weights():
        return [w.numpy() for w in (*state.weights.trainable, *state.weights.non_trainable)]

    return Design(run, weights)


def floor_graph(task) -> Design:
    """As many centralised SGD steps as a round has, in one graph on TensorFlow's own threads."""
    return _floor(task, jit_compile=False)


def floor_xla(task) -> Design:
    """The same compiled with XLA, whose batches all have the full size: shapes are static."""
    return _floor(task, jit_compile=True)


DESIGNS = {
    "fit": fit,
    "functional": functional,
    "floor_graph": floor_graph,
    "floor_xla": floor_xla,
}


def _floor(task, jit_compile):
    """Centralised minibatch SGD on resident data, with the round's model, loss and batches.

    BatchNorm's statistics and dropout's seeds are carried from step to step.
    """
    model = task.model()
    table, sizes = batch_table(task)
    data = tf.nest.map_structure(tf.constant, task.clients.examples([]).arrays)
    table, sizes = tf.constant(table), tf.constant(sizes)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def steps(trainable, others, data, table, sizes):
        def step(t, trainable, others):
            rows = table[t] if jit_compile else table[t, : sizes[t]]
            x, y = tf.nest.map_structure(lambda array: tf.gather(array, rows), data)
            trainable, others = sgd_step(
                model, task.loss, trainable, others, x, y, task.learning_rate
            )
            return t + 1, trainable, others

        start = (tf.constant(0), trainable, others)
        return tf.while_loop(
            lambda t, *_: t < table.shape[0], step, start, parallel_iterations=1
        )[1:]

    state = [v.value for v in model.trainable_variables], [
        v.value for v in model.non_trainable_variables
    ]
    state = tf.nest.map_structure(tf.identity, state)

    def run(rounds):
        nonlocal state
        for _ in range(rounds):
            state = steps(*state, data, table, sizes)
        state[0][0].numpy()  # waits for a device that works ahead

    def weights():
        values = dict(zip(map(id, model.non_trainable_variables), state[1], strict=True))
        statistics = [values[id(v)] for v in model.non_trainable_weights]
        return [value.numpy() for value in (*state[0], *statistics)]

    return Design(run, weights)


def sgd_step(model, loss, trainable, others, x, y, learning_rate):
    """One plain SGD step of a Keras model; `others` are its non-trainable variables' values.

    Returns:
        `(trainable, others)` after it.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(trainable)
        predicted, others = model.stateless_call(trainable, others, x, training=True)
        value = loss(y, predicted)
    grads = tape.gradient(value, trainable)
    return [_move(w, g, learning_rate) for w, g in zip(trainable, grads, strict=True)], others


def _move(weight, grad, learning_rate):
    if isinstance(grad, tf.IndexedSlices):  # of an embedding: only its rows
        return tf.tensor_scatter_nd_sub(
            weight, grad.indices[:, None], learning_rate * grad.values
        )
    return weight - learning_rate * grad


def batch_table(task):
    """The rows of each batch of a round, as many batches of as many examples as its clients have.

    Returns:
        `(table, sizes)`: int32 `[steps, batch size]` rows of the arrays, and int32 `[steps]`: how
        many of them a batch really has. The rest are examples too, for XLA to fill up with.
    """
    most = task.work["batch_size"]
    counts = task.clients.sizes()[: task.clients_per_round]
    sizes = [np.minimum(most, count - np.arange(0, count, most)) for count in counts]
    sizes = np.tile(np.concatenate(sizes), task.work["local_epochs"]).astype(np.int32)
    rows = task.clients.examples(list(task.clients.ids)[: task.clients_per_round]).rows
    order = np.random.default_rng(0).permutation(rows)
    return np.resize(order, (len(sizes), most)).astype(np.int32), sizes


def _values(model):
    return [v.numpy() for v in (*model.trainable_weights, *model.non_trainable_weights)]
