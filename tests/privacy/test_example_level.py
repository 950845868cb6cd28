"""DP-SGD in the clients' steps: its noise, what it refuses, and algorithms that use it."""

import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import (
    CLASSES,
    FEATURES,
    assert_same_bits,
    build,
    differs,
    make_clients,
    needs_tf_privacy,
    run,
)
from tests.privacy.example_models import LOSS, SEED, flat
from tffed import random
from tffed.mechanism import CLIENT_STEPS
from tffed.model import from_keras
from tffed.privacy import dp_optimizer
from tffed.privacy.example_level import dp_sgd, private_gradients

pytestmark = needs_tf_privacy
L = keras.layers
CLIP, Z, BATCH = 0.5, 1.5, 4


def wide():
    """A model of a million weights with a zero gradient: what is left is the noise."""
    model = keras.Sequential([keras.Input((1000,)), L.Dense(999), L.Dense(1, use_bias=False)])
    model.layers[-1].set_weights([np.zeros((999, 1))])
    return model, from_keras(model, "mse")


def make_noise(model, pure, clip=CLIP, z=Z, **options):
    """`(secret) -> gradients` of examples that have no gradient."""
    private = private_gradients(pure, model, dp_sgd(clip, z), **options)
    batch = tf.zeros((BATCH, *model.input_shape[1:])), tf.zeros((BATCH, 1))
    weights = pure.init()

    def draw(secret):
        return private.grad(weights, batch, SEED, noise=secret)[0]

    return draw


def check_stddev(draw, stddev):
    """On a million numbers: bounds of 0.3 %, 4.2 standard errors (false alarms: 3 in 100,000)."""
    noise = flat(draw(random.secret(3)))
    assert noise.size > 999_000
    assert abs(noise.std() / stddev - 1) < 0.003
    assert abs(noise.mean()) < 4.2 * stddev / 1000
    assert len(np.unique(noise)) > 0.9 * noise.size  # float32 has so many of these


def check_fresh(draw):
    """Every seed and every variable has noise of its own."""
    first, again, other = (draw(random.secret(k)) for k in (3, 3, 4))
    assert_same_bits(first, again)
    assert differs(first, other, 0.01 * CLIP)
    assert differs([first[0][0]], [first[1]], 0.01 * CLIP)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("keras_optimizer", [None, "adam", keras.optimizers.Adagrad(0.1)])
def test_noise_has_its_standard_deviation_and_is_fresh(jit_compile, keras_optimizer):
    draw = make_noise(*wide(), keras_optimizer=keras_optimizer)
    draw = tf.function(draw, autograph=False, jit_compile=jit_compile)
    check_stddev(draw, Z * CLIP / BATCH)
    check_fresh(draw)


def test_these_checks_notice_what_would_be_wrong():
    model, pure = wide()
    stddev = Z * CLIP / BATCH
    with mock.patch.object(random, "normal", lambda shape, seed: tf.zeros(shape)):
        with pytest.raises(AssertionError):
            check_stddev(make_noise(model, pure), stddev)
    with pytest.raises(AssertionError):
        check_stddev(make_noise(model, pure, clip=CLIP / 2), stddev)
    with pytest.raises(AssertionError):
        check_stddev(make_noise(model, pure, z=Z * 0.99), stddev)
    normal = random.normal
    with mock.patch.object(random, "normal", lambda shape, _: normal(shape, random.secret(1))):
        with pytest.raises(AssertionError):
            check_fresh(make_noise(model, pure))


def test_noise_of_microbatches_is_divided_by_their_number():
    model, pure = wide()
    private = private_gradients(pure, model, dp_sgd(CLIP, Z, microbatches=2))
    batch = tf.zeros((BATCH, 1000)), tf.zeros((BATCH, 1))
    check_stddev(lambda s: private.grad(pure.init(), batch, SEED, noise=s)[0], Z * CLIP / 2)


_PROCESS = """
import keras, numpy as np, tensorflow as tf
import tffed
clients = {k: (np.ones((6, 3), np.float32), np.ones((6, 2), np.float32)) for k in range(2)}
for seeded, jit_compile in ((False, False), (True, True)):
    if seeded:
        keras.utils.set_random_seed(1)
        tf.random.set_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.zeros((3, 2)), np.zeros(2)])
    federated = tffed.Federated(model, tffed.fed_avg(local_epochs=2, batch_size=3), seed=1)
    federated.compile(
        keras.optimizers.SGD(0.1),
        loss="mse",
        privacy=tffed.privacy.dp_sgd(1.0, 1.0),
        jit_compile=jit_compile,
        processes=False,
    )
    for _ in range(2):
        federated.fit(clients, rounds=1, verbose=0)
        print(*model.get_weights()[0].ravel())
"""


def test_noise_differs_between_processes_and_rounds():
    """With and without XLA, with and without a seed of everything else."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _PROCESS], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    steps = []
    for process in processes:
        lines = process.communicate(timeout=200)[0].splitlines()
        assert process.returncode == 0 and len(lines) == 4
        weights = np.array([line.split() for line in lines], float).reshape(2, 2, -1)
        steps += [*weights[:, 0], *(weights[:, 1] - weights[:, 0])]
    for k, step in enumerate(steps):
        for other in steps[:k]:
            assert np.abs(step - other).max() > 1e-3


def test_noise_of_a_retraced_function_is_that_of_its_secret():
    model, pure = wide()
    traces = [make_noise(model, pure) for _ in range(2)]
    traces = [tf.function(draw, autograph=False) for draw in traces]
    keras.utils.set_random_seed(1)
    first = traces[0](random.secret(1))
    keras.utils.set_random_seed(1)
    assert differs(first, traces[1](random.secret(2)), 0.1 * CLIP)
    # Nothing of the first trace is left in the second, nor a tensor of it in the optimizer.
    again = tf.function(make_noise(model, pure), autograph=False)
    for secret in (random.secret(1), random.secret(2)):
        again(secret)
    again.get_concrete_function(tf.TensorSpec([2], tf.int64))
    assert_same_bits(first, again(random.secret(1)))


def small():
    model = keras.Sequential([keras.Input((FEATURES,)), L.Dense(CLASSES)])
    return model, from_keras(model, LOSS)


def recipes():
    return {
        "fed_avg": tffed.fed_avg(local_epochs=2, batch_size=3),
        "fed_prox": tffed.fed_prox(mu=0.1, local_epochs=2, batch_size=3),
        "scaffold": tffed.scaffold(local_epochs=2, batch_size=3),
        "fed_sgd": tffed.fed_sgd(),
        "fed_sgd in batches": tffed.fed_sgd(batch_size=3),
    }


@pytest.mark.parametrize("name", recipes())
def test_algorithms_run_on_private_gradients_as_on_others(name):
    model, pure = small()
    data = make_clients([5, 7, 3])

    def end(model):
        client = keras.optimizers.SGD(0.1) if not name.startswith("fed_sgd") else None
        algorithm = build(recipes()[name], model, client=client)
        return algorithm, *run(algorithm, model, data, [[0, 1, 2], [2, 0]])

    plain, state, history = end(pure)
    assert not plain.mechanisms
    # With a clip that no gradient reaches and no noise all is as without.
    algorithm, same, metrics = end(private_gradients(pure, model, dp_sgd(1e4, 0.0)))
    (mechanism,) = algorithm.mechanisms
    assert (mechanism.place, mechanism.unit, mechanism.clip) == (CLIENT_STEPS, "example", 1e4)
    for a, b in zip(same.weights.trainable, state.weights.trainable, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(metrics, history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    noisy = private_gradients(pure, model, dp_sgd(1e4, 1e-4))
    assert differs(end(noisy)[1].weights, same.weights, 1e-3)


def test_a_client_optimizer_steps_with_the_noised_gradients():
    model, pure = small()
    private = private_gradients(pure, model, dp_sgd(CLIP, Z), "adam")
    data = make_clients([4])
    algorithm = build(
        tffed.fed_avg(local_steps=1, batch_size=4),
        private,
        client=keras.optimizers.Adam(0.1, epsilon=1e-12),
    )
    before = pure.init().trainable
    state, _ = run(algorithm, private, data, [[0]])
    # Adam's first step is the learning rate in the direction of the gradient's sign, for gradients
    # far above its epsilon: those of a standard deviation of 0.19 are.
    for w, start in zip(state.weights.trainable, before, strict=True):
        np.testing.assert_allclose(np.abs(w - start), 0.1, rtol=1e-3)


def test_applying_gradients_by_its_optimizer_raises():
    query = dp_optimizer._query_class()(CLIP, Z)
    for optimizer in ("sgd", keras.optimizers.Adam(0.1), keras.optimizers.Adagrad(0.1)):
        private = dp_optimizer.dp_optimizer(optimizer, query)
        variable = keras.Variable(tf.zeros([2]))
        for bypass in (
            lambda o=private, v=variable: o.apply_gradients([(tf.ones([2]), v)]),
            lambda o=private, v=variable: o.apply([tf.ones([2])], [v]),
        ):
            with pytest.raises(RuntimeError, match="Received: a call of tensorflow-privacy's"):
                bypass()
        np.testing.assert_array_equal(variable, 0)


def test_calibration_and_mechanism():
    level = dp_sgd(2.0)
    assert level.mechanism.noise_multiplier is None
    assert level.calibrate(1.25).mechanism.noise_multiplier == 1.25
    assert level.mechanism.sensitivity == 1
    halves = dp_sgd(2.0, microbatches=2, method="map").calibrate(1.0)
    assert halves.mechanism.sensitivity == 2
    assert (halves.microbatches, halves.method) == (2, "map")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": 0.0}, "`clip` must be positive and finite.*clip=0.0"),
        ({"clip": None}, "clip=None"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"noise_multiplier": -1.0}, "`noise_multiplier` must be.*noise_multiplier=-1.0"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier=inf"),
        ({"microbatches": 0}, "`microbatches` must be a positive integer.*microbatches=0"),
        ({"microbatches": True}, "microbatches=True"),
        ({"method": "fast"}, "`method` must be one of.*method='fast'"),
    ],
)
def test_dp_sgd_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        dp_sgd(**({"clip": 1.0} | arguments))


class Penalised(L.Dense):
    """A layer that adds its outputs to the loss."""

    def call(self, x):
        self.add_loss(tf.reduce_mean(tf.square(x)))
        return super().call(x)


class Counting(L.Layer):
    """A layer that keeps a mean of what it sees."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(), trainable=False, initializer="zeros")

    def call(self, x, training=False):
        if training:
            self.mean.assign(tf.reduce_mean(x))
        return x


@pytest.mark.parametrize(
    ("layer", "loss", "message"),
    [
        (L.BatchNormalization(), LOSS, "Received: the BatchNormalization layer"),
        (L.Dense(4, kernel_regularizer="l2"), LOSS, "regularizers or add_loss"),
        (Penalised(4), LOSS, "regularizers or add_loss"),
        (Counting(), LOSS, "Received: .*, which a call changes by the examples"),
        (
            L.Dense(4),
            keras.losses.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight"),
            'reduction="mean_with_sample_weight"',
        ),
    ],
    ids=["batch norm", "regularizer", "add_loss", "statistic", "weighted mean"],
)
def test_models_that_couple_examples_are_refused(layer, loss, message):
    model = keras.Sequential([keras.Input((4,)), layer, L.Dense(3)])
    pure = from_keras(model, loss)
    batch = tf.zeros((2, 4)), tf.zeros((2,), tf.int32)
    with pytest.raises(ValueError, match=message):
        private_gradients(pure, model, dp_sgd(1.0, 0.0)).grad(pure.init(), batch, SEED)


def test_frozen_batch_norm_is_fine():
    model = keras.Sequential([keras.Input((4,)), L.BatchNormalization(), L.Dense(3)])
    pure = from_keras(model, LOSS, batch_norm="freeze")
    private = private_gradients(pure, model, dp_sgd(1.0, 0.0))
    grads, _, _ = private.grad(pure.init(), (tf.ones((2, 4)), tf.zeros((2,), tf.int32)), SEED)
    assert np.abs(flat(grads)).max() > 0


def test_noise_needs_a_multiplier_and_a_secret():
    model, pure = small()
    with pytest.raises(ValueError, match="Received: noise_multiplier=None.*calibrate"):
        private_gradients(pure, model, dp_sgd(1.0))
    private = private_gradients(pure, model, dp_sgd(1.0, 1.0))
    with pytest.raises(ValueError, match="Received: noise=()"):
        private.grad(pure.init(), (tf.ones((2, 4)), tf.zeros((2,), tf.int32)), SEED)
