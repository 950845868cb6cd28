"""Models whose loss or metrics are their own."""

import keras
import numpy as np
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, real
from tests.contract.witness import Trial
from tests.contract.zoo.state import Penalty, regression


class Replaced(keras.Model):
    """A model whose loss is its own."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(1, kernel_regularizer="l2")

    def call(self, x):
        return self.dense(x)


class LossWithTraining(Replaced):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        return ops.mean(ops.abs(y - y_pred)) * (2.0 if training else 1.0) + sum(self.losses)


class LossWithoutTraining(Replaced):
    def compute_loss(self, x, y, y_pred, sample_weight):
        return ops.mean(ops.abs(y - y_pred)) + 0.1 * ops.mean(x)


class LossOfKeywords(Replaced):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 3.0 * super().compute_loss(x, y, y_pred, sample_weight, training)


class LossAcrossTheBatch(keras.Model):
    """A functional model's loss that weighs examples by their rank in the batch."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        errors = ops.mean(ops.square(y - y_pred), -1)
        return ops.mean(errors * ops.stop_gradient(ops.softmax(errors, 0)))


def _own(kind):
    def make():
        model = kind()
        model(np.zeros((1, 6), "float32"))
        return Trial(model, clients(real(6), real(1)))

    return make


case(name="compute_loss_with_training")(_own(LossWithTraining))
case(name="compute_loss_without_training")(_own(LossWithoutTraining))
case(name="compute_loss_with_defaults")(_own(LossOfKeywords))


@case
def compute_loss_across_the_batch():
    x = keras.Input((6,))
    return Trial(LossAcrossTheBatch(x, L.Dense(1)(x)), clients(real(6), real(1)))


class OwnMetrics(Replaced):
    """Keeps metrics of its own."""

    def __init__(self):
        super().__init__()
        self.bias = keras.metrics.Mean(name="bias_of_it")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.bias.update_state(y_pred - y, sample_weight=sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)


@case(refused="gradient")
def loss_without_a_gradient():
    def loss(y, p):
        return ops.mean(ops.cast(ops.argmax(p, -1), "float32"))

    return Trial(chain((6,), L.Dense(3)), clients(real(6), real(3)), loss)


@case(refused="loss")
def losses_of_calls_alone():
    trial = regression(L.Dense(4), Penalty())
    return trial._replace(loss=None)


@case
def compute_metrics_of_the_model():
    model = OwnMetrics()
    model(np.zeros((1, 6), "float32"))
    return Trial(model, clients(real(6), real(1)), compiled={"metrics": ["mae"]})
