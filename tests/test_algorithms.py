"""The algorithms against independent NumPy references: softmax regression, float64, by hand."""

import keras
import numpy as np
import pytest

from tests.helpers import (
    as_vector,
    assert_close,
    batches,
    build,
    differs,
    make_clients,
    run,
    softmax_gradient,
    softmax_regression,
    start,
)
from tffed.aggregation import mean
from tffed.algorithms import fed_avg, fed_opt, fed_prox, fed_sgd, scaffold
from tffed.store import ClientStore
from tffed.yogi import Yogi

SGD = keras.optimizers.SGD
SIZES = [7, 3, 12, 1, 5]
COHORTS = [[0, 2, 3], [4, 1], [2, 0, 1]]
RATE = 0.3


def local(w, client, round_number, client_id, correct=lambda g, v: g, **work):
    """The weights after plain SGD on a client's batches, and the number of steps."""
    v, x, y = w, *client
    steps = batches(round_number, client_id, len(y), **work)
    for rows in steps:
        v = v - RATE * correct(softmax_gradient(v, x[rows], y[rows]), v)
    return v, len(steps)


def average(values, weights):
    return sum(n * u for n, u in zip(weights, values, strict=True)) / sum(weights)


def averaging_reference(model, data, server, prox=0.0, **work):
    """FedAvg's rounds with `server(w, mean update) -> w`."""
    w = start(model)
    for round_number, ids in enumerate(COHORTS):
        updates = []
        for i in ids:
            pull = lambda g, v, w0=w: g + prox * (v - w0)  # noqa: E731
            updates.append(local(w, data[i], round_number, i, pull, **work)[0] - w)
        w = server(w, average(updates, [SIZES[i] for i in ids]))
    return w


def assert_follows(recipe, reference, *, server=None, parts=None, client=True):
    """Runs the rounds and compares the weights; they must have moved."""
    model, data = softmax_regression(), make_clients(SIZES)
    expected = reference(model, data)
    client = SGD(RATE) if client else None
    algorithm = build(recipe, model, client=client, server=server, parts=parts)
    state, history = run(algorithm, model, data, COHORTS)
    assert_close(state.weights.trainable, expected, 2e-5)
    assert differs(expected, start(model), 0.02)
    assert int(state.round) == len(COHORTS)
    for metrics, ids in zip(history, COHORTS, strict=True):
        assert metrics["clients"] == len(ids) and metrics["dropped"] == 0
        assert metrics["examples"] == sum(SIZES[i] for i in ids)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_fed_sgd(batch_size, weighting):
    def reference(model, data):
        w = start(model)
        for ids in COHORTS:
            counts = [SIZES[i] if weighting == "examples" else 1 for i in ids]
            w = w - RATE * average([softmax_gradient(w, *data[i]) for i in ids], counts)
        return w

    recipe, parts = fed_sgd(batch_size=batch_size), [mean(weighting)]
    assert_follows(recipe, reference, server=SGD(RATE), parts=parts, client=False)


@pytest.mark.parametrize(
    "work",
    [
        {"epochs": 1, "batch_size": None},
        {"epochs": 2, "batch_size": 4},
        {"steps": 5, "batch_size": 3},
    ],
)
def test_fed_avg(work):
    recipe = fed_avg(
        work.get("epochs"), local_steps=work.get("steps"), batch_size=work["batch_size"]
    )
    assert_follows(recipe, lambda m, d: averaging_reference(m, d, lambda w, u: w + u, **work))


def test_fed_prox():
    work = {"epochs": 2, "batch_size": 4}
    recipe = fed_prox(0.8, 2, batch_size=4)
    add = lambda w, u: w + u  # noqa: E731
    assert_follows(recipe, lambda m, d: averaging_reference(m, d, add, prox=0.8, **work))
    model, data = softmax_regression(), make_clients(SIZES)
    plain, pulled = (averaging_reference(model, data, add, prox=mu, **work) for mu in (0.0, 0.8))
    assert differs(plain, pulled, 1e-3)


def momentum_server():
    velocity = 0.0

    def step(w, update):
        nonlocal velocity
        velocity = 0.7 * velocity + 0.5 * update
        return w + velocity

    return step


def adagrad_server():
    squares = 0.1

    def step(w, update):
        nonlocal squares
        squares = squares + update**2
        return w + 0.2 * update / (squares + 1e-7) ** 0.5

    return step


def adam_server():
    m = v = t = 0

    def step(w, update):
        nonlocal m, v, t
        t += 1
        m = 0.9 * m + 0.1 * update
        v = 0.99 * v + 0.01 * update**2
        return w + 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)) ** 0.5 + 0.0)

    return step


def yogi_server():
    m, v = 0, 1e-6

    def step(w, update):
        nonlocal m, v
        m = 0.9 * m + 0.1 * update
        v = v - 0.01 * update**2 * as_vector([np.sign(d) for d in v - update**2])
        return w + 0.1 * m / (v**0.5 + 1e-3)

    return step


@pytest.mark.parametrize(
    "optimizer, server",
    [
        (lambda: SGD(0.5, momentum=0.7), momentum_server),
        (lambda: keras.optimizers.Adagrad(0.2, initial_accumulator_value=0.1), adagrad_server),
        (lambda: keras.optimizers.Adam(0.1, beta_2=0.99, epsilon=1e-12), adam_server),
        (lambda: Yogi(0.1), yogi_server),
    ],
    ids=["momentum", "adagrad", "adam", "yogi"],
)
def test_fed_opt(optimizer, server):
    work = {"epochs": 1, "batch_size": 4}
    recipe = fed_opt(1, batch_size=4)
    assert_follows(
        recipe, lambda m, d: averaging_reference(m, d, server(), **work), server=optimizer()
    )


@pytest.mark.parametrize(
    "work", [{"epochs": 2, "batch_size": 4}, {"steps": 4, "batch_size": 3}], ids=["epochs", "steps"]
)
def test_scaffold(work):
    model, data = softmax_regression(), make_clients(SIZES)
    w, c, own = start(model), 0 * start(model), {}
    for round_number, ids in enumerate(COHORTS):
        updates, moved = [], 0
        for i in ids:
            c_i = own.get(i, 0 * c)
            shift = lambda g, v, d=c - c_i: g + d  # noqa: E731
            v, steps = local(w, data[i], round_number, i, shift, **work)
            own[i] = c_i - c + (w - v) / (steps * RATE)
            updates.append(v - w)
            moved = moved + own[i] - c_i
        w = w + average(updates, [1] * len(ids))
        c = c + moved / len(SIZES)
    recipe = scaffold(
        work.get("epochs"), local_steps=work.get("steps"), batch_size=work["batch_size"]
    )
    algorithm = build(recipe, model, client=SGD(RATE), parts=[mean("uniform")])
    store = ClientStore()
    state, _ = run(algorithm, model, data, COHORTS, store=store)
    assert_close(state.weights.trainable, w, 5e-5)
    assert_close(state.extra[0], c, 5e-5)
    assert sorted(store) == sorted(own) == [0, 1, 2, 3, 4]
    for i, c_i in own.items():
        assert_close(store.get(i), c_i, 5e-5)
        assert differs(c_i, 0 * c_i, 1e-2)


@pytest.mark.parametrize(
    "client",
    [
        lambda: SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.Adam(0.1),
        lambda: SGD(0.1, clipnorm=1.0),
        lambda: SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)),
        lambda: SGD(0.1, weight_decay=0.1),
    ],
)
def test_scaffold_needs_plain_sgd(client):
    with pytest.raises(ValueError, match="hold for plain SGD.*Received"):
        build(scaffold(), softmax_regression(), client=client())


def test_local_training_needs_a_client_optimizer():
    with pytest.raises(ValueError, match="needs a client optimizer. Received"):
        build(fed_avg(), softmax_regression())


def test_fed_sgd_takes_no_client_optimizer():
    with pytest.raises(ValueError, match="Clients take no steps.*Received"):
        build(fed_sgd(), softmax_regression(), client=SGD(0.1))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fed_avg(0), "`local_epochs` must be a positive integer"),
        (lambda: fed_avg(1.5), "`local_epochs` must be a positive integer"),
        (lambda: fed_avg(True), "`local_epochs` must be a positive integer"),
        (lambda: fed_avg(local_steps=-1), "`local_steps` must be a positive integer"),
        (lambda: fed_avg(2, local_steps=3), "not as both"),
        (lambda: fed_avg(batch_size=0), "`batch_size` must be a positive integer"),
        (lambda: fed_opt(batch_size="all"), "`batch_size` must be a positive integer"),
        (lambda: fed_sgd(batch_size=-4), "`batch_size` must be a positive integer"),
        (lambda: scaffold(local_steps=0), "`local_steps` must be a positive integer"),
        (lambda: fed_prox(-0.1), "`mu` must be at least 0"),
        (lambda: fed_prox(float("nan")), "`mu` must be at least 0"),
        (lambda: fed_prox("1"), "`mu` must be at least 0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "Received: " in str(error.value)
