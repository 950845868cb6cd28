"""What several tests share: a small model, rounds, comparisons, and a regression in NumPy."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from tffed import aggregation, optimizers, random
from tffed.data import from_dict
from tffed.engines.embedded import Embedded
from tffed.model import from_keras
from tffed.store import ClientStore

needs_tf_privacy = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_privacy") is None,
    reason="tensorflow-privacy does not declare this Python",
)
FEATURES, CLASSES = 4, 3
SEED = 11


def softmax_regression():
    """The pure form of a softmax regression on `FEATURES` inputs, with the same weights always."""
    dense = keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    model = keras.Sequential([keras.Input((FEATURES,)), dense])
    return from_keras(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def make_clients(sizes, seed=0, ids=None):
    """`{id: (x, y)}` of random classification data whose labels depend on the client."""
    rng = np.random.default_rng(seed)
    ids = range(len(sizes)) if ids is None else ids
    return {
        i: (
            rng.normal(size=(n, FEATURES)).astype(np.float32),
            (rng.integers(0, 2, n) + k) % CLASSES,
        )
        for k, (i, n) in enumerate(zip(ids, sizes, strict=True))
    }


def build(recipe, model, *, client=None, server=None, parts=None):
    """The `Algorithm` of a recipe; plain SGD at the server, the mean by examples by default."""
    if client is not None:
        client = optimizers.from_keras(client, model.variables)
    server = keras.optimizers.SGD(1.0) if server is None else server
    return recipe(
        model,
        client_optimizer=client,
        server_optimizer=optimizers.from_keras(server, model.variables),
        aggregator=aggregation.chain(*(parts or [aggregation.mean()])),
    )


def run(algorithm, model, data, cohorts, *, lanes=2, store=None, population=None):
    """Runs one round a cohort; returns the last state and the metrics of each round as floats."""
    clients = from_dict(data) if isinstance(data, dict) else data
    engine = Embedded(algorithm, lanes=lanes, jit_compile=False, processes=False)
    state = algorithm.init(model.init(), population or len(clients))
    store = ClientStore() if store is None else store
    history = []
    for ids in cohorts:
        state, metrics = engine.run_round(
            state, clients, list(ids), seed=random.seed(SEED), store=store
        )
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def arrays(nest):
    """The leaves of a nest of tensors, or of an `as_vector`, as NumPy arrays."""
    nest = list(nest) if isinstance(nest, np.ndarray) and nest.dtype.hasobject else nest
    return [np.asarray(leaf) for leaf in tf.nest.flatten(nest)]


def assert_close(actual, expected, tolerance=1e-5):
    """Asserts that two nests have close leaves."""
    actual, expected = arrays(actual), arrays(expected)
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_same_bits(actual, expected):
    """Asserts that two nests have identical leaves."""
    actual, expected = arrays(actual), arrays(expected)
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def differs(actual, expected, least=1e-4):
    """Whether some leaf differs by more than `least`."""
    pairs = zip(arrays(actual), arrays(expected), strict=True)
    return any(np.abs(a - b).max() > least for a, b in pairs)


# The reference: softmax regression in float64.


def softmax_gradient(weights, x, y):
    """The gradient of the mean cross-entropy by `(kernel, bias)`."""
    kernel, bias = weights
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    return as_vector([x.T @ p, p.sum(axis=0)])


def start(model):
    """The initial trainable weights, an object array of float64 arrays: it adds and scales."""
    return as_vector(model.init().trainable)


def as_vector(weights):
    """Arrays of several shapes as one object array, so that NumPy's arithmetic applies."""
    vector = np.empty(len(weights), object)
    vector[:] = [np.asarray(w, np.float64) for w in weights]
    return vector


def batches(round_number, client_id, count, *, batch_size=None, epochs=1, steps=None):
    """Positions in a client's examples of each of its batches in a round, in the engine's order."""
    seed = random.client_seed(
        random.seed(SEED), round_number, tf.constant(random.client_key(client_id))
    )
    size = batch_size or count
    taken, epoch = [], 0
    while len(taken) < steps if steps else epoch < epochs:
        order = random.shuffle(tf.range(count), random.shuffle_seed(seed, epoch)).numpy()
        taken += [order[k : k + size] for k in range(0, count, size)]
        epoch += 1
    return taken[:steps]
