"""Private steps that draw their examples by coins: the loop, its accounting, empty samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import needs_tf_privacy
from tffed import privacy, random

pytestmark = needs_tf_privacy
MSE = keras.losses.MeanSquaredError()
SECRET = 5


def linear(data, batch_size, noise_multiplier=0.0, clip=1e3, rounds=1, noise_seed=SECRET, **fit):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[0.5], [-0.3], [0.1]], np.float32)])
    fed = tffed.Federated(model, tffed.fed_avg(2, batch_size=batch_size), seed=1)
    fed.compile(
        client_optimizer=keras.optimizers.SGD(0.1),
        loss=MSE,
        privacy=privacy.dp_sgd(clip, noise_multiplier, sampling="poisson"),
        noise_seed=noise_seed,
    )
    fed.fit(data, rounds=rounds, verbose=0, **fit)
    return fed


def make(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.normal(size=(count, 1)).astype("f4")


def test_steps_equal_numpy_on_the_same_samples():
    x, y = make(23)
    fed = linear({"a": (x, y)}, batch_size=5, clip=0.7)
    w = np.array([[0.5], [-0.3], [0.1]])
    clients, _ = random.round_noise(random.secret(SECRET), tf.constant(0))
    public = random.client_seed(random.seed(1), 0, tf.constant(random.client_key("a")))
    mine, sizes = random.client_noise(clients, public), []
    for step in range(2 * 5):  # two passes of ceil(23 / 5) steps
        rows = random.sample(tf.range(23), 5, random.sample_seed(mine, tf.constant(step))).numpy()
        sizes.append(len(rows))
        grads = 2 * (x[rows] @ w - y[rows]) * x[rows]
        norms = np.linalg.norm(grads, axis=1, keepdims=True)
        w = w - 0.1 * (grads * np.minimum(1, 0.7 / norms)).sum(0)[:, None] / 5
    assert len(set(sizes)) > 2
    np.testing.assert_allclose(fed.model.get_weights()[0], w, rtol=1e-5, atol=1e-6)


def test_each_step_counts_as_a_poisson_sample_of_the_client_that_pays_most():
    dp = pytest.importorskip("dp_accounting")
    data = {"a": make(40), "b": make(100), "c": make(60)}
    fed = linear(data, 10, noise_multiplier=1.5, rounds=4, noise_seed=None, clients_per_round=2)
    sampler = tffed.data.Uniform(2)
    cohorts = [sampler.sample(list(data), seed=1, round=r) for r in range(4)]
    most = max(sum(name in cohort for cohort in cohorts) for name in data)
    expected = []
    for count in (40, 100, 60):
        one = dp.PoissonSampledDpEvent(10 / count, dp.GaussianDpEvent(1.5))
        accountant = dp.rdp.RdpAccountant().compose(one, most * 2 * count // 10)
        expected.append(accountant.get_epsilon(1e-5))
    found = fed.privacy_report(1e-5, accountant="rdp")
    assert found.epsilon == pytest.approx(max(expected), rel=1e-6)
    assert (found.unit, found.relation) == ("example", "zero_out")
    with pytest.raises(ValueError, match="no example can be added"):
        fed.privacy_report(1e-5, relation="add_or_remove")


def layers_of(kind):
    layers = keras.layers
    return {
        "dense": ((6,), [layers.Dense(4, activation="relu")]),
        "conv": ((6, 6, 3), [layers.Conv2D(40, 3, activation="relu"), layers.Flatten()]),
        "lstm": ((5, 3), [layers.LSTM(4)]),
        "normalized": ((5, 4), [layers.Flatten(), layers.LayerNormalization()]),
    }[kind]


@pytest.mark.parametrize("kind", ["dense", "conv", "lstm", "normalized"])
def test_empty_samples_leave_noise_alone(kind):
    shape, middle = layers_of(kind)
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input(shape), *middle, keras.layers.Dense(2)])
    rng = np.random.default_rng(0)
    data = {
        k: (rng.normal(size=(12, *shape)).astype(np.float32), rng.integers(0, 2, 12))
        for k in range(3)
    }
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=1), seed=1)
    fed.compile(
        client_optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        privacy=privacy.dp_sgd(1.0, 1.0, sampling="poisson"),
    )
    history = fed.fit(data, rounds=2, verbose=0).history  # 36 steps a round, a third are empty
    assert history["dropped"] == [0.0, 0.0]
    assert np.isfinite(history["loss"]).all() and 0 <= history["accuracy"][-1] <= 1
    assert all(np.isfinite(w).all() for w in fed.model.get_weights())


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: privacy.dp_sgd(1.0, 1.0, sampling="uniform"), "must be one of"),
        (lambda: privacy.dp_sgd(1.0, 1.0, sampling="poisson", microbatches=2), "without microb"),
    ],
)
def test_what_is_refused(make_it, words):
    with pytest.raises(ValueError, match=words):
        make_it()


def test_federated_sgd_takes_all_examples_and_claims_no_sample():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_sgd(), seed=1)
    steps = privacy.dp_sgd(1.0, 1.0, sampling="poisson")
    fed.compile(server_optimizer=keras.optimizers.SGD(0.1), loss=MSE, privacy=steps)
    with pytest.raises(ValueError, match="sampling='poisson' with the algorithm fed_sgd"):
        fed.fit({"a": make(9)}, rounds=1, verbose=0)
