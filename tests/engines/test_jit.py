"""Local training compiled with XLA: padded and masked, it equals the graph's exact batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tffed import optimizers, random, tree
from tffed.model import from_keras
from tffed.model_call import example

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = (5, 23, 8, 17, 1, 40, 12, 9, 3)


def clients(weighted=False, sizes=SIZES):
    rng = np.random.default_rng(0)
    data = {}
    for i, n in enumerate(sizes):
        x, y = rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n)
        weight = (rng.uniform(0.5, 2.0, n).astype(np.float32),) if weighted else ()
        data[i] = (x, y, *weight)
    return tffed.data.from_dict(data)


def dense():
    keras.utils.set_random_seed(4)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "tanh"), layers.LayerNormalization(), layers.Dense(3)]
    )


def maskable(model, loss=LOSS, **arguments):
    """Whether a trial on five examples shows that padding leaves a model's steps as they are."""
    x = tree.map(lambda t: example(tf.TensorSpec(t.shape, t.dtype), rows=5), model.inputs[0])
    y = tf.constant([0, 1, 0, 1, 1])
    if len(model.outputs[0].shape) > 2:
        y = tf.tile(y[:, None], [1, x.shape[1]])
    return from_keras(model, loss, **arguments).maskable((x, y))


def train(recipe, data, jit, model=None, parts=None, lanes=2, batched=False, **arguments):
    """Three rounds; the last state, their metrics, and how the last program was compiled."""
    arguments = {"metrics": ["accuracy"]} | arguments
    model = from_keras(model or dense(), LOSS, **arguments)
    algorithm = recipe(
        model,
        client_optimizer=optimizers.from_keras(keras.optimizers.SGD(0.1), model.variables),
        server_optimizer=optimizers.from_keras(keras.optimizers.SGD(1.0), model.variables),
        aggregator=tffed.chain(*(parts or [tffed.mean()])),
    )
    engine = tffed.Embedded(algorithm, lanes=lanes, jit_compile=jit, batched=batched)
    state, store, history = algorithm.init(model.init(), len(data)), tffed.ClientStore(), []
    for _ in range(3):
        state, metrics = engine.run_round(
            state, data, list(data.ids), seed=random.seed(2), store=store
        )
        history.append({name: float(value) for name, value in metrics.items()})
    capacities = {program.capacity for program in engine._programs.values()}
    return state, history, capacities if len(capacities) > 1 else capacities.pop()


def assert_close(one, other):
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("batched", [False, True], ids=["in turns", "side by side"])
@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (tffed.fed_avg(2, batch_size=4), None),
        (tffed.fed_avg(local_steps=7, batch_size=4), [tffed.clip(0.05), tffed.median()]),
        (tffed.scaffold(batch_size=4), [tffed.mean("uniform")]),
    ],
    ids=["fed_avg", "steps, clip and median", "scaffold"],
)
def test_it_equals_the_graph_up_to_rounding(recipe, parts, batched):
    data = clients()
    state, history, capacity = train(recipe, data, True, parts=parts, batched=batched)
    expected, metrics, none = train(recipe, data, False, parts=parts)
    assert (capacity, none) == (max(SIZES), None)
    assert_close(state.weights, expected.weights)
    for found, wanted in zip(history, metrics, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


def test_side_by_side_draws_dropout_as_in_turns():
    results = []
    for batched in (True, False):
        model = keras.Sequential([dense(), keras.layers.Dropout(0.3), keras.layers.Dense(3)])
        recipe = tffed.fed_avg(2, batch_size=4)
        results.append(train(recipe, clients(), True, model=model, batched=batched)[0].weights)
    assert_close(*results)


def test_sample_weights_weigh_the_loss_and_not_the_metrics():
    data, recipe = clients(weighted=True), tffed.fed_avg(batch_size=4)
    state, history, capacity = train(recipe, data, True)
    expected, metrics, _ = train(recipe, data, False)
    assert capacity == max(SIZES)
    assert_close(state.weights, expected.weights)
    assert history[-1] == pytest.approx(metrics[-1], rel=1e-4)


def test_weighted_metrics_keep_the_graph():
    data, recipe = clients(weighted=True), tffed.fed_avg(batch_size=4)
    arguments = {"metrics": None, "weighted_metrics": ["accuracy"]}
    _, history, capacity = train(recipe, data, True, **arguments)
    _, metrics, _ = train(recipe, data, False, **arguments)
    assert capacity is None and history == metrics


def test_the_same_bits_with_any_lanes_and_again():
    data, recipe = clients(), tffed.fed_avg(2, batch_size=4)
    runs = [train(recipe, data, True, lanes=lanes)[0] for lanes in (1, 3, 3)]
    for other in runs[1:]:
        for a, b in zip(tf.nest.flatten(runs[0]), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(a, b)


def sequence(*inner):
    """Six numbers as a sequence of three pairs, through the layers."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Reshape((3, 2)), *inner, layers.Flatten(), layers.Dense(3)]
    )


def recurrent():
    keras.utils.set_random_seed(4)
    layers = keras.layers
    return sequence(
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(4, return_sequences=True, go_backwards=True),
        layers.SimpleRNN(3, return_sequences=True),
    )


def normalised():
    keras.utils.set_random_seed(4)
    layers = keras.layers
    norms = layers.RMSNormalization(), layers.GroupNormalization(2), layers.UnitNormalization()
    return sequence(layers.Dense(4), *norms)


def transformer():
    keras.utils.set_random_seed(4)
    layers, ops = keras.layers, keras.ops
    x = keras.Input((6,))
    tokens = ops.cast(ops.clip(4 * ops.abs(x), 0, 7), "int32")
    places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    h = layers.Embedding(8, 4)(tokens) + layers.Embedding(6, 4)(places)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 3)(h, h, use_causal_mask=True))
    h = ops.concatenate([ops.relu(h[:, -1]), ops.mean(h, axis=1)], axis=-1)
    return keras.Model(x, layers.Dense(3)(h))


@pytest.mark.parametrize("model", [recurrent, normalised, transformer])
def test_sequence_models_equal_the_graph(model):
    data, recipe = clients(), tffed.fed_avg(batch_size=4)
    state, history, capacity = train(recipe, data, True, model=model())
    expected, metrics, _ = train(recipe, data, False, model=model())
    assert capacity == max(SIZES)
    assert_close(state.weights, expected.weights)
    assert history[-1] == pytest.approx(metrics[-1], rel=1e-4)


def test_recurrent_models_do_not_train_side_by_side():
    with pytest.raises(ValueError, match="recurrent"):
        train(tffed.fed_avg(batch_size=4), clients(), True, model=recurrent(), batched=True)


def test_spatial_dropout_keeps_the_expected_loss():
    layer = keras.layers.SpatialDropout1D(0.5)
    data = tffed.data.from_dict({n: (np.ones((n, 6), "f"), np.zeros(n, int)) for n in (300, 399)})
    model = sequence(layer)
    four = [[a, b] * 3 for a in (0.0, 2.0) for b in (0.0, 2.0)]  # channels kept or not
    losses = [-np.log(p[0]) for p in keras.ops.softmax(model.layers[-1](np.array(four, "f")))]
    _, history, capacity = train(tffed.fed_avg(batch_size=400), data, True, model=model)
    # Hoeffding's bound for 699 independent examples, wrong once in a million runs.
    bound = np.ptp(losses) * np.sqrt(np.log(2e6) / (2 * 699))
    assert capacity == 399 and abs(history[0]["loss"] - np.mean(losses)) < bound


OPS = keras.ops
CROSSINGS = {
    "mean over examples": lambda h: h - OPS.mean(h, axis=0, keepdims=True),
    "mean over all": lambda h: h - OPS.mean(h),
    "negative axis": lambda h: h + OPS.cumsum(h, axis=-2),
    "softmax": lambda h: keras.layers.Softmax(axis=0)(h),
    "ranks": lambda h: OPS.mean(h[:, :1] - h[:, 0], axis=1)[:, None],
    "reversed": lambda h: h + h[::-1, :],
    "product": lambda h: OPS.matmul(h, OPS.matmul(OPS.transpose(h), h)),
}


@pytest.mark.parametrize("kind", CROSSINGS)
def test_models_whose_examples_see_one_another_are_not_masked(kind):
    x = keras.Input((6,))
    h = CROSSINGS[kind](keras.layers.Dense(4)(x))
    assert not maskable(keras.Model(x, keras.layers.Dense(3)(h)))


def test_recurrent_layers_in_the_loop_of_keras_are_not_masked():
    layers = keras.layers
    for model in (
        [keras.Input((6,)), layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3)],
        [keras.Input((6, 2)), layers.Bidirectional(layers.SimpleRNN(3, "relu"))],
    ):
        assert not maskable(keras.Sequential([*model, layers.Dense(3)]))


@pytest.mark.parametrize(
    "layer",
    [keras.layers.BatchNormalization(), keras.layers.Dense(4, kernel_regularizer="l2")],
    ids=["batch norm", "regularizer"],
)
def test_where_padding_would_show_the_graph_is_kept(layer):
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(3)])
    assert train(tffed.fed_avg(batch_size=4), clients(), True, model=model)[2] is None


def of_its_own(y, y_pred):
    return tf.reduce_mean(keras.losses.mean_squared_error(tf.one_hot(y, 3), y_pred))


@pytest.mark.parametrize(
    "arguments",
    [{"metrics": [of_its_own]}, {"loss": of_its_own}, {"loss": keras.losses.Tversky()}],
    ids=["metric", "loss", "loss of the batch"],
)
def test_what_may_have_averaged_a_batch_keeps_the_graph(arguments):
    loss = arguments.pop("loss", LOSS)
    assert not maskable(dense(), loss, **arguments)
    accuracy = ["accuracy", keras.metrics.SparseCategoricalAccuracy()]
    assert maskable(dense(), LOSS, metrics=accuracy)


def test_an_output_a_step_keeps_the_graph():
    layers = keras.layers
    stack = [layers.Embedding(9, 4), layers.LSTM(5, return_sequences=True), layers.Dense(9)]
    model = keras.Sequential([keras.Input((6,), dtype="int32"), *stack])
    assert not maskable(model)


PADDING_SHOWS = {
    "activity regularizer": (lambda: keras.layers.Dense(4, activity_regularizer="l2"), LOSS),
    "activation": (lambda: keras.layers.Dense(4, lambda t: t - OPS.mean(t, 0)[None]), LOSS),
    "ignored class": (
        lambda: keras.layers.Dense(4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
    ),
}


@pytest.mark.parametrize("kind", PADDING_SHOWS)
def test_what_sees_padding_is_found_by_trial_alone(kind, monkeypatch):
    layer, loss = PADDING_SHOWS[kind]

    def model():
        return keras.Sequential([keras.Input((6,)), layer(), keras.layers.Dense(3)])

    assert not maskable(model(), loss)
    monkeypatch.setattr("tffed.keras_functions.independent_examples", lambda model: True)
    assert not maskable(model(), loss) and maskable(dense())


def test_sample_weights_of_any_rank_are_masked():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 6)).astype("f"), rng.normal(size=(9, 1)).astype("f")
    for weights in (np.arange(1.0, 10.0, dtype="f")[:, None], np.arange(1, 10)):
        mine = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        theirs = keras.models.clone_model(mine)
        theirs.set_weights(mine.get_weights())
        fed = tffed.Federated(mine, tffed.fed_avg(local_steps=3, batch_size=16))
        fed.compile(client_optimizer=keras.optimizers.SGD(0.1), loss="mse")
        fed.fit({"a": (x, y, weights)}, verbose=0)
        theirs.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        for _ in range(3):
            theirs.train_on_batch(x, y, weights)
        for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("batched", [False, True], ids=["in turns", "side by side"])
def test_an_infinity_leaves_out_the_client_that_holds_it(batched):
    rng = np.random.default_rng(0)
    data = {
        i: (rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n))
        for i, n in enumerate((16, 9, 5))
    }
    data[0][0][0] = 3e38

    def model():
        keras.utils.set_random_seed(4)
        stack = [keras.layers.Dense(8, "relu", kernel_initializer="ones"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((6,)), *stack])

    recipe = tffed.fed_avg(batch_size=16)
    state, history, capacity = train(
        recipe, tffed.data.from_dict(data), True, model(), batched=batched
    )
    assert capacity == 16 and [h["dropped"] for h in history] == [1, 1, 1]
    del data[0]
    others, _, _ = train(recipe, tffed.data.from_dict(data), True, model())
    assert_close(state.weights, others.weights)


@pytest.mark.parametrize("jit", [True, False])
def test_an_id_without_a_row_leaves_out_its_client(jit):
    def model(shift=0):
        keras.utils.set_random_seed(4)
        inputs = keras.Input((7,), dtype="int32")
        rows = keras.layers.Embedding(11, 4)(inputs + shift)
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(rows)))

    rng, recipe = np.random.default_rng(0), tffed.fed_avg(batch_size=4)
    data = {i: (rng.integers(0, 11, (9, 7), "int32"), rng.integers(0, 3, 9)) for i in range(2)}
    expected, _, _ = train(recipe, tffed.data.from_dict(data), jit, model())
    for wrong in (11, -12):
        bad = np.where(np.arange(7) == 3, wrong, data[0][0])
        population = tffed.data.from_dict({**data, "bad": (bad.astype("int32"), data[0][1])})
        state, history, _ = train(recipe, population, jit, model())
        assert history[0]["dropped"] == 1
        assert_close(state.weights, expected.weights)
    # As in Keras, ids below 0 count from the end.
    shifted, history, _ = train(recipe, tffed.data.from_dict(data), jit, model(-11))
    assert history[0]["dropped"] == 0
    assert_close(shifted.weights, expected.weights)


def test_a_whole_client_batch_keeps_the_graph():
    assert train(tffed.fed_avg(), clients(), True)[2] is None


def test_clients_that_are_not_in_memory_are_padded_to_few_sizes():
    rng, sizes = np.random.default_rng(0), (3, 40, 150, 1, 7, 64)
    data = {
        i: (rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n))
        for i, n in enumerate(sizes)
    }
    lazy, recipe = tffed.data.from_function(data, data.__getitem__), tffed.fed_avg(batch_size=4)
    state, history, capacities = train(recipe, lazy, True)
    assert capacities == {64, 256}
    expected, metrics, _ = train(recipe, lazy, False)
    assert_close(state.weights, expected.weights)
    assert history[-1] == pytest.approx(metrics[-1], rel=1e-4)


def test_compile_takes_it():
    fed = tffed.Federated(dense(), tffed.fed_avg(batch_size=4))
    fed.compile(keras.optimizers.SGD(0.1), loss=LOSS, metrics=["accuracy"], jit_compile=True)
    losses = fed.fit(clients(), rounds=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    x, y = clients()[5]
    expected = fed.model.evaluate(x, y, verbose=0, return_dict=True)
    assert fed.evaluate(x, y) == pytest.approx(expected, rel=1e-5)


def test_adapters_do_not_train_side_by_side():
    model = dense()
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="frozen layers, adapters.*side by side"):
        train(tffed.fed_avg(batch_size=4), clients(), True, model=model, batched=True)
