"""Pure optimizers against Keras's own, step by step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import assert_close
from tffed import optimizers
from tffed.yogi import Yogi

K = keras.optimizers
STEPS = 5


class SignDescent(K.Optimizer):
    """A user's own optimizer: a step along the sign of a running mean."""

    def __init__(self, learning_rate=0.1, decay=0.5, name="sign_descent", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.decay = decay

    def build(self, variables):
        super().build(variables)
        self.means = self.add_optimizer_variables(variables, "mean")

    def update_step(self, gradient, variable, learning_rate):
        mean = self.means[self._get_variable_index(variable)]
        self.assign(mean, self.decay * mean + (1 - self.decay) * gradient)
        self.assign_sub(variable, learning_rate * keras.ops.sign(mean))

    def get_config(self):
        return super().get_config() | {"decay": self.decay}


class HalfSgd(K.SGD):
    """A subclass of an optimizer that has a native form, with another rule."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(0.5 * gradient, variable, learning_rate)


def cosine():
    return K.schedules.CosineDecay(0.0, 10, warmup_target=0.3, warmup_steps=2)


def without_bias_decay(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


NATIVE = {
    "sgd": lambda: K.SGD(0.1),
    "momentum": lambda: K.SGD(0.1, momentum=0.9),
    "nesterov": lambda: K.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: K.Adam(0.05),
    "adam betas": lambda: K.Adam(0.05, beta_1=0.5, beta_2=0.8, epsilon=1e-2),
    "amsgrad": lambda: K.Adam(0.05, amsgrad=True, beta_2=0.5),
    "adamw": lambda: K.AdamW(0.05, weight_decay=0.1),
    "adagrad": lambda: K.Adagrad(0.1, initial_accumulator_value=0.2),
    "rmsprop": lambda: K.RMSprop(0.05),
    "rmsprop momentum": lambda: K.RMSprop(0.05, momentum=0.8),
    "rmsprop centered": lambda: K.RMSprop(0.05, centered=True, epsilon=1e-3),
    "rmsprop both": lambda: K.RMSprop(0.05, momentum=0.8, centered=True, epsilon=1e-3),
    "exponential": lambda: K.SGD(K.schedules.ExponentialDecay(0.2, 2, 0.5, staircase=True)),
    "cosine": lambda: K.Adam(cosine()),
    "weight decay": lambda: K.SGD(0.1, momentum=0.5, weight_decay=0.1),
    "excluded": lambda: without_bias_decay(K.AdamW(0.05, weight_decay=0.2)),
    "clipnorm": lambda: K.SGD(0.1, clipnorm=0.7),
    "clipvalue": lambda: K.Adam(0.1, clipvalue=0.3),
    "global clipnorm": lambda: K.RMSprop(0.1, global_clipnorm=0.8),
    "clipnorm and decay": lambda: K.AdamW(0.1, weight_decay=0.1, clipnorm=0.7),
}
ADAPTED = {
    "adamax": lambda: K.Adamax(0.05),
    "nadam": lambda: K.Nadam(0.05),
    "lion": lambda: K.Lion(0.05),
    "ftrl": lambda: K.Ftrl(0.05, l1_regularization_strength=0.01),
    "adadelta": lambda: K.Adadelta(0.5),
    "nadam schedule": lambda: K.Nadam(cosine()),
    "adamax decay": lambda: without_bias_decay(K.Adamax(0.05, weight_decay=0.2)),
    "lion clipnorm": lambda: K.Lion(0.05, clipnorm=0.5),
    "yogi": lambda: Yogi(0.05),
    "user's own": lambda: SignDescent(0.1, decay=0.7),
    "user's subclass": lambda: HalfSgd(0.1, momentum=0.5),
}


def variables():
    layer = keras.layers.Dense(2, bias_initializer="random_normal")
    layer.build((None, 3))
    return layer.trainable_variables


def gradients(step):
    rng = np.random.default_rng(step)
    return tuple(tf.constant(rng.normal(size=s), tf.float32) for s in ((3, 2), (2,)))


def assert_follows_keras(make, compiled):
    theirs, ours = make(), make()
    keras_variables = variables()
    pure = optimizers.from_keras(ours, keras_variables)
    step = tf.function(pure.step, autograph=False) if compiled else pure.step
    params = tuple(tf.identity(v.value) for v in keras_variables)
    state = pure.init(params)
    for number in range(STEPS):
        theirs.apply(list(gradients(number)), keras_variables)
        state, params = step(state, params, gradients(number))
        assert_close(params, [v.value for v in keras_variables], 1e-6)
    assert int(state.iteration) == STEPS


@pytest.mark.parametrize("name", NATIVE)
def test_native_equals_keras(name):
    assert type(NATIVE[name]()) in optimizers._NATIVE
    assert_follows_keras(NATIVE[name], compiled=False)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapter_equals_keras(name):
    assert type(ADAPTED[name]()) not in optimizers._NATIVE
    assert_follows_keras(ADAPTED[name], compiled=name == "nadam schedule")


def test_yogi_follows_the_paper():
    held = variables()
    pure = optimizers.from_keras(
        Yogi(0.1, beta_1=0.8, beta_2=0.9, epsilon=1e-2, initial_accumulator_value=0.5), held
    )
    params = tuple(tf.identity(v.value) for v in held)
    state, w = pure.init(params), [p.numpy().astype(float) for p in params]
    m, v = [0.0, 0.0], [0.5, 0.5]
    for number in range(STEPS):
        state, params = pure.step(state, params, gradients(number))
        for i, g in enumerate(g.numpy().astype(float) for g in gradients(number)):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = v[i] - 0.1 * g**2 * np.sign(v[i] - g**2)
            w[i] = w[i] - 0.1 * m[i] / (np.sqrt(v[i]) + 1e-2)
        assert_close(params, w, 1e-6)


def test_native_equals_keras_in_a_graph():
    assert_follows_keras(NATIVE["cosine"], compiled=True)


@pytest.mark.parametrize("make", [NATIVE["adam"], ADAPTED["user's own"]])
def test_learning_rate_can_be_set(make):
    fast = make()
    fast.learning_rate = 0.7
    held = variables()
    pure, reference = (optimizers.from_keras(o, held) for o in (make(), fast))
    params = tuple(tf.identity(v.value) for v in held)
    _, actual = pure.step(pure.init(params, tf.constant(0.7)), params, gradients(0))
    _, expected = reference.step(reference.init(params), params, gradients(0))
    assert_close(actual, expected, 1e-6)
    assert reference.learning_rate == pytest.approx(0.7)


@pytest.mark.parametrize("make", [NATIVE["adam"], ADAPTED["nadam"]])
def test_init_starts_afresh(make):
    held = variables()
    before = [v.numpy() for v in held]
    pure = optimizers.from_keras(make(), held)
    params = tuple(tf.identity(v.value) for v in held)
    state, first = pure.step(pure.init(params), params, gradients(0))
    pure.step(state, first, gradients(1))
    _, again = pure.step(pure.init(params), params, gradients(0))
    assert_close(again, first, 0)
    assert_close([v.value for v in held], before, 0)


def test_plain_sgd_is_told_apart():
    held = variables()
    plain = {name for name, make in NATIVE.items() if optimizers.from_keras(make(), held).plain_sgd}
    assert plain == {"sgd"}
    assert optimizers.from_keras("sgd", held).plain_sgd
    assert not optimizers.from_keras(HalfSgd(0.1), held).plain_sgd


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: K.Adam(0.1, use_ema=True), "`use_ema` is not supported"),
        (lambda: K.SGD(0.1, gradient_accumulation_steps=2), "`gradient_accumulation_steps`"),
        (lambda: K.SGD(0.1, loss_scale_factor=8.0), "`loss_scale_factor`"),
        (lambda: K.LossScaleOptimizer(K.SGD(0.1)), "inner optimizer"),
        (lambda: K.SGD(0.0), "learning rate must be positive"),
        (lambda: K.Adam(-0.1), "learning rate must be positive"),
        (lambda: K.Lion(float("nan")), "learning rate must be positive"),
        (lambda: "no such optimizer", "Expected a keras.optimizers.Optimizer"),
        (lambda: 3.0, "Expected a keras.optimizers.Optimizer"),
        (lambda: None, "Expected a keras.optimizers.Optimizer"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message) as error:
        optimizers.from_keras(make(), variables())
    assert "Received: " in str(error.value)


class Restless(K.SGD):
    """Reads through `.value` what it has changed meanwhile."""

    def build(self, variables):
        super().build(variables)
        self.means = self.add_optimizer_variables(variables, "mean")

    def update_step(self, gradient, variable, learning_rate):
        mean = self.means[self._get_variable_index(variable)]
        before = mean.value
        self.assign(mean, gradient)
        self.assign_sub(variable, learning_rate * (gradient - before))


@pytest.mark.parametrize("make", [lambda: Restless(0.1), lambda: K.ScheduleFreeAdamW(0.1)])
def test_optimizers_that_step_otherwise_on_tensors_are_refused(make):
    held = [keras.Variable(np.ones((3, 2), "float32")), keras.Variable(np.ones(2, "float32"))]
    with pytest.raises(ValueError, match="same steps on tensors as on variables. Received: "):
        optimizers.from_keras(make(), held)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Lion", "Nadam"])
@pytest.mark.parametrize(
    "clip", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}]
)
def test_embeddings_rows_and_constraints_step_as_in_keras(name, clip):
    rng = np.random.default_rng(0)
    start = rng.uniform(0.1, 1.0, (4, 3)).astype("float32")
    theirs, untouched = keras.Variable(start), keras.Variable(start)
    theirs.constraint = keras.constraints.NonNeg()
    untouched.constraint = keras.constraints.UnitNorm()
    arguments = clip | ({"momentum": 0.9} if name == "SGD" else {})
    optimizer = getattr(K, name)(0.3, weight_decay=0.1, **arguments)
    pure = optimizers.from_keras(optimizer, [theirs, untouched])
    params = (tf.constant(start), tf.constant(start))
    state = pure.init(params)
    for _ in range(3):
        values = tf.constant(rng.normal(size=(5, 3)).astype("float32"))
        slices = tf.IndexedSlices(values, tf.constant([0, 2, 2, 3, 0]), tf.constant([4, 3]))
        optimizer.apply_gradients([(slices, theirs), (None, untouched)])
        state, params = pure.step(state, params, (slices, None))
    np.testing.assert_allclose(params[0], theirs.numpy(), atol=2e-6)
    assert theirs.numpy().min() == 0
    np.testing.assert_array_equal(params[1], start)
