"""What a call leaves behind: weights, statistics, counters, losses; what Keras cannot see."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, real, share, whole
from tests.contract.witness import Trial


def regression(*layers):
    return Trial(chain((6,), *layers, L.Dense(1)), clients(real(6), real(1)))


@case
def spectral_normalisation():
    return regression(L.SpectralNormalization(L.Dense(4)))


class Clipped(L.Layer):
    """Assigns its trainable weight in a training call."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x, training=False):
        if training:
            self.scale.assign(ops.clip(self.scale, 0.9, 1.05))
        return x * self.scale


@case
def trainable_weight_assigned_in_a_call():
    return regression(L.Dense(4), Clipped())


class Average(L.Layer):
    """Keeps a moving average of its input, and uses it."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.7 * self.mean + 0.3 * ops.mean(x, 0))
        return x - self.mean


@case
def statistic_assigned_in_a_call():
    return regression(L.Dense(4), Average())._replace(rounds=2)


class Counter(L.Layer):
    """Counts its training calls, and uses the count."""

    def __init__(self, dtype_of_it="int64"):
        super().__init__()
        self.dtype_of_it = dtype_of_it

    def build(self, shape):
        options = {"initializer": "zeros", "dtype": self.dtype_of_it, "trainable": False}
        self.count = self.add_weight(shape=(), **options)

    def call(self, x, training=False):
        if not training:
            return x
        self.count.assign(self.count + 1)
        return x / (1.0 + ops.cast(self.count, x.dtype))


@case
def counter_of_calls():
    return regression(L.Dense(4), Counter())._replace(rounds=2)


@case
def counter_of_calls_in_floats():
    return regression(L.Dense(4), Counter("float32"))


class Flag(L.Layer):
    """A boolean that the first training call sets."""

    def build(self, shape):
        options = {"initializer": "zeros", "dtype": "bool", "trainable": False}
        self.seen = self.add_weight(shape=(), **options)

    def call(self, x, training=False):
        if not training:
            return x
        x = ops.where(self.seen, x, 2.0 * x)
        self.seen.assign(True)
        return x


@case
def flag_of_the_first_call():
    return regression(L.Dense(4), Flag())._replace(rounds=2)


class Quantised(L.Layer):
    """Vector quantisation whose codes move by averages, as in VQ-VAE."""

    def build(self, shape):
        self.codes = self.add_weight(shape=(5, shape[-1]), trainable=False)

    def call(self, x, training=False):
        apart = ops.sum((x[:, None] - self.codes[None]) ** 2, -1)
        chosen = ops.one_hot(ops.argmin(apart, -1), 5)
        found = chosen @ self.codes
        self.add_loss(0.25 * ops.mean((ops.stop_gradient(found) - x) ** 2))
        if training:
            towards = ops.transpose(chosen) @ x - ops.sum(chosen, 0)[:, None] * self.codes
            self.codes.assign_add(0.1 * towards)
        return x + ops.stop_gradient(found - x)


@case
def vector_quantisation():
    return regression(L.Dense(3), Quantised())


class Penalty(L.Layer):
    """Adds a loss in its call, in training only."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x, training=False):
        self.add_loss(0.1 * ops.mean(ops.square(x)) * self.scale)
        if training:
            self.add_loss(0.05 * ops.sum(ops.abs(x), -1))
        return x * self.scale


@case
def loss_added_in_a_call():
    return regression(L.Dense(4), Penalty())


@case(refused="compiled")
def trainable_changed_after_compile():
    trial = regression(L.Dense(4, "tanh"))
    return trial._replace(after_compile=lambda model: setattr(model.layers[0], "trainable", False))


@case(refused="compiled")
def trainable_again_after_compile():
    trial = regression(L.Dense(4, "tanh"))
    trial.model.layers[0].trainable = False
    return trial._replace(after_compile=lambda model: setattr(model.layers[0], "trainable", True))


@case
def weights_set_after_compile():
    def half(model):
        model.set_weights([w / 2 for w in model.get_weights()])

    return regression(L.Dense(4, "tanh"), L.BatchNormalization())._replace(after_compile=half)


class Overwritten(L.Layer):
    """A weight whose gradient is its next value, as the scales of float8 are."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", overwrite_with_gradient=True)

    def call(self, x):
        return x * self.scale


@case(refused="overwrites")
def weight_overwritten_with_its_gradient():
    return regression(L.Dense(4), Overwritten())


class Inside(L.Layer):
    """Calls a layer with statistics within a function of TensorFlow's."""

    def __init__(self):
        super().__init__()
        self.norm = L.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=False):
        return tf.function(lambda t: self.norm(t, training=training))(x)


@case(refused="loops|inside")
def statistics_within_a_tf_function():
    return regression(L.Dense(4), Inside())


class Outer:
    """A plain Python object that Keras does not look into."""


class Hidden(L.Layer):
    """A layer within a plain object, whose weights Keras neither lists nor trains."""

    def __init__(self):
        super().__init__()
        self.box = Outer()
        self.box.dense = L.Dense(4, "tanh")

    def call(self, x):
        return self.box.dense(x)


@case
def weights_in_a_plain_object():
    """Keras does not train them; nor does tffed."""
    model = chain((6,), Hidden(), L.Dense(1))
    model(np.zeros((1, 6), "float32"))
    return Trial(model, clients(real(6), real(1)))


class HiddenVariable(L.Layer):
    """A TensorFlow variable that is assigned in a call: Keras does not list it."""

    def __init__(self):
        super().__init__()
        self.seen = tf.Variable(0.0, trainable=False)

    def call(self, x, training=False):
        if training:
            self.seen.assign_add(1.0)
        return x / (1.0 + self.seen)


@case(refused="tf.Variable|Keras does not see|not tracked|hidden")
def tf_variable_assigned_in_a_call():
    return regression(HiddenVariable())


@case
def weights_in_lists_and_dictionaries():
    class Boxes(L.Layer):
        def __init__(self):
            super().__init__()
            self.boxes = {"a": [L.Dense(4, "tanh")], "b": (L.BatchNormalization(),)}

        def build(self, shape):
            self.boxes["a"][0].build(shape)
            self.boxes["b"][0].build((None, 4))

        def call(self, x, training=False):
            return self.boxes["b"][0](self.boxes["a"][0](x), training=training)

    return regression(Boxes())


@case
def weights_shared_with_another_model():
    x = keras.Input((6,))
    base = keras.Model(x, L.BatchNormalization()(L.Dense(4, "tanh")(x)))
    model = keras.Model(base.inputs, L.Dense(1)(base.output))
    return Trial(model, clients(real(6), real(1), share()))


@case
def scalar_weight():
    class Temperature(L.Layer):
        def build(self, shape):
            self.t = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            return x * self.t

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(chain((6,), L.Dense(3), Temperature()), clients(real(6), whole(3)), loss)
