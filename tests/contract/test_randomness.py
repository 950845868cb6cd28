"""Random numbers in a model's call: other ones in each step, at each client, in each round."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras import ops

import tffed

CLIENTS, STEPS = 2, 3
ENTRIES = CLIENTS * STEPS


class Holder:
    """A plain object that Keras does not look into."""

    def __init__(self):
        self.generator = keras.random.SeedGenerator(3)


OUTSIDE = keras.random.SeedGenerator(5)


class Noise(L.Layer):
    """Multiplies a weight for each entry by one random number; its gradient is that number."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.own = keras.random.SeedGenerator(1)
        self.listed = [keras.random.SeedGenerator(2)]
        self.held = Holder()
        self.dropout = L.Dropout(0.5)
        self.jitter = L.GaussianNoise(1.0)

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="zeros")

    def call(self, x, training=False):
        if not training:
            return ops.sum(x * self.w, -1, keepdims=True)
        return ops.sum(x * self.w * self.draw(self), -1, keepdims=True)


def normal(seed):
    return keras.random.normal((1,), seed=seed)


DRAWS = {
    "global": lambda layer: keras.random.normal((1,)),
    "attribute": lambda layer: normal(layer.own),
    "list": lambda layer: normal(layer.listed[0]),
    "plain_object": lambda layer: normal(layer.held.generator),
    "outside": lambda layer: normal(OUTSIDE),
    "layer": lambda layer: layer.jitter(ops.zeros((1,)), training=True),
    "uniform": lambda layer: keras.random.uniform((1,)) - 0.5,
    "tensorflow": lambda layer: tf.random.normal((1,)),
}


def noises(draw, rounds=2, seed=7, **path):
    """`[round, client, step]`: the random numbers of a run of one example a step."""
    x = keras.Input((ENTRIES,))
    model = keras.Model(x, Noise(draw)(x))
    fed = tffed.Federated(model, tffed.fed_avg(local_steps=STEPS, batch_size=1), seed=seed)
    rate = keras.optimizers.SGD(1.0)
    fed.compile(client_optimizer=rate, loss=lambda y, p: ops.mean(p, -1), **path)
    rows = np.eye(ENTRIES, dtype="float32").reshape(CLIENTS, STEPS, ENTRIES)
    data = {k: (rows[k], np.zeros((STEPS, 1), "float32")) for k in range(CLIENTS)}
    ends = [np.zeros(ENTRIES)]
    for number in range(rounds):
        fed.fit(data, rounds=number + 1, initial_round=number, verbose=0)
        ends.append(model.get_weights()[0].astype(np.float64))
    return -CLIENTS * np.diff(ends, axis=0).reshape(rounds, CLIENTS, STEPS)


MORE = ("attribute", "list", "uniform")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in MORE)) for k in DRAWS]
)
def test_each_step_of_each_client_in_each_round_has_its_own(kind):
    found = noises(DRAWS[kind]).ravel()
    assert np.all(np.abs(found) > 1e-6)
    assert np.min(np.diff(np.sort(found))) > 1e-6, found


@pytest.mark.parametrize(
    "path",
    [
        {"jit_compile": False},
        pytest.param({"batched": True}, marks=pytest.mark.slow),
        pytest.param({"payloads": True}, marks=pytest.mark.slow),
        pytest.param({"processes": True}, marks=pytest.mark.slow),
    ],
    ids=lambda path: next(iter(path)),
)
def test_each_has_its_own_on_every_path_and_the_same_again(path):
    found = noises(DRAWS["global"], rounds=1, **path)
    assert np.min(np.diff(np.sort(found.ravel()))) > 1e-6, found
    np.testing.assert_array_equal(found, noises(DRAWS["global"], rounds=1, **path))
    assert not np.allclose(found, noises(DRAWS["global"], rounds=1, seed=8, **path))


def test_a_whole_number_as_seed_gives_the_same_numbers_as_in_keras():
    found = noises(lambda layer: keras.random.normal((1,), seed=4), rounds=1)
    np.testing.assert_allclose(found, float(keras.random.normal((1,), seed=4)[0]), rtol=1e-6)


def test_the_numbers_have_the_distribution_that_was_asked_for():
    def draw(layer):
        return keras.random.normal((ENTRIES,), mean=2.0, stddev=3.0)

    found = noises(draw, rounds=8).ravel()
    assert abs(found.mean() - 2) < 4 * 3 / np.sqrt(found.size)
    assert 0.7 < found.std() / 3 < 1.4
