"""Federated dropout against smaller Keras models that are really built and trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import assert_close, batches, build, differs, needs_tf_privacy, run
from tffed import optimizers, random
from tffed.aggregation import Stage, chain, clip, mean, median
from tffed.algorithms import fed_avg, fed_sgd, scaffold
from tffed.analysis.traffic import traffic
from tffed.compression import federated_dropout
from tffed.data import from_dict
from tffed.engines.embedded import Embedded
from tffed.engines.packed import Packed
from tffed.model import from_keras
from tffed.store import ClientStore

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = (9, 5, 12)
SEED = 11


def mlp(first=10, second=6):
    """Sigmoid units that are dropped would still give 1/2."""
    layers = [L.Dense(first, "relu"), L.Dropout(0.0), L.Dense(second, "sigmoid"), L.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


def cnn(first=4, second=6, third=8):
    inputs = keras.Input((8, 8, 2))
    x = L.MaxPooling2D()(L.Conv2D(first, 3, padding="same")(inputs))
    x = L.Activation("softplus")(L.Conv2D(second, 2, activation="tanh")(x))
    x = L.Dense(third, "sigmoid")(L.Flatten()(x))
    return keras.Model(inputs, L.Dense(3, use_bias=False)(x))


# Of each model: its input, sizes of its groups, and by tensor the group of each axis; a pair is
# (positions, group) of a kernel after Flatten.
MODELS = {
    "mlp": (mlp, (5,), (10, 6), [(None, 0), (0,), (0, 1), (1,), (1, None), (None,)]),
    "cnn": (
        cnn,
        (8, 8, 2),
        (4, 6, 8),
        [
            *((None, None, None, 0), (0,), (None, None, 0, 1), (1,)),
            *(((9, 1), 2), (2,), (2, None)),
        ],
    ),
}


def make(name):
    keras.utils.set_random_seed(3)
    function, shape, groups, axes = MODELS[name]
    rng = np.random.default_rng(1)
    data = {
        i: (rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 3, n))
        for i, n in enumerate(SIZES)
    }
    return function, function(), data, groups, axes


def kept_units(groups, keep, round_number, cid):
    """The units that a client keeps: the first of a shuffle by its seed of the round."""
    seed = random.client_seed(random.seed(SEED), round_number, tf.constant(random.client_key(cid)))
    seed = random.part_seed(seed)
    return [
        random.shuffle(tf.range(n), random.fold_in(seed, g)).numpy()[: max(1, round(keep * n))]
        for g, n in enumerate(groups)
    ]


def index(shape, axes, kept):
    """The `np.ix_` of a tensor's sub-matrix."""

    def along(size, axis):
        if axis is None:
            return np.arange(size)
        if isinstance(axis, tuple):
            positions, group = axis
            channels = size // positions
            return np.concatenate([p * channels + kept[group] for p in range(positions)])
        return kept[axis]

    return np.ix_(*(along(n, axis) for n, axis in zip(shape, axes, strict=True)))


def by_hand(function, weights, data, groups, axes, keep, optimizer, rescale=False):
    """One round: the weights after it."""
    sums = [np.zeros_like(w) for w in weights]
    counts = [np.zeros_like(w) for w in weights]
    sizes = [max(1, round(keep * n)) for n in groups]
    factors = [_factor(a, groups, sizes) if rescale else 1.0 for a in axes]
    for cid, (x, y) in data.items():
        kept = kept_units(groups, keep, 0, cid)
        places = [index(w.shape, a, kept) for w, a in zip(weights, axes, strict=True)]
        small = function(*sizes)
        start = [f * w[p] for f, w, p in zip(factors, weights, places, strict=True)]
        small.set_weights(start)
        small.compile(optimizer=optimizer(), loss=LOSS)
        for rows in batches(0, cid, len(y), batch_size=4, epochs=2):
            small.train_on_batch(x[rows], y[rows])
        for k, (new, old, p) in enumerate(zip(small.get_weights(), start, places, strict=True)):
            sums[k][p] += len(y) * (new - old) / factors[k]
            counts[k][p] += len(y)
    return [w + s / np.maximum(c, 1) for w, s, c in zip(weights, sums, counts, strict=True)]


def _factor(axes, groups, sizes):
    axis = axes[-2] if len(axes) > 1 else None
    group = axis[1] if isinstance(axis, tuple) else axis
    return 1.0 if group is None else groups[group] / sizes[group]


@pytest.mark.parametrize(("name", "rescale"), [("mlp", False), ("cnn", True)])
def test_a_round_equals_smaller_models(name, rescale):
    function, model, data, groups, axes = make(name)

    def optimizer():
        return keras.optimizers.SGD(0.2, momentum=0.6, weight_decay=0.01)

    weights = model.get_weights()
    pure = from_keras(model, LOSS)
    parts = [federated_dropout(model, 0.5, rescale=rescale), mean()]
    recipe = fed_avg(2, batch_size=4)
    algorithm = build(recipe, pure, client=optimizer(), parts=parts)
    state, _ = run(algorithm, pure, data, [list(data)])
    expected = by_hand(function, weights, data, groups, axes, 0.5, optimizer, rescale)
    assert_close(state.weights.trainable, expected, 5e-5)
    assert differs(expected, weights, 0.02)


def frozen_norm():
    norm = L.BatchNormalization(moving_mean_initializer="ones", trainable=False)
    layers = [L.Dense(10, "relu"), norm, L.Dropout(0.0), L.Dense(6, "tanh"), L.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


@pytest.mark.parametrize("function", [mlp, cnn, frozen_norm])
@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.Nadam])
def test_the_smaller_model_trains_as_the_whole_one_with_zeros(function, optimizer):
    """The whole one where a layer's frozen values, or the optimizer's slots, are of its shapes."""
    data = make("cnn" if function is cnn else "mlp")[2]
    model, states = function(), []
    pure, before = from_keras(model, LOSS), [v.numpy() for v in model.trainable_variables]
    part = federated_dropout(model, 0.5)
    assert part.resized is (function is not frozen_norm)
    for resized in (True, False):
        chosen = part._replace(resized=resized and part.resized)
        algorithm = build(
            fed_avg(2, batch_size=4), pure, client=optimizer(0.05), parts=[chosen, mean()]
        )
        states.append(run(algorithm, pure, data, [list(data)])[0])
    assert_close(states[0].weights, states[1].weights, 2e-5)
    assert differs(states[0].weights.trainable, before, 0.02)
    assert_still_whole(model)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, data, states = cnn(), make("cnn")[2], []
    finally:
        keras.config.set_dtype_policy("float32")
    pure, part = from_keras(model, LOSS), federated_dropout(model, 0.5)
    before = [v.numpy() for v in model.trainable_variables]
    for chosen in (part, part._replace(resized=False)):
        sgd = keras.optimizers.SGD(0.3)
        algorithm = build(fed_avg(batch_size=4), pure, client=sgd, parts=[chosen, mean()])
        states.append(run(algorithm, pure, data, [list(data)])[0].weights.trainable)
    assert_close(states[0], states[1], 2e-3)
    assert differs(states[0], before, 0.02)


@needs_tf_privacy
def test_with_noise_in_the_clients_steps():
    model, data = mlp(), make("mlp")[2]
    before = model.get_weights()
    fed = tffed.Federated(model, fed_avg(batch_size=4), seed=SEED)
    fed.compile(
        keras.optimizers.SGD(0.1),
        loss=LOSS,
        aggregator=chain(federated_dropout(model, 0.2), mean()),
        privacy=tffed.privacy.dp_sgd(1.0, noise_multiplier=1.0),
    )
    fed.fit({0: data[0]}, verbose=0)
    moved = [a != b for a, b in zip(model.get_weights(), before, strict=True)]
    # Two of ten units, then one of six, have moved, noise and all.
    assert [int(m.sum()) for m in moved] == [10, 2, 2, 1, 3, 3]


def assert_still_whole(model):
    for layer in model.layers[isinstance(model.layers[0], L.InputLayer) :]:
        assert layer.compute_output_shape(layer.input.shape) == layer.output.shape
    before = model.get_weights()
    again = keras.models.clone_model(model)
    again.set_weights(before)
    x = np.ones((2, *model.input_shape[1:]), np.float32)
    np.testing.assert_array_equal(again(x), model(x))
    with pytest.raises(ValueError):
        model.layers[-1](np.ones((2, 99), np.float32))


def test_layers_are_whole_again_after_an_error():
    model = cnn()
    pure, part = from_keras(model, LOSS), federated_dropout(model, 0.5)
    weights = pure.init()
    small = part.take(part.choose((), random.seed(1)), weights.trainable)
    x, y = np.ones((2, 8, 8, 2), np.float32), np.zeros(2, int)
    pure.grad(weights._replace(trainable=small), (x, y), random.seed(2))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        mixed = (*small[:2], *weights.trainable[2:])
        pure.grad(weights._replace(trainable=mixed), (x, y), random.seed(2))
    assert_still_whole(model)


def test_costs_are_those_of_the_smaller_model():
    def found(model, *parts):
        fed = tffed.Federated(model, fed_avg(batch_size=4))
        aggregator = chain(*parts, mean())
        fed.compile(keras.optimizers.SGD(0.1), loss=LOSS, aggregator=aggregator)
        step = tffed.analysis.costs(fed, from_dict(make("cnn")[2])).step
        return step.forward.total, step.backward.total, step.optimizer.total, step.activation_bytes

    model, small = cnn(), cnn(2, 3, 4)
    assert found(model, federated_dropout(model, 0.5)) == found(small)
    whole = federated_dropout(model, 0.5)._replace(resized=False)
    assert found(model, whole) == found(cnn()) != found(small)


def engine_of(model, pure, parts, kind=Embedded, recipe=None, **arguments):
    recipe = recipe or fed_avg(2, batch_size=4)
    algorithm = build(recipe, pure, client=keras.optimizers.SGD(0.2), parts=parts)
    return kind(algorithm, **arguments)


def rounds(engine, pure, data, number=2):
    state, store, traffic = engine.algorithm.init(pure.init(), len(data)), ClientStore(), []
    clients = from_dict(data)
    for _ in range(number):
        state, _ = engine.run_round(
            state, clients, clients.ids, seed=random.seed(SEED), store=store
        )
        traffic.append((engine.bytes_up, engine.bytes_down))
    return state, traffic


def test_xla_alone_side_by_side_and_real_payloads_agree():
    _, model, data, _, _ = make("mlp")
    pure = from_keras(model, LOSS)

    def found(*kind, **arguments):
        parts = [federated_dropout(model, 0.5), clip(0.5), mean()]
        return rounds(engine_of(model, pure, parts, *kind, **arguments), pure, data)

    expected, traffic = found(jit_compile=False, processes=False, lanes=1)
    xla = [found(jit_compile=True, lanes=2, batched=batched) for batched in (False, True)]
    for engine in (found(Packed), *xla):
        assert_close(engine[0].weights, expected.weights, 2e-5)
        assert engine[1] == traffic


@pytest.mark.parametrize("name", MODELS)
def test_only_the_smaller_model_travels(name):
    function, model, data, groups, _ = make(name)
    pure = from_keras(model, LOSS)
    saved = model.count_params() - function(*(round(0.5 * n) for n in groups)).count_params()
    arguments = {"jit_compile": False, "processes": False}
    _, whole = rounds(engine_of(model, pure, [mean()], **arguments), pure, data, 1)
    parts = [federated_dropout(model, 0.5), mean()]
    _, part = rounds(engine_of(model, pure, parts, **arguments), pure, data, 1)
    (up, down), (less_up, less_down) = whole[0], part[0]
    engine = engine_of(model, pure, parts, **arguments)
    state = engine.algorithm.init(pure.init(), len(data))
    foreseen = traffic(engine.algorithm, state, from_dict(data), 0, 1)
    assert foreseen.exact
    assert (less_up, less_down) == (len(data) * foreseen.up, len(data) * foreseen.down)
    assert up - less_up == len(data) * (4 * saved - 8)  # the seed tells which part it is
    assert down - less_down == len(data) * 4 * saved


@pytest.mark.parametrize(
    "server",
    [
        keras.optimizers.SGD(1.0, momentum=0.9),
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
    ],
    ids=lambda server: server.name,
)
def test_what_no_client_had_stays_whatever_the_servers_optimizer_does(server):
    """And only that: a client has 1 of 10 units, then 1 of 6, each round others."""
    _, model, data, groups, axes = make("mlp")
    pure = from_keras(model, LOSS)
    parts = [federated_dropout(model, 0.1), mean()]
    sgd = keras.optimizers.SGD(0.2)
    algorithm = build(fed_avg(batch_size=4), pure, client=sgd, server=server, parts=parts)
    engine = Embedded(algorithm, jit_compile=False, processes=False)
    state, clients = algorithm.init(pure.init(), 1), from_dict({0: data[0]})
    for k in range(3):
        before = state.weights.trainable
        seed, store = random.seed(SEED), ClientStore()
        state, _ = engine.run_round(state, clients, [0], seed=seed, store=store)
        kept = kept_units(groups, 0.1, k, 0)
        for old, new, a in zip(before, state.weights.trainable, axes, strict=True):
            moved = old.numpy() != new.numpy()
            had = np.zeros(moved.shape, bool)
            had[index(moved.shape, a, kept)] = True
            assert not moved[~had].any()
            assert moved[had].any()


def test_every_unit_is_as_likely():
    """5,000 draws of 3 of 8: each unit's count within 5 standard deviations, wrong 1 in 2e5."""
    model = mlp(8, 5)
    part = federated_dropout(model, 0.35)
    seeds = tf.constant(np.random.default_rng(0).integers(0, 2**31, (5000, 2)), tf.int32)
    parts = tf.vectorized_map(lambda seed: part.choose((), seed), seeds)
    for (kept, places), (n, k) in zip(parts, ((8, 3), (5, 2)), strict=True):
        kept = kept.numpy()
        assert kept.shape == (5000, k) and all(len(set(row)) == k for row in kept)
        counts = np.bincount(kept.ravel(), minlength=n)
        assert np.abs(counts - 5000 * k / n).max() < 5 * np.sqrt(5000 * k / n * (1 - k / n))
        assert (np.take_along_axis(places.numpy(), kept, 1) == np.arange(k)).all()
    # The two layers draw apart: 24 of 80 pairs of (first, second) units would show a link.
    pairs = np.zeros((8, 5))
    np.add.at(pairs, (parts[0][0].numpy()[:, 0], parts[1][0].numpy()[:, 0]), 1)
    assert np.abs(pairs - 125).max() < 5 * np.sqrt(125)


def test_put_inverts_take_and_is_zero_elsewhere():
    _, model, _, groups, axes = make("cnn")
    part = federated_dropout(model, 0.5)
    weights = tuple(tf.constant(w) for w in model.get_weights())
    parts = part.choose((), random.seed(4))
    back = part.put(parts, part.take(parts, weights), weights)
    kept = [p[0].numpy() for p in parts]
    for w, b, m, a in zip(weights, back, part.mask(parts, weights), axes, strict=True):
        expected = np.zeros(w.shape)
        expected[index(w.shape, a, kept)] = 1
        np.testing.assert_array_equal(m, expected)
        np.testing.assert_array_equal(b, expected * w)


def test_fed_sgd_takes_the_gradient_of_the_smaller_model():
    function, model, data, groups, axes = make("mlp")
    weights, pure = model.get_weights(), from_keras(model, LOSS)
    parts = [federated_dropout(model, 0.5, rescale=False), mean()]
    algorithm = build(fed_sgd(), pure, server=keras.optimizers.SGD(0.3), parts=parts)
    state, _ = run(algorithm, pure, {0: data[0]}, [[0]])
    kept = kept_units(groups, 0.5, 0, 0)
    small, (x, y) = function(5, 3), data[0]
    places = [index(w.shape, a, kept) for w, a in zip(weights, axes, strict=True)]
    small.set_weights([w[p] for w, p in zip(weights, places, strict=True)])
    small.compile(optimizer=keras.optimizers.SGD(0.3), loss=LOSS)
    small.train_on_batch(x, y)
    for w, p, new in zip(weights, places, small.get_weights(), strict=True):
        w[p] = new
    assert_close(state.weights.trainable, weights, 2e-5)


def test_weights_go_down_through_stages():
    """Halves of the kept weights travel; the client trains from what it received."""
    _, model, data, _, _ = make("mlp")
    pure = from_keras(model, LOSS)
    half = Stage(
        encode=lambda shared, own, value, seed: (
            tf.nest.map_structure(lambda v: tf.cast(v, tf.float16), value),
            own,
            {},
        ),
        decode=lambda shared, payload, like: tf.nest.map_structure(
            lambda v, s: tf.cast(v, s.dtype), payload, like
        ),
        weights=True,
        name="half",
    )

    def found(down):
        recipe = fed_avg(2, batch_size=4)
        algorithm = recipe(
            pure,
            client_optimizer=optimizers.from_keras(keras.optimizers.SGD(0.2), pure.variables),
            server_optimizer=optimizers.from_keras(keras.optimizers.SGD(1.0), pure.variables),
            aggregator=chain(federated_dropout(model, 0.5), mean(), down=down),
        )
        return rounds(Embedded(algorithm, jit_compile=False, processes=False), pure, data, 1)

    plain, ((_, down),) = found([])
    halved, ((_, less),) = found([half])
    small = mlp(5, 3).count_params()
    assert down - less == len(data) * 2 * small
    assert_close(halved.weights, plain.weights, 1e-2)
    assert differs(halved.weights, plain.weights, 1e-6)


def frozen(layer):
    layer.trainable = False
    return layer


def test_units_at_frozen_layers_are_all_kept():
    layers = [L.Dense(8, "relu"), frozen(L.Dense(6, "relu")), L.Dense(4, "relu"), L.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    part = federated_dropout(model, 0.5)
    shapes = [tuple(s.shape) for s in part.like(tuple(v.value for v in model.trainable_variables))]
    assert shapes == [(5, 8), (8,), (6, 2), (2,), (2, 3), (3,)]


def chained(*layers, shape=(5,)):
    return lambda: federated_dropout(keras.Sequential([keras.Input(shape), *layers]))


def branched():
    inputs = keras.Input((5,))
    x = L.Dense(4)(inputs)
    return federated_dropout(keras.Model(inputs, L.Dense(2)(L.Add()([x, L.Dense(4)(x)]))))


def kept_state():
    return Stage(client_init=lambda like: tf.zeros(()), name="remembers")


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: federated_dropout(mlp(), 0.0), r"`keep` must be in \(0, 1\]"),
        (lambda: federated_dropout(mlp(), 1.5), r"`keep` must be in \(0, 1\]"),
        (chained(L.Dense(3)), "a hidden Dense or convolutional layer"),
        (chained(L.Dense(4), L.BatchNormalization(), L.Dense(3)), "set trainable=False on it"),
        (chained(L.Dense(4), L.LayerNormalization(), L.Dense(3)), "which may mix them"),
        (chained(L.Dense(4, "softmax"), L.Dense(3)), "the activation softmax"),
        (chained(L.Dense(4, lambda x: x), L.Dense(3)), "the activation <lambda>"),
        (
            chained(L.Dense(4), L.Rescaling([1.0, 2.0, 3.0, 4.0]), L.Dense(3)),
            "Rescaling, whose scale=.* has an entry for each",
        ),
        (
            chained(L.Dense(4), L.Rescaling(1.0, offset=np.ones(4)), L.Dense(3)),
            "Rescaling, whose offset=.* has an entry for each",
        ),
        (
            chained(L.Dense(4), L.Dropout(0.5, noise_shape=(None, 4)), L.Dense(3)),
            "Dropout, whose noise_shape=.* has an entry for each",
        ),
        (branched, "in which each layer reads the one before alone"),
        (lambda: chain(federated_dropout(mlp()), median()), "of which median needs all"),
        (
            lambda: chain(federated_dropout(mlp()), kept_state(), mean()).client_init(
                tuple(v.value for v in mlp().trainable_variables)
            ),
            "Leave out the stage that keeps a state",
        ),
        (
            lambda: engine_of(
                *(mlp(), from_keras(mlp(), LOSS), [federated_dropout(mlp()), mean()]),
                recipe=scaffold(batch_size=4),
            ),
            "control variates are of the whole model",
        ),
        (
            lambda: federated_dropout(mlp()).like([v.value for v in mlp(9).trainable_variables]),
            "Expected the model that federated_dropout was given",
        ),
    ],
)
def test_refuses(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "Received: " in str(error.value)
