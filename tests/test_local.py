"""The client's training loop against a loop written by hand over Keras's own training step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import assert_close, assert_same_bits, differs
from tffed import optimizers, random
from tffed.algorithm import Broadcast
from tffed.local import LocalData, local_training
from tffed.model import from_keras

L = keras.layers
RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=(14, 5)).astype(np.float32), RNG.integers(0, 3, 14)
ROWS = np.array([13, 0, 2, 3, 5, 6, 8, 9, 11, 12], np.int32)  # ten of the fourteen examples
SEED = random.seed(21)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(dropout=0.0):
    layers = [L.Dense(6), L.BatchNormalization(momentum=0.8), L.ReLU(), L.Dropout(dropout)]
    return keras.Sequential([keras.Input((5,)), *layers, L.Dense(3)])


def sgd():
    return keras.optimizers.SGD(0.2, momentum=0.6)


def train(model, work, rows=ROWS, correct=None, extra=(), learning_rate=0.2, keras_optimizer=None):
    """The weights at the beginning, and the result of the compiled loop."""
    pure = from_keras(model, LOSS, ["accuracy"])
    optimizer = optimizers.from_keras(keras_optimizer or sgd(), pure.variables)
    work = {"epochs": None, "steps": None, "batch_size": None} | work
    loop = tf.function(local_training(pure, optimizer, correct=correct, **work), autograph=False)
    start = pure.init()
    bc = Broadcast(tf.constant(0), start, (), tf.constant(learning_rate), ())
    data = LocalData((tf.constant(X), tf.constant(Y)), tf.constant(rows))
    return start, loop(bc, data, SEED, extra)


def expected_batches(rows, epochs, size):
    taken = []
    for epoch in range(epochs):
        order = random.shuffle(tf.constant(rows), random.shuffle_seed(SEED, epoch)).numpy()
        taken += [order[k : k + size] for k in range(0, len(rows), size)]
    return taken


@pytest.mark.parametrize(
    "work, epochs, size, steps, partial",
    [
        ({"epochs": 2, "batch_size": 4}, 2, 4, 6, 2),
        ({"epochs": 2, "batch_size": 5}, 2, 5, 4, 5),
        ({"epochs": 3}, 3, 10, 3, 10),
        ({"epochs": 1, "batch_size": 64}, 1, 10, 1, 10),
        ({"steps": 2, "batch_size": 4}, 1, 4, 2, 4),
        ({"steps": 8, "batch_size": 4}, 3, 4, 8, 4),
        ({"steps": 3}, 3, 10, 3, 10),
    ],
)
def test_loop_equals_keras(work, epochs, size, steps, partial):
    model = network()
    start, result = train(model, work)
    batches = expected_batches(ROWS, epochs, size)[:steps]
    assert len(batches) == steps and len(batches[-1]) == partial
    model.compile(optimizer=sgd(), loss=LOSS)
    losses = [model.train_on_batch(X[r], Y[r], return_dict=True)["loss"] for r in batches]
    assert_close(result.weights.trainable, [v.value for v in model.trainable_variables], 2e-5)
    statistics = [v.value for v in model.layers[1].non_trainable_variables]
    assert_close(result.weights.non_trainable, statistics, 2e-5)
    assert int(result.steps) == steps
    counts = [len(rows) for rows in batches]
    assert float(result.sums[0]) == pytest.approx(np.dot(losses, counts), rel=1e-4)
    assert float(result.sums[1]) == sum(counts)
    assert differs(result.weights.trainable, start.trainable, 0.01)


def test_sparse_steps_of_an_embedding_equal_keras():
    """Tokens repeat within a batch, so rows are stepped several times at once."""
    tokens = L.Lambda(lambda x: tf.cast(tf.abs(x) * 2, tf.int32), output_shape=(5,))
    layers = [tokens, L.Embedding(8, 3), L.Flatten(), L.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    start, result = train(
        model, {"epochs": 2, "batch_size": 4}, keras_optimizer=keras.optimizers.SGD(0.2)
    )
    model.compile(optimizer=keras.optimizers.SGD(0.2), loss=LOSS)
    for rows in expected_batches(ROWS, 2, 4):
        model.train_on_batch(X[rows], Y[rows])
    assert_close(result.weights.trainable, [v.value for v in model.trainable_variables], 2e-5)
    assert differs(result.weights.trainable[:1], start.trainable[:1], 0.01)


def test_every_example_once_an_epoch_in_a_new_order():
    first, second = (
        np.concatenate(expected_batches(ROWS, 2, 10)[epoch : epoch + 1]) for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == sorted(ROWS)
    assert list(first) != list(second) and list(first) != list(ROWS)


def test_learning_rate_comes_from_the_broadcast():
    model = network()
    start, slow = train(model, {"steps": 1}, learning_rate=0.01)
    _, fast = train(model, {"steps": 1}, learning_rate=0.03)
    for w0, a, b in zip(
        start.trainable, slow.weights.trainable, fast.weights.trainable, strict=True
    ):
        np.testing.assert_allclose((b - w0), 3 * (a - w0), atol=2e-6)


def test_correction_gets_gradients_weights_initial_weights_and_extra():
    model = network()
    seen = set()

    def correct(grads, weights, initial, extra):
        seen.add((len(grads), len(weights), len(initial)))
        return tuple(
            0.0 * g + (v - w) + extra for g, v, w in zip(grads, weights, initial, strict=True)
        )

    start, result = train(model, {"steps": 3}, correct=correct, extra=tf.constant(1.0))
    # The gradient is (v - w) + 1 for every weight: the same recursion in scalars.
    moved = momentum = 0.0
    for _ in range(3):
        momentum = 0.6 * momentum - 0.2 * (moved + 1)
        moved += momentum
    assert_close(result.weights.trainable, [w + moved for w in start.trainable], 1e-5)
    assert seen == {(6, 6, 6)}


def test_dropout_differs_from_step_to_step():
    seen = []

    def keep_gradients(grads, weights, initial, extra):
        seen.append(grads)
        return tuple(0.0 * g for g in grads)

    layers = [L.Dense(30), L.Dropout(0.5), L.Dense(3)]
    pure = from_keras(keras.Sequential([keras.Input((5,)), *layers]), LOSS)
    optimizer = optimizers.from_keras(keras.optimizers.SGD(0.1), pure.variables)
    loop = local_training(
        pure, optimizer, epochs=None, steps=3, batch_size=None, correct=keep_gradients
    )
    bc = Broadcast(tf.constant(0), pure.init(), (), tf.constant(0.1), ())
    # One example: every step has the same batch, at the same weights. Run eagerly, the correction
    # is called three times.
    data = LocalData((tf.constant(X), tf.constant(Y)), tf.constant(ROWS[:1]))
    loop(bc, data, SEED)
    assert len(seen) == 3
    assert differs(seen[0], seen[1]) and differs(seen[1], seen[2]) and differs(seen[0], seen[2])
    loop(bc, data, SEED)
    assert_close(seen[3:], seen[:3], 1e-5)


def test_same_seed_same_bits():
    model = network(dropout=0.3)
    _, first = train(model, {"epochs": 2, "batch_size": 4})
    _, again = train(model, {"epochs": 2, "batch_size": 4})
    assert_same_bits(first, again)
