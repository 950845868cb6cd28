"""Layers whose gradients are the user's own."""

import keras
import tensorflow as tf
from keras import layers as L
from keras import ops

from tests.contract.case import case
from tests.contract.zoo.state import regression


class GradientOfItsOwn(L.Layer):
    """A custom gradient."""

    def call(self, x):
        @tf.custom_gradient
        def backwards(t):
            return t * 2.0, lambda upstream: upstream * 0.5

        return backwards(x)


@case
def custom_gradient():
    return regression(L.Dense(4), GradientOfItsOwn())


class Backwards(L.Layer):
    """A custom gradient that reads a weight when the gradient is taken, after the call."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        @tf.custom_gradient
        def halved(t):
            return t * 2.0, lambda upstream: upstream * 0.5 * ops.convert_to_tensor(self.scale)

        return halved(x) * self.scale * self.gain


@case
def custom_gradient_that_reads_a_weight():
    gentle = lambda: keras.optimizers.SGD(0.05)  # noqa: E731
    return regression(L.Dense(4), Backwards())._replace(steps=3, optimizer=gentle)


class Again(L.Layer):
    """Computes a layer again for its gradient, as a checkpoint that saves memory."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4, "tanh")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return tf.recompute_grad(lambda t: self.dense(t))(x)


@case(refused="differs from Keras")
def layer_computed_again_for_the_gradient():
    return regression(Again())._replace(steps=3)
