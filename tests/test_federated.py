"""The Keras shell, used as its users would."""

import keras
import numpy as np
import pytest

import tffed
from tests.shell import LOSS, blobs, classifier, compiled, population, weights


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_fit_learns_and_tells_what_happened():
    fed = compiled()
    history = fed.fit(
        population(), rounds=12, clients_per_round=3, validation_data=blobs(50, 9), verbose=0
    )
    found = history.history
    assert found["val_accuracy"][-1] > 0.85 > found["val_accuracy"][0]
    assert found["loss"][-1] < found["loss"][0]
    assert history.epoch == list(range(12))
    assert found["clients"] == [3.0] * 12 and found["dropped"] == [0.0] * 12
    # 4 x 2 weights and 2 biases in float32, n_k, the loss and its count, and accuracy's two sums
    # (Keras's own loss tracker has two as well), after a header of 30 bytes; of three clients.
    assert found["bytes_up"][0] == 3 * (30 + 4 * (10 + 1 + 1 + 2 + 2 + 2))
    np.testing.assert_allclose(
        fed.predict(blobs(5)[0], verbose=0), fed.model.predict(blobs(5)[0], verbose=0)
    )


def test_a_second_fit_goes_on_from_the_first():
    once, twice = compiled(), compiled()
    once.fit(population(), rounds=5, clients_per_round=2, verbose=0)
    twice.fit(population(), rounds=2, clients_per_round=2, verbose=0)
    history = twice.fit(population(), rounds=5, initial_round=2, clients_per_round=2, verbose=0)
    assert same(weights(once), weights(twice))
    assert history.epoch == [2, 3, 4]


@pytest.mark.parametrize(
    "recipe",
    [tffed.scaffold(batch_size=8), tffed.fed_prox(0.1, batch_size=8)],
    ids=lambda recipe: recipe.name,
)
def test_the_same_seed_gives_the_same_bits_with_any_lanes(recipe):
    runs = []
    for lanes in (1, 3):
        fed = compiled(recipe, lanes=lanes)
        fed.fit(population(), rounds=3, clients_per_round=4, verbose=0)
        runs.append(weights(fed))
    assert same(*runs)
    other = tffed.Federated(classifier(), recipe, seed=4)
    other.compile(client_optimizer=keras.optimizers.SGD(0.1), loss=LOSS)
    other.fit(population(), rounds=3, clients_per_round=4, verbose=0)
    assert not same(runs[0], weights(other))


def test_evaluate_equals_keras_pooled_and_by_client():
    fed, clients = compiled(), population()
    fed.fit(clients, rounds=1, verbose=0)
    x, y = blobs(300, 9)
    expected = fed.model.evaluate(x, y, verbose=0, return_dict=True)
    assert fed.evaluate(x, y) == pytest.approx(expected, rel=1e-5)
    found = fed.evaluate(clients)
    for k, cid in enumerate(clients.ids):
        expected = fed.model.evaluate(*clients[cid], verbose=0, return_dict=True)
        assert found.metrics["loss"][k] == pytest.approx(expected["loss"], rel=1e-5)
        assert found.metrics["accuracy"][k] == pytest.approx(expected["accuracy"], rel=1e-5)
    middle = found.percentiles((50,))["accuracy"][50]
    assert middle == pytest.approx(np.median(found.metrics["accuracy"]))
    assert found.pooled["accuracy"] == pytest.approx(
        np.average(found.metrics["accuracy"], weights=found.sizes)
    )
    assert fed.evaluate(clients, ids=[2, 0]).ids == [2, 0]


def test_local_statistics_stay_on_clients_and_serve_there():
    fed = compiled(model=classifier(batch_norm=True), batch_norm="local")
    # Each client's features have another mean, which only its own statistics can take away.
    data = {i: (blobs(40, i)[0] + 30.0 * i, blobs(40, i)[1]) for i in range(3)}
    clients = tffed.data.from_dict(data)
    history = fed.fit(clients, rounds=60, validation_data=clients, verbose=0)
    assert history.history["val_accuracy"][-1] > 0.85
    moving_mean = fed.model.layers[0].moving_mean.numpy()
    np.testing.assert_array_equal(moving_mean, 0.0)


def test_validation_frequency():
    fed = compiled()
    arguments = {"validation_data": blobs(20), "validation_freq": 2, "verbose": 0}
    history = fed.fit(population(), rounds=5, **arguments)
    assert len(history.history["val_loss"]) == 2 and len(history.history["loss"]) == 5


def test_the_clients_learning_rate_can_be_set_between_rounds():
    fed = compiled()
    fed.fit(population(), rounds=1, verbose=0)
    before = weights(fed)
    rate = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(fed.client_optimizer, "learning_rate", 1e-12)
    )
    fed.fit(population(), rounds=1, callbacks=[rate], verbose=0)
    for a, b in zip(before, weights(fed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_one_model_of_a_million_clients_costs_the_cohort():
    read = []

    def client(i):
        read.append(i)
        return blobs(8, i)

    clients = tffed.data.from_function(range(1_000_000), client)
    compiled().fit(clients, rounds=2, clients_per_round=5, verbose=0)
    assert len(set(read)) <= 2 * 5 + 1  # and one for the shapes


def test_a_client_that_sends_nan_is_left_out_counted_and_reported(capsys):
    data = {i: blobs(10, i) for i in range(4)}
    data[3][0][:] = 3e38  # finite data, not finite gradients
    fed = compiled()
    history = fed.fit(data, rounds=2, verbose=2)
    assert history.history["dropped"] == [1.0, 1.0] and history.history["clients"] == [3.0, 3.0]
    assert "1 left out" in capsys.readouterr().out
    del data[3]
    without = compiled()
    without.fit(data, rounds=2, verbose=0)
    for a, b in zip(weights(fed), weights(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_when_every_client_fails_the_run_stops_and_keeps_the_last_good_weights():
    fed = compiled()
    fed.fit({0: blobs(10)}, rounds=1, verbose=0)
    good = weights(fed)
    with pytest.raises(FloatingPointError, match="Every client's update in round 1"):
        fed.fit({0: (np.full((4, 4), 3e38, np.float32), np.zeros(4, np.int64))}, verbose=0)
    assert same(good, weights(fed))


def test_progress_lines(capsys):
    compiled().fit(population(), rounds=2, clients_per_round=3, verbose=2)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("round 1/2  loss ") and "accuracy" in first
    for word in ("3 clients", "clients/s", "examples/s", "up 306 B", "down", "left 0:0"):
        assert word in second


def test_quiet(capsys):
    compiled().fit(population(), verbose=0)
    assert capsys.readouterr().out == ""


def wrong_fits():
    x, y = blobs(10)
    yield "no clients", {"clients": {}}, "client"
    yield "no examples", {"clients": {0: (x[:0], y[:0])}}, "examples"
    yield "not clients", {"clients": [(x, y)]}, "Expected a ClientData"
    yield "labels", {"clients": {0: (x, y + 1)}}, "integers from 0 to 1.*Received: labels from 1"
    yield "negative labels", {"clients": {0: (x, y - 1)}}, "Received: labels from -1"
    yield "features", {"clients": {0: (x[:, :3], y)}}, r"expects examples of shape \(4,\)"
    yield "two inputs", {"clients": {0: ((x, x), y)}}, "has 1 inputs"
    yield "shapes differ", {"clients": {0: (x, y), 1: (x[:, :3], y)}}, "shape"
    yield "ranks differ", {"clients": {0: (x, y), 1: (x, y[:, None])}}, "y of client 1.*shape"
    yield "NaN", {"clients": {0: (x * np.nan, y)}}, "(?i)nan|finite"
    yield "too many", {"clients_per_round": 7}, "from 1 to the 6 clients.*Received"
    yield "none a round", {"clients_per_round": 0}, "from 1 to the 6"
    yield "fraction", {"client_fraction": 0.0}, r"\(0, 1\]"
    yield "two sizes", {"client_fraction": 0.5, "clients_per_round": 2}, "at most one"
    yield "sampler", {"sampler": 5}, "Expected a sampler"
    yield "sampler too large", {"sampler": tffed.data.Uniform(7)}, "6 clients"
    yield "rounds", {"rounds": 0}, "`rounds`.*Received: rounds=0"
    yield "initial round", {"rounds": 2, "initial_round": 2}, "less than `rounds`"
    yield "validation freq", {"validation_freq": 0}, "validation_freq"
    yield "validation data", {"validation_data": x}, "Expected validation data as"
    yield "validation labels", {"validation_data": (x, y + 5)}, "labels from 5"
    yield "callback", {"callbacks": [print]}, "Expected keras.callbacks.Callback"


@pytest.mark.parametrize(
    ("arguments", "message"), [w[1:] for w in wrong_fits()], ids=[w[0] for w in wrong_fits()]
)
def test_wrong_arguments_of_fit(arguments, message):
    fed = compiled()
    before = weights(fed)
    with pytest.raises((ValueError, KeyError), match=f"(?s){message}"):
        fed.fit(**({"clients": population(), "rounds": 1, "verbose": 0} | arguments))
    assert same(before, weights(fed))


def test_the_number_of_a_round_that_fails_is_that_of_fit():
    fed = compiled()
    fed.fit({0: blobs(10)}, rounds=2, verbose=0)
    overflow = {0: (np.full((4, 4), 3e38, np.float32), np.zeros(4, np.int64))}
    with pytest.raises(FloatingPointError, match="Every client's update in round 6"):
        fed.fit(overflow, rounds=7, initial_round=5, verbose=0)


def test_a_dictionary_of_clients_is_evaluated_client_by_client():
    fed, held = compiled(), {"a": blobs(10), "b": blobs(20, 1)}
    history = fed.fit(held, validation_data=held, verbose=0)
    found = fed.evaluate(held)
    for k, cid in enumerate(held):
        expected = fed.model.evaluate(*held[cid], verbose=0)
        assert found.metrics["loss"][k] == pytest.approx(expected[0], rel=1e-5)
    assert fed.evaluate(held, ids=["b"]).ids == ["b"]
    assert history.history["val_loss"] == pytest.approx([found.pooled["loss"]], rel=1e-5)
    assert "val_loss_p10" in history.history


def test_names_that_keras_resolves_with_the_data_are_taken():
    fed = tffed.Federated(classifier(), tffed.fed_avg(batch_size=8))
    fed.compile("sgd", loss="crossentropy", metrics=["acc", "Accuracy", "mse"])


def test_losses_by_name_need_the_outputs_names():
    x = keras.Input((4,))
    a, b = keras.layers.Dense(1, name="a")(x), keras.layers.Dense(1, name="b")(x)
    named, listed = {"p": a, "q": b}, [a, b]
    for outputs, good, bad in (
        (named, {"p": "mse"}, {"p": "mse", "b": "mse"}),
        (named, {"p": "mse", "q": "mse"}, {"a": "mse", "b": "mse"}),
        (listed, {"a": "mse", "b": None}, {"a": "mse"}),
    ):
        model = keras.Model(x, outputs)
        compiled(model=model, loss=good)
        with pytest.raises(ValueError, match="names of the model's outputs.*Received: loss with"):
            compiled(model=model, loss=bad)


def test_an_unknown_client_is_named():
    with pytest.raises(KeyError, match="no-one"):
        compiled().evaluate(population(), ids=["no-one"])


def wrong_compiles():
    sgd = keras.optimizers.SGD(0.1)
    yield tffed.fed_avg(), {"client_optimizer": None}, "needs a client optimizer"
    yield tffed.fed_sgd(), {"server_optimizer": sgd}, "Leave client_optimizer out"
    yield tffed.fed_sgd(), {"client_optimizer": None}, "needs a server optimizer"
    yield tffed.fed_opt(), {}, "needs a server optimizer"
    yield tffed.fed_avg(), {"client_optimizer": keras.optimizers.SGD(-0.1)}, "must be positive"
    yield tffed.fed_avg(), {"client_optimizer": "no such"}, "Expected a keras.optimizers"
    yield tffed.fed_avg(), {"loss": None}, "Expected a loss"
    yield tffed.fed_avg(), {"batch_norm": "none"}, "`batch_norm` must be one of"
    yield tffed.fed_avg(), {"server_optimizer": "mse"}, "`server_optimizer`.*name what.*loss='mse'"
    yield tffed.fed_avg(), {"class_weight": "balanced"}, "{class: weight}.*'balanced'.*counts"
    yield tffed.fed_avg(), {"loss": "msee"}, "names that Keras knows. Received: loss='msee'"
    yield tffed.fed_avg(), {"weighted_metrics": ["acc", "aucc"]}, "weighted_metrics='aucc'"
    yield tffed.fed_avg(), {"lanes": 0}, "`lanes` must be a positive integer"
    yield tffed.fed_avg(), {"aggregator": tffed.mean()}, "Expected an aggregator"


@pytest.mark.parametrize(("recipe", "arguments", "message"), wrong_compiles())
def test_wrong_arguments_of_compile(recipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        compiled(recipe, **arguments)


def test_wrong_arguments_of_federated_and_order_of_calls():
    with pytest.raises(ValueError, match="Expected an algorithm"):
        tffed.Federated(classifier(), "fed_avg")
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        tffed.Federated(classifier(), tffed.fed_avg(), seed=1.5)
    with pytest.raises(ValueError, match="Call compile"):
        tffed.Federated(classifier(), tffed.fed_avg()).fit(population())
    with pytest.raises(ValueError, match="Call compile"):
        tffed.Federated(classifier(), tffed.fed_avg()).evaluate(*blobs(3))
    with pytest.raises(ValueError, match="y=None"):
        compiled().evaluate(blobs(3)[0])
