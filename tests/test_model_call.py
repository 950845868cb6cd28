"""What a training call changes and draws, held against Keras's own steps or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tffed
from tffed import loss_scale, random
from tffed.model import from_keras
from tffed.model_call import state_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 6)).astype("float32")
Y = RNG.normal(size=(9, 1)).astype("float32")


def sequential(*inner, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *inner])


class Holder:
    """A plain object, into which Keras does not look."""

    def __init__(self, value):
        self.value = value


class Counting(layers.Layer):
    """Divides by the number of its training calls."""

    def build(self, shape):
        self.n = self.add_weight(shape=(), dtype="int64", initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.n.assign(self.n + 1)
        return x / (1.0 + ops.cast(self.n, "float32"))


class Centred(layers.Layer):
    """Subtracts a running mean that the same call has moved."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        x = x * self.scale
        if training:
            self.mean.assign(0.5 * self.mean + 0.5 * ops.mean(x, 0))
        return x - self.mean


class Written(layers.Layer):
    """Counts in a variable that is not Keras's."""

    def build(self, shape):
        self.n = tf.Variable(0.0)

    def call(self, x):
        self.n.assign_add(1.0)
        return x * self.n


class Hidden(layers.Layer):
    """Normalizes by a layer that Keras does not see."""

    def __init__(self):
        super().__init__()
        self.held = Holder(layers.BatchNormalization())

    def call(self, x, training=False):
        return self.held.value(x, training=training)


class Noise(layers.Layer):
    """Multiplies by normal numbers from a generator, or from Keras's global one."""

    def __init__(self, generator=None):
        super().__init__()
        self.held = Holder(generator)

    def build(self, shape):
        self.w = self.add_weight(shape=(4,), initializer="zeros")

    def call(self, x):
        return x * 0 + self.w * keras.random.normal((4,), seed=self.held.value)


class DroppingCell(layers.Layer):
    """A recurrent cell that draws at each time step."""

    def __init__(self):
        super().__init__()
        self.state_size, self.dense, self.drop = 4, layers.Dense(4), layers.Dropout(0.5)

    def call(self, x, states, training=False):
        h = self.drop(self.dense(x), training=training) + states[0]
        return h, [h]


def trained_like_keras(make, steps=3, optimizer=lambda: keras.optimizers.SGD(0.1)):
    """The weights after local steps and after Keras's own, and the federation."""
    mine, theirs = make(), make()
    theirs.set_weights(mine.get_weights())
    fed = tffed.Federated(mine, tffed.fed_avg(local_steps=steps, batch_size=16))
    fed.compile(client_optimizer=optimizer(), loss="mse", jit_compile=False)
    fed.fit({"a": (X, Y)}, verbose=0)
    theirs.compile(optimizer(), "mse", run_eagerly=True)
    for _ in range(steps):
        theirs.train_on_batch(X, Y)
    return mine, theirs, fed


@pytest.mark.parametrize(
    "layer",
    [lambda: layers.SpectralNormalization(layers.Dense(4)), Centred, layers.BatchNormalization],
    ids=["trainable", "read again", "batch norm"],
)
def test_weights_assigned_in_a_call_are_those_of_keras(layer):
    mine, theirs, _ = trained_like_keras(lambda: sequential(layer(), layers.Dense(1)))
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_counters_count_within_a_round_and_begin_anew_in_the_next():
    mine, theirs, fed = trained_like_keras(lambda: sequential(Counting(), layers.Dense(1)))
    np.testing.assert_allclose(mine.get_weights()[1], theirs.get_weights()[1], atol=2e-6)
    assert mine.layers[0].n.numpy() == 0 and theirs.layers[0].n.numpy() == 3
    assert fed.state.weights.non_trainable == ()  # a counter does not travel
    theirs.layers[0].n.assign(0)  # where the next round begins
    fed.fit({"a": (X, Y)}, verbose=0)
    for _ in range(3):
        theirs.train_on_batch(X, Y)
    np.testing.assert_allclose(mine.get_weights()[1], theirs.get_weights()[1], atol=2e-6)


def test_what_training_does_not_change_is_no_statistic():
    normalization = layers.Normalization()
    normalization.adapt(RNG.normal(3, 2, (50, 6)).astype("float32"))
    batch_norm = layers.BatchNormalization()
    model = sequential(normalization, batch_norm, layers.Dropout(0.5), Counting(), layers.Dense(2))
    state = state_of(model)
    assert state.statistics == [batch_norm.moving_mean, batch_norm.moving_variance]
    assert state.counters == [model.layers[3].n] and len(state.seeds) == 1


def test_subclassed_models_are_tried_with_the_shapes_they_were_built_for():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = layers.Embedding(5, 3), layers.Normalization()
            self.norm.build((None, 3))

        def call(self, ids):
            return self.norm(self.embedding(ids))

    model = Own()
    model(np.zeros((2, 4), "int32"))
    assert state_of(model).statistics == []


@pytest.mark.parametrize("generator", [None, 3], ids=["global", "hidden"])
def test_random_numbers_differ_by_step_client_and_round(generator):
    inputs = keras.Input((4,))
    layer = Noise(generator and keras.random.SeedGenerator(generator))
    model = keras.Model(inputs, layer(inputs))
    pure = from_keras(model, lambda y, p: ops.mean(p, -1))
    batch = tf.zeros((1, 4)), tf.zeros((1, 4))
    seeds = [
        random.model_seed(random.client_seed(random.seed(1), tf.constant(r), key), step)
        for r, key, step in [
            (0, random.client_key("a"), 0),
            (0, random.client_key("a"), 1),
            (0, random.client_key("b"), 0),
            (1, random.client_key("a"), 0),
        ]
    ]
    drawn = [4 * pure.grad(pure.init(), batch, seed)[0][0].numpy() for seed in seeds]
    assert len({tuple(d) for d in drawn}) == 4
    again = 4 * pure.grad(pure.init(), batch, seeds[0])[0][0].numpy()
    assert (again == drawn[0]).all()
    many = np.array(
        [4 * pure.grad(pure.init(), batch, random.seed(k))[0][0].numpy() for k in range(200)]
    )
    # Standard normal: of 800 numbers the mean and the variance, beyond which one run in 10^5 lies.
    assert abs(many.mean()) < 4.4 / 800**0.5 and abs(many.var() - 1) < 4.5 * (2 / 800) ** 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sequential(Written(), layers.Dense(1)), r"writes a tf\.Variable"),
        (lambda: sequential(Hidden(), layers.Dense(1)), "moving_mean.*where Keras does not look"),
        (
            lambda: sequential(layers.RNN(DroppingCell()), layers.Dense(1), shape=(5, 6)),
            "seed_generator_state, changed inside",
        ),
        (
            lambda: keras.Sequential(
                [keras.Input((5, 6), batch_size=9), layers.LSTM(3, stateful=True)]
            ),
            "stateful=True",
        ),
        (
            lambda: keras.Sequential([keras.Input((6,), batch_size=9), layers.Dense(1)]),
            "any batch size",
        ),
    ],
    ids=["tf.Variable", "hidden", "loop", "stateful", "batch size"],
)
def test_what_cannot_be_followed_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        from_keras(make(), "mse")


@pytest.mark.parametrize("name", ["train_step", "test_step", "make_train_function"])
def test_steps_of_the_users_own_are_refused(name):
    own = type("Own", (keras.Model,), {name: lambda self, data=None: {}})
    inputs = keras.Input((2,))
    with pytest.raises(ValueError, match=f"whose {name} is overridden.*compute_loss"):
        from_keras(own(inputs, layers.Dense(2)(inputs)), "mse")
    plain = keras.Model(inputs, layers.Dense(2)(inputs))
    setattr(plain, name, lambda data=None: {})
    with pytest.raises(ValueError, match=f"whose {name} is overridden"):
        from_keras(plain, "mse")


def test_layers_frozen_after_compile_are_noticed():
    model = sequential(layers.Dense(4), layers.Dense(1))
    pure = from_keras(model, "mse")
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="frozen, unfrozen or replaced since. Call compile"):
        pure.init()


def test_weights_without_a_gradient_stay_as_they_are():
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Dense(1), layers.Dense(1)
            self.b.build((None, 6))

        def call(self, x):
            return self.a(x)

    def make():
        model = Unused()
        model(X)
        return model

    for optimizer in (
        lambda: keras.optimizers.SGD(0.1, weight_decay=0.5),
        lambda: keras.optimizers.Lion(0.1, weight_decay=0.3),
    ):
        mine, theirs, _ = trained_like_keras(make, optimizer=optimizer)
        for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_loss_without_any_gradient_is_refused():
    pure = from_keras(sequential(layers.Dense(1)), lambda y, p: ops.stop_gradient(p[:, 0]))
    with pytest.raises(ValueError, match="none of whose trainable weights has a gradient"):
        pure.grad(pure.init(), (tf.constant(X), tf.constant(Y)), random.seed(0))


def test_loss_scale_skips_halves_and_grows_as_in_keras():
    variable = keras.Variable([1.0, 2.0])
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    theirs.build([variable])
    theirs.step_counter.assign(1997)
    scale = loss_scale.first()._replace(since=tf.constant(1997))
    for value in (np.inf, 1.0, np.nan, *[1.0] * 3):
        before = variable.numpy()
        theirs.apply([tf.constant([0.0, value])], [variable])
        finite, scale = loss_scale.after(scale, (tf.constant([0.0, value]),))
        assert bool(finite) == (before != variable.numpy()).any()
        assert scale.factor == theirs.dynamic_scale.numpy()
        assert scale.since == theirs.step_counter.numpy()
    scale = scale._replace(since=tf.constant(1999))
    theirs.step_counter.assign(1999)
    theirs.apply([tf.constant([0.0, 1.0])], [variable])
    _, scale = loss_scale.after(scale, (tf.constant([0.0, 1.0]),))
    assert scale.factor == theirs.dynamic_scale.numpy() == 2.0**14
    assert scale.taken == 5


def test_overflowing_steps_of_a_float16_model_are_those_of_keras():
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, dtype=policy)])
    model.dtype_policy = policy
    x, y = np.ones((8, 2), "float32"), np.full((8, 1), 2000.0, "float32")
    theirs = keras.models.clone_model(model)
    theirs.set_weights(model.get_weights())
    fed = tffed.Federated(model, tffed.fed_avg(local_steps=14, batch_size=8))
    fed.compile(client_optimizer=keras.optimizers.Adam(0.01), loss="mse", jit_compile=False)
    history = fed.fit({"a": (x, y)}, verbose=0).history
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    theirs.compile(optimizer, "mse", auto_scale_loss=False)
    before = theirs.get_weights()
    for _ in range(14):
        theirs.train_on_batch(x, y)
    assert float(optimizer.dynamic_scale.numpy()) < 2**15  # some were skipped
    assert any((a != b).any() for a, b in zip(before, theirs.get_weights(), strict=True))
    for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)
    assert history["dropped"] == [0] and np.isfinite(history["loss"]).all()


class Recomputed(layers.Layer):
    """Computes a product again for its gradient, which hides its weight from the tape."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3))

    def call(self, x):
        return tf.recompute_grad(lambda x: tf.nn.tanh(x @ tf.convert_to_tensor(self.w)))(x)


class Halved(layers.Layer):
    """Has a gradient of its own, in which it reads its weight."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        @tf.custom_gradient
        def scaled(x, w):
            def grad(d):
                return 0.5 * d * self.w, tf.reduce_sum(d * x, 0)

            return x * w, grad

        return scaled(x, tf.convert_to_tensor(self.w))


def test_a_step_that_is_not_that_of_keras_is_refused():
    pure = from_keras(sequential(Recomputed(), layers.Dense(1)), "mse")
    with pytest.raises(ValueError, match="step differs from Keras.s own in .*recomputed"):
        pure.zeros((tf.constant(X), tf.constant(Y)))


def test_gradients_that_read_a_weight_see_the_clients():
    def make():
        return sequential(layers.Dense(3), Halved(), layers.Dense(1))

    mine, theirs, _ = trained_like_keras(make)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_proof_leaves_the_model_as_it_was():
    inner = Counting(), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(1)
    model = sequential(*inner)
    before = [v.numpy() for v in model.variables]
    pure = from_keras(model, "mse")
    pure.zeros((tf.constant(X), tf.constant(Y)))
    for variable, value in zip(model.variables, before, strict=True):
        assert (variable.numpy() == value).all()


def test_the_server_leaves_weights_without_gradient_alone():
    inputs = keras.Input((6,))
    trunk = layers.Dense(3)(inputs)
    heads = {"used": layers.Dense(1)(trunk), "unused": layers.Dense(1)(trunk)}
    model = keras.Model(inputs, heads)
    before = model.layers[-1].get_weights()[0], model.layers[-2].get_weights()[0]
    fed = tffed.Federated(model, tffed.fed_sgd())
    server = keras.optimizers.SGD(0.1, weight_decay=0.5)
    fed.compile(server_optimizer=server, loss={"used": "mse"}, jit_compile=False)
    fed.fit({"a": (X, {"used": Y})}, verbose=0)
    moved = [
        float(abs(layer.get_weights()[0] - b).max())
        for layer, b in zip((model.layers[-1], model.layers[-2]), before, strict=True)
    ]
    assert min(moved) == 0 and max(moved) > 1e-3


def own_loss(compute):
    class Own(keras.Model):
        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return compute(self, ops.mean((y_pred - y) ** 2))

    inputs = keras.Input((6,))
    return Own(inputs, layers.Dense(1)(inputs))


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda m, loss: loss / (1.0 + ops.cast(m.optimizer.iterations, "float32")), "iteration"),
        (lambda m, loss: loss * m.optimizer.learning_rate, "learning_rate"),
        (lambda m, loss: loss + m.metrics[0].result(), "results of metrics"),
    ],
    ids=["iterations", "rate", "metric"],
)
def test_what_a_round_has_other_values_of_is_not_read(compute, words):
    pure = from_keras(own_loss(compute), "mse")
    with pytest.raises(ValueError, match=words):
        pure.grad(pure.init(), (tf.constant(X), tf.constant(Y)), random.seed(0))


def test_a_model_compiled_again_is_noticed():
    model = sequential(layers.Dense(1))
    fed = tffed.Federated(model, tffed.fed_avg())
    fed.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.compile("sgd", "mae")
    for use in (lambda: fed.fit({"a": (X, Y)}), lambda: fed.evaluate(X, Y)):
        with pytest.raises(ValueError, match="compiled otherwise since"):
            use()


def test_class_weights_and_strings_are_held_against_keras_too():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax")])
    pure = from_keras(model, "sparse_categorical_crossentropy", class_weight={0: 5.0, 1: 0.5})
    pure.zeros((tf.constant(X), tf.zeros(9, tf.int64)))
    inputs = keras.Input((1,), dtype="string")
    ids = layers.StringLookup(vocabulary=["0", "1"])(inputs)
    words = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(layers.Embedding(3, 2)(ids))))
    from_keras(words, "mse").zeros((tf.fill([9, 1], "1"), tf.constant(Y)))


def test_a_proof_needs_finite_gradients_or_says_that_it_has_none():
    def model(function):
        inputs = keras.Input((3,), dtype="int32")
        x = layers.Lambda(function)(inputs)
        return keras.Model(inputs, layers.Dense(1)(Recomputed()(x)))

    batch = tf.ones((2, 3), tf.int32), tf.ones((2, 1))
    log = model(lambda x: ops.log(ops.cast(x, "float32")))  # of ones it is finite, of zeros not
    with pytest.raises(ValueError, match="differs from Keras's own"):
        from_keras(log, "mse").zeros(batch)
    never = model(lambda x: ops.log(ops.cast(x, "float32") - 9.0))
    with pytest.warns(UserWarning, match="could not be held against Keras's own: it gives none"):
        from_keras(never, "mse").zeros(batch)


def test_what_draws_without_a_seed_is_said():
    noisy = layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))
    pure = from_keras(sequential(noisy, layers.Dense(1)), "mse")
    with pytest.warns(UserWarning, match="numbers that no seed leads to"):
        pure.zeros((tf.constant(X), tf.constant(Y)))


def test_a_lookup_is_tried_on_the_clients_own_values():
    inputs = keras.Input((1,), dtype="int64")
    ids = layers.IntegerLookup(vocabulary=[10, 20, 30], num_oov_indices=0)(inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(layers.Embedding(3, 2)(ids))))
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=2))
    fed.compile(keras.optimizers.SGD(0.1), loss="mse")
    x = np.array([[10], [30], [20]])
    expected = float(np.mean((model.predict(x, verbose=0) - Y[:3]) ** 2))
    assert fed.evaluate(x, Y[:3])["loss"] == pytest.approx(expected, rel=1e-5)
    history = fed.fit({"a": (x, Y[:3])}, verbose=0).history
    assert np.isfinite(history["loss"]).all()
