"""What must hold between algorithms, and what a client may not do to a round."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import (
    CLASSES,
    FEATURES,
    assert_close,
    assert_same_bits,
    batches,
    build,
    differs,
    make_clients,
    run,
    softmax_regression,
)
from tffed.aggregation import adaptive_clip, clip, mean, median
from tffed.algorithms import fed_avg, fed_opt, fed_prox, fed_sgd, scaffold
from tffed.model import from_keras
from tffed.store import ClientStore

SGD = keras.optimizers.SGD
SIZES = [7, 3, 12, 1, 5]
EVERYONE = [range(len(SIZES))]
COHORTS = [[0, 2, 3], [4, 1, 2]]
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def final(recipe, *, model=None, data=None, cohorts=COHORTS, client=None, **how):
    """The trainable weights after some rounds."""
    model = model or softmax_regression()
    client = SGD(0.3) if client is None and recipe.local_training else client
    algorithm = build(recipe, model, client=client, **how)
    state, _ = run(algorithm, model, data or make_clients(SIZES), cohorts)
    return state.weights.trainable


def pooled(data):
    return [np.concatenate(part) for part in zip(*data.values(), strict=True)]


def test_fed_sgd_over_all_clients_is_a_centralised_step():
    network = keras.Sequential(
        [keras.Input((FEATURES,)), L.Dense(5, activation="tanh"), L.Dense(CLASSES)]
    )
    model, data = from_keras(network, LOSS), make_clients(SIZES)
    before = model.init().trainable
    server = keras.optimizers.Adam(0.1)
    actual = final(fed_sgd(), model=model, data=data, cohorts=EVERYONE * 2, server=server)
    network.compile(optimizer=keras.optimizers.Adam(0.1), loss=LOSS)
    for _ in range(2):
        network.train_on_batch(*pooled(data))
    # Adam divides by the root of the squared gradient, which enlarges rounding.
    assert_close(actual, [v.value for v in network.trainable_variables], 1e-4)
    assert differs(actual, before, 0.05)


def test_one_local_full_batch_step_is_fed_sgd():
    averaged = final(fed_avg(1))
    summed = final(fed_sgd(), server=SGD(0.3))
    assert_close(averaged, summed, 1e-6)
    assert differs(final(fed_avg(2)), summed, 1e-3)


def test_one_client_is_centralised_training():
    network = keras.Sequential(
        [keras.Input((FEATURES,)), L.Dense(5), L.BatchNormalization(), L.Dense(CLASSES)]
    )
    model, data = from_keras(network, LOSS), make_clients([13], ids=["anna"])
    recipe = fed_avg(2, batch_size=5)
    algorithm = build(recipe, model, client=SGD(0.2))
    state, _ = run(algorithm, model, data, [["anna"]] * 3)
    x, y = data["anna"]
    network.compile(optimizer=SGD(0.2), loss=LOSS)
    for round_number in range(3):
        for rows in batches(round_number, "anna", 13, batch_size=5, epochs=2):
            network.train_on_batch(x[rows], y[rows])
    assert_close(state.weights.trainable, [v.value for v in network.trainable_variables], 5e-5)
    statistics = [v.value for v in network.layers[1].non_trainable_variables]
    assert_close(state.weights.non_trainable, statistics, 5e-5)


@pytest.fixture(scope="module")
def averaged():
    """The weights that two epochs of `fed_avg` end with."""
    return final(fed_avg(2, batch_size=4))


def test_fed_prox_without_the_term_is_fed_avg(averaged):
    assert_same_bits(final(fed_prox(0, 2, batch_size=4)), averaged)
    assert differs(final(fed_prox(1.0, 2, batch_size=4)), averaged, 1e-3)


def test_fed_opt_with_plain_sgd_is_fed_avg(averaged):
    assert_same_bits(final(fed_opt(2, batch_size=4), server=SGD(1.0)), averaged)
    assert differs(final(fed_opt(2, batch_size=4), server=SGD(0.5)), averaged, 1e-3)


def test_scaffold_without_drift_is_fed_avg(averaged):
    # In the first round all control variates are zero.
    first = [COHORTS[0]]
    plain = final(fed_avg(2, batch_size=4), cohorts=first)
    assert_close(final(scaffold(2, batch_size=4), cohorts=first), plain, 1e-6)
    assert differs(final(scaffold(2, batch_size=4)), averaged, 1e-3)


@pytest.mark.parametrize("reducer", [mean, median])
def test_the_order_of_the_cohort_changes_nothing_but_rounding(reducer):
    sizes = [3 + k % 4 for k in range(20)]  # several clients in a chunk
    model, data = softmax_regression(), make_clients(sizes)
    shuffled = np.random.default_rng(0).permutation(20).tolist()
    first, second = (
        final(
            fed_avg(1, batch_size=4),
            model=model,
            data=data,
            cohorts=[ids] * 2,
            parts=[adaptive_clip(0.2), reducer()],
        )
        for ids in (list(range(20)), shuffled)
    )
    assert_close(first, second, 2e-6)


def regression(poisoned=True):
    """A linear regression, and clients of whom number 2 makes its squared error overflow."""
    network = keras.Sequential([keras.Input((FEATURES,)), L.Dense(1, kernel_initializer="ones")])
    data = {i: (x, y[:, None].astype(np.float32)) for i, (x, y) in make_clients(SIZES).items()}
    if poisoned:
        data[2][0][1] = 3e30
    return from_keras(network, "mse"), data


@pytest.mark.parametrize("recipe", [fed_avg(2, batch_size=4), fed_sgd()], ids=lambda r: r.name)
@pytest.mark.parametrize("parts", [[mean()], [clip(0.1), mean()], [adaptive_clip(0.1), median()]])
def test_a_client_with_nan_is_left_out_and_counted(recipe, parts):
    model, data = regression()
    client = SGD(0.01) if recipe.local_training else None
    algorithm = build(recipe, model, client=client, parts=parts)
    with_it, history = run(algorithm, model, data, [[0, 2, 4], [1, 2]])
    without, other = run(algorithm, model, data, [[0, 4], [1]])
    assert [m["dropped"] for m in history] == [1, 1] and [m["dropped"] for m in other] == [0, 0]
    assert [m["clients"] for m in history] == [2, 1]
    assert_same_bits(with_it, without)
    for mine, its in zip(history, other, strict=True):
        assert {**mine, "dropped": 0} == its
    assert np.isfinite(history[-1]["loss"])


def test_a_round_of_nothing_but_nan_changes_no_weights():
    model, data = regression()
    algorithm = build(fed_avg(), model, client=SGD(0.01))
    state, history = run(algorithm, model, data, [[2]])
    assert_same_bits(state.weights, model.init())
    assert history[0]["clients"] == 0 and history[0]["dropped"] == 1


def test_the_state_of_a_client_with_nan_stays():
    model, data = regression(poisoned=False)
    algorithm = build(scaffold(batch_size=4), model, client=SGD(0.01))
    store = ClientStore()
    run(algorithm, model, data, [[2, 0]], store=store)
    before = {i: store.get(i) for i in (0, 2)}
    assert differs(before[2], [np.zeros((FEATURES, 1)), np.zeros(1)])
    store, (_, data) = stored(before), regression()
    with_it, history = run(algorithm, model, data, [[2, 0]], store=store)
    assert history[0]["dropped"] == 1
    assert_same_bits(store.get(2), before[2])
    assert differs(store.get(0), before[0], 1e-3)
    without, _ = run(algorithm, model, data, [[0]], store=stored(before), population=len(SIZES))
    assert_same_bits(with_it, without)


def stored(states):
    store = ClientStore()
    store.put_all(0, states)
    return store


def batch_norm_round(policy):
    """The statistics before and after a round, and what each client alone makes of them."""
    network = keras.Sequential(
        [keras.Input((FEATURES,)), L.BatchNormalization(momentum=0.5), L.Dense(CLASSES)]
    )
    model, data = from_keras(network, LOSS, batch_norm=policy), make_clients(SIZES)
    before = model.init()
    algorithm = build(fed_avg(), model, client=SGD(0.3))
    store = ClientStore()
    state, _ = run(algorithm, model, data, [[0, 2, 4]], store=store)
    after = {}
    for i in (0, 2, 4):  # one full batch: moving = 0.5 * moving + 0.5 * statistics of the client
        x = data[i][0].astype(np.float64)
        after[i] = [0.5 * 0 + 0.5 * x.mean(0), 0.5 * 1 + 0.5 * x.var(0)]
    return before, state, after, (algorithm, model, data, store)


def test_average_statistics_are_weighted_like_the_weights():
    _, state, after, _ = batch_norm_round("average")
    counts = [SIZES[i] for i in after]
    expected = [np.average(c, 0, weights=counts) for c in zip(*after.values(), strict=True)]
    assert_close(state.weights.non_trainable, expected, 1e-5)


def test_local_statistics_stay_on_their_client():
    before, state, after, (algorithm, model, data, store) = batch_norm_round("local")
    assert_same_bits(state.weights.non_trainable, before.non_trainable)
    assert differs(state.weights.trainable, before.trainable, 1e-3)
    for i, expected in after.items():
        assert_close(store.get(i), expected, 1e-5)
    assert store.get(1) is None
    # The client's own model has them, and the next round goes on from them.
    fresh = algorithm.client_init(algorithm.broadcast(state))
    own = tf.nest.pack_sequence_as(fresh, [tf.constant(x) for x in store.get(0)])
    personal = algorithm.personal(state.weights, own)
    assert_close(personal.non_trainable, after[0], 1e-5)
    assert_same_bits(personal.trainable, state.weights.trainable)
    run(algorithm, model, data, [[0]], store=store)
    x = data[0][0].astype(np.float64)
    second = [0.5 * after[0][0] + 0.5 * x.mean(0), 0.5 * after[0][1] + 0.5 * x.var(0)]
    assert_close(store.get(0), second, 1e-5)
