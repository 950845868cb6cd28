"""Algorithms over another population, over clients without examples, and on families of models."""

import keras
import numpy as np
import pytest

import tffed
from tests.helpers import (
    SEED,
    assert_close,
    build,
    differs,
    make_clients,
    run,
    softmax_regression,
    start,
)
from tffed import random
from tffed.aggregation import mean
from tffed.data import from_dict
from tffed.data.client_data import Examples
from tffed.engines.embedded import Embedded
from tffed.store import ClientStore

L, SGD = keras.layers, keras.optimizers.SGD


def regression(population, seed=5):
    rng = np.random.default_rng(seed)
    return {
        k: (rng.normal(size=(6, 3)).astype("f4"), 2 * rng.normal(size=(6, 1)).astype("f4"))
        for k in range(population)
    }


def scaffolded():
    model = keras.Sequential([keras.Input((3,)), L.Dense(1, kernel_initializer="zeros")])
    fed = tffed.Federated(model, tffed.scaffold(local_steps=5), seed=1)
    fed.compile(client_optimizer=SGD(0.02), loss="mse", jit_compile=False)
    return fed


@pytest.mark.parametrize("first, then", [(range(1), range(20)), (range(20), range(16, 20))])
def test_scaffold_over_another_population_has_its_n_and_its_mean(first, then):
    fed, data = scaffolded(), regression(20)
    fed.fit({k: data[k] for k in first}, rounds=1, verbose=0)
    history = fed.fit({k: data[k] for k in then}, rounds=8, verbose=0)
    shared, population = fed.state.extra
    assert float(population) == len(then)
    own = np.mean([fed.store.get(k)[0] for k in then], 0)  # the kernels of the c_k
    np.testing.assert_allclose(shared[0], own, atol=1e-4)  # the invariant c = (1/N) Σ c_k
    losses = history.history["loss"]
    assert max(losses) < 1.5 * losses[0]  # 1,354 with N of the first fit


def test_scaffold_goes_on_with_the_same_bits_over_the_same_population():
    once, twice, data = scaffolded(), scaffolded(), regression(4)
    once.fit(data, rounds=3, verbose=0)
    twice.fit(data, rounds=1, verbose=0)
    twice.fit(dict(data), rounds=3, initial_round=1, verbose=0)
    for a, b in zip(once.model.get_weights(), twice.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_adaptive_steps_begin_again_over_another_population():
    model = keras.Sequential([keras.Input((3,)), L.Dense(1, kernel_initializer="zeros")])
    steps = tffed.adaptive_steps(8, decay=0.5)
    fed = tffed.Federated(model, tffed.fed_avg(local_steps=steps, batch_size=2))
    fed.compile(client_optimizer=SGD(0.05), loss="mse", jit_compile=False)
    data = regression(3)
    first = fed.fit(data, rounds=3, verbose=0).history["local_steps"]
    other = fed.fit({"z": data[0]}, rounds=1, verbose=0).history["local_steps"]
    assert first[-1] < 8 == first[0] == other[0]


RECIPES = {
    "fed_avg": lambda: tffed.fed_avg(2, batch_size=2),
    "all at once": lambda: tffed.fed_avg(2),
    "steps": lambda: tffed.fed_avg(local_steps=3, batch_size=2),
    "fed_prox": lambda: tffed.fed_prox(0.5, batch_size=2),
    "fed_sgd": lambda: tffed.fed_sgd(),
    "fed_sgd in batches": lambda: tffed.fed_sgd(batch_size=2),
    "scaffold": lambda: tffed.scaffold(local_steps=3, batch_size=2),
}


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES)
def test_a_client_without_examples_is_passed_over_and_counted(make, weighting="uniform"):
    # `from_dict` takes no empty client: the rows of the second are taken away from the population.
    data = make_clients([5, 1, 3])
    model, clients = softmax_regression(), from_dict(data)
    clients = clients_without(clients, 1)
    client = None if make().name == "fed_sgd" else SGD(0.3)
    algorithm = build(make(), model, client=client, parts=[mean(weighting)])
    state, (metrics,) = run(algorithm, model, clients, [[0, 1, 2]])
    without, (expected,) = run(
        build(make(), model, client=client, parts=[mean(weighting)]),
        model,
        {k: data[k] for k in (0, 2)},
        [[0, 2]],
        population=3,
    )
    assert_close(state.weights, without.weights, 1e-6)
    assert_close(state.extra or [0.0], without.extra or [0.0], 1e-6)
    assert differs(state.weights.trainable, start(model), 1e-3)
    assert metrics == pytest.approx(expected | {"empty": 1.0}, rel=1e-6) and not expected["empty"]


@pytest.mark.parametrize("batched", [False, True])
def test_clients_without_examples_are_passed_over_on_xla_s_paths_too(batched):
    model, clients = softmax_regression(), clients_without(from_dict(make_clients([5, 1, 3])), 1)
    algorithm = build(RECIPES["scaffold"](), model, client=SGD(0.3), parts=[mean("uniform")])
    expected, _ = run(algorithm, model, clients, [[0, 1, 2]])
    engine = Embedded(algorithm, jit_compile=True, batched=batched, processes=False)
    begun = algorithm.init(model.init(), 3)
    state, metrics = engine.run_round(
        begun, clients, [0, 1, 2], seed=random.seed(SEED), store=ClientStore()
    )
    assert_close((state.weights, state.extra), (expected.weights, expected.extra), 1e-6)
    assert float(metrics["empty"]) == 1 and float(metrics["clients"]) == 2


def clients_without(clients, empty):
    """The population with no rows for one client."""
    examples = clients.examples(clients.ids)
    sizes, rows = examples.sizes.copy(), examples.rows
    at = int(np.cumsum(sizes)[empty] - sizes[empty])
    rows = np.delete(rows, slice(at, at + sizes[empty]))
    sizes[empty] = 0
    return _Without(clients, rows, sizes)


class _Without:
    """Client data with an empty client, as the engines read them."""

    resident = True

    def __init__(self, whole, rows, sizes):
        self._arrays = whole.examples(whole.ids).arrays
        self._parts = dict(zip(whole.ids, np.split(rows, np.cumsum(sizes)[:-1]), strict=True))
        self.ids, self.spec = whole.ids, whole.spec

    def __len__(self):
        return len(self.ids)

    def sizes(self, ids=None):
        return np.array([len(self._parts[k]) for k in (self.ids if ids is None else ids)])

    def examples(self, ids):
        rows = [self._parts[k] for k in ids]
        rows = np.concatenate(rows) if rows else np.zeros(0)
        return Examples(self._arrays, rows.astype(np.int32), self.sizes(ids))


FAMILIES = {
    "lstm": lambda x: L.Dense(1)(L.LSTM(3)(x)),
    "gru": lambda x: L.Dense(1)(L.GRU(3)(x)),
    "simple": lambda x: L.Dense(1)(L.SimpleRNN(3)(x)),
    "bidirectional": lambda x: L.Dense(1)(L.Bidirectional(L.LSTM(2))(x)),
    "dense on sequences": lambda x: L.Dense(1)(L.Flatten()(L.Dense(3, "relu")(x))),
    "attention": lambda x: L.Dense(1)(L.Flatten()(L.MultiHeadAttention(2, 2)(x, x))),
    "convolution": lambda x: L.Dense(1)(L.Flatten()(L.Conv1D(2, 2)(x))),
    "embedding": lambda x: L.Dense(1)(
        L.GlobalAveragePooling1D()(L.Embedding(5, 3)(keras.ops.cast(x[:, :, 0] > 0, "int32")))
    ),
}


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_fed_sgd_by_default_is_the_central_step_of_each_family(make):
    rng = np.random.default_rng(0)
    data = {
        k: (rng.normal(size=(n, 4, 2)).astype("f4"), rng.normal(size=(n, 1)).astype("f4"))
        for k, n in enumerate((2, 5))
    }
    x = keras.Input((4, 2))
    model = keras.Model(x, make(x))
    witness = keras.models.clone_model(model)
    witness.set_weights(model.get_weights())
    fed = tffed.Federated(model, tffed.fed_sgd())
    fed.compile(server_optimizer=SGD(0.5), loss="mse", processes=False)
    fed.fit(data, verbose=0)
    witness.compile(SGD(0.5), "mse", jit_compile=False)
    witness.train_on_batch(*(np.concatenate(part) for part in zip(*data.values(), strict=True)))
    assert_close(model.get_weights(), witness.get_weights(), 2e-6)


def test_a_loss_that_divides_by_its_own_weights_is_refused():
    model = keras.Sequential([keras.Input((1,)), L.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_sgd())
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    with pytest.raises(ValueError, match="divides by the sum of the sample weights"):
        fed.compile(server_optimizer=SGD(0.5), loss=loss)


@pytest.mark.parametrize("masked", [True, False])
def test_fed_sgd_says_where_it_is_not_the_central_step(masked, recwarn):
    x = keras.Input((None,), dtype="int32")
    model = keras.Model(x, L.Dense(2)(L.Embedding(5, 3, mask_zero=masked)(x)))
    fed = tffed.Federated(model, tffed.fed_sgd())
    fed.compile(server_optimizer=SGD(0.5), loss="mse")
    assert [str(w.message) for w in recwarn.list if "not the centralised" in str(w.message)] == [
        "A client's loss is a mean over its valid steps, as the model's output is masked, but "
        "clients weigh by their examples: where valid steps are unevenly spread over clients, "
        "fed_sgd's step is not the centralised one."
    ] * masked


def test_yogi_begins_at_no_less_than_its_epsilon_squared():
    assert tffed.Yogi(epsilon=0.1).get_config()["initial_accumulator_value"] == pytest.approx(0.01)
    assert tffed.Yogi().get_config()["initial_accumulator_value"] == pytest.approx(1e-6)
    tffed.Yogi.from_config(tffed.Yogi(epsilon=0.1).get_config())
    with pytest.raises(ValueError, match="at least epsilon², 0.01"):
        tffed.Yogi(epsilon=0.1, initial_accumulator_value=1e-6)


CLASS_WEIGHTS = {
    "keys of np.unique": (np.array([0, 1, 1, 1], "f4"), [3.0, 1.0], "binary_crossentropy"),
    "negative labels": (np.array([-1, 1, -1, 1], "f4"), [5.0, 1.0], "hinge"),
}


@pytest.mark.parametrize(("y", "factors", "loss"), CLASS_WEIGHTS.values(), ids=CLASS_WEIGHTS)
@pytest.mark.parametrize("jit_compile", [True, False])
def test_class_weights_by_keys_of_any_kind_are_keras_s(y, factors, loss, jit_compile):
    def model():
        last = {"activation": "sigmoid"} if loss == "binary_crossentropy" else {}
        dense = L.Dense(1, kernel_initializer="zeros", **last)
        return keras.Sequential([keras.Input((2,)), dense])

    x, table = np.ones((4, 2), "f4"), dict(zip(np.unique(y), factors, strict=True))
    plain = model()
    plain.compile(SGD(1e-9), loss)
    expected = plain.fit(x, y, class_weight=table, verbose=0).history["loss"][0]
    fed = tffed.Federated(model(), tffed.fed_avg(batch_size=4))
    fed.compile(SGD(1e-9), loss=loss, class_weight=table, jit_compile=jit_compile)
    assert fed.fit({0: (x, y)}, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_class_weights_multiply_sample_weights_of_shape_n_1():
    model = keras.Sequential([keras.Input((2,)), L.Dense(1, kernel_initializer="zeros")])
    fed = tffed.Federated(model, tffed.fed_avg())
    fed.compile(SGD(1e-9), loss="mse", class_weight={0: 3.0, 2: 0.5})
    y, weights = np.array([[0.0], [1.0], [2.0]], "f4"), np.array([[1.0], [2.0], [4.0]], "f4")
    found = fed.fit({0: (np.ones((3, 2), "f4"), y, weights)}, verbose=0).history["loss"][0]
    assert found == pytest.approx((1 * 2 * 1 + 0.5 * 4 * 4) / 3)


@pytest.mark.parametrize(
    "table, message",
    [
        ({0.5: 1.0}, "must be classes, whole numbers.*0.5"),
        ({"a": 1.0}, "must be classes"),
        ({0: np.nan}, "must be finite.*nan"),
        ({0: "1"}, "must be finite"),
    ],
)
def test_class_weights_that_are_refused(table, message):
    model = keras.Sequential([keras.Input((2,)), L.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_avg())
    with pytest.raises(ValueError, match=message):
        fed.compile(SGD(0.1), loss="mse", class_weight=table)
