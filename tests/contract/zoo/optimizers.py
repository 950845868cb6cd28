"""Optimizers of the clients: every class that Keras has, and their options."""

import keras
from keras import layers as L
from keras import optimizers as of

from tests.contract.case import case, chain, clients, real, whole
from tests.contract.witness import Trial

# Those whose step divides by the root of a gradient's square multiply its rounding where that is
# near 0; their rates keep the movement large.
OPTIMIZERS = {
    "momentum": lambda: of.SGD(0.1, momentum=0.9, nesterov=True),
    "decay": lambda: of.SGD(0.1, weight_decay=0.3),
    "clipnorm": lambda: of.SGD(0.3, clipnorm=0.5),
    "clipvalue": lambda: of.SGD(0.3, clipvalue=0.1),
    "global_clipnorm": lambda: of.SGD(0.3, global_clipnorm=0.5),
    "adam": lambda: of.Adam(0.1),
    "amsgrad": lambda: of.Adam(0.1, amsgrad=True, clipnorm=0.5),
    "adamw": lambda: of.AdamW(0.1, weight_decay=0.1),
    "adagrad": lambda: of.Adagrad(0.3),
    "rmsprop": lambda: of.RMSprop(0.1, momentum=0.5),
    "rmsprop_centered": lambda: of.RMSprop(0.1, centered=True),
    "adadelta": lambda: of.Adadelta(300.0),
    "adamax": lambda: of.Adamax(0.1),
    "nadam": lambda: of.Nadam(0.1),
    "ftrl": lambda: of.Ftrl(0.3, l1_regularization_strength=0.01),
    "lion": lambda: of.Lion(0.03),
    "adafactor": lambda: of.Adafactor(0.3),
    "lamb": lambda: of.Lamb(0.1),
    "muon": lambda: of.Muon(0.1),
    "exponential_decay": lambda: of.SGD(of.schedules.ExponentialDecay(0.3, 1, 0.5)),
    "cosine_with_warmup": lambda: of.Adam(
        of.schedules.CosineDecay(0.05, 4, warmup_target=0.2, warmup_steps=2)
    ),
    "steps": lambda: of.Adagrad(of.schedules.PiecewiseConstantDecay([1, 2], [0.3, 0.1, 0.5])),
    "callable_rate": lambda: of.SGD(lambda: 0.25),
    "no_decay_of_biases": lambda: _without_biases(of.AdamW(0.1, weight_decay=0.3)),
    "of_the_user": lambda: HalfStep(0.3),
}


def _without_biases(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


class HalfStep(keras.optimizers.SGD):
    """The user's own: every second step is half as long."""

    def update_step(self, gradient, variable, learning_rate):
        half = keras.ops.cast(self.iterations % 2, learning_rate.dtype) * 0.5
        super().update_step(gradient, variable, learning_rate * (1 - half))


def _model():
    return chain((6,), L.Dense(4, "tanh"), L.Dense(3))


def _trial(optimizer, **options):
    def make():
        return Trial(_model(), clients(real(6), real(3)), optimizer=optimizer, **options)

    return make


for key, optimizer in OPTIMIZERS.items():
    make = _trial(optimizer, steps=4, rounds=2, tolerance=1e-5 if key != "muon" else 1e-3)
    case(name=f"optimizer_{key}")(make)


def _decayed(optimizer):
    """A head that has no gradient: Keras leaves it alone, weight decay and constraints included."""

    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.unused = L.Dense(2), L.Dense(2, kernel_constraint="non_neg")
            self.unused.build((None, 6))
            self.used.build((None, 6))

        def call(self, x):
            return self.used(x)

    def make():
        model = Unused()
        model.build((None, 6))
        return Trial(model, clients(real(6), real(2)), optimizer=optimizer)

    return make


UNUSED = {
    "sgd": lambda: of.SGD(0.1, weight_decay=0.5),
    "adamw": lambda: of.AdamW(0.1, weight_decay=0.5),
    "lion": lambda: of.Lion(0.1, weight_decay=0.5),
    "nadam": lambda: of.Nadam(0.1, weight_decay=0.5),
    "muon": lambda: of.Muon(0.1, weight_decay=0.5),
}
for key, optimizer in UNUSED.items():
    case(name=f"weights_without_gradient_{key}")(_decayed(optimizer))


# The gradient of an embedding is of the rows that a batch has, one for each time it has them;
# Keras's optimizers and clipping work on those as they are.
OF_ROWS = {
    "momentum": lambda: of.SGD(0.3, momentum=0.9),
    "adam": lambda: of.Adam(0.1),
    "adagrad": lambda: of.Adagrad(0.3),
    "rmsprop": lambda: of.RMSprop(0.1),
    "nadam": lambda: of.Nadam(0.1),
    "lion": lambda: of.Lion(0.1),
    "adamax": lambda: of.Adamax(0.1),
    "ftrl": lambda: of.Ftrl(0.3),
    "adadelta": lambda: of.Adadelta(300.0),
    "clipnorm": lambda: of.SGD(0.3, clipnorm=0.1),
    "clipvalue": lambda: of.SGD(0.3, clipvalue=0.03),
    "global_clipnorm": lambda: of.SGD(0.3, global_clipnorm=0.1),
    "decay": lambda: of.SGD(0.3, weight_decay=0.3),
}


def _of_rows(optimizer):
    def make():
        embed = L.Embedding(6, 3)
        model = chain((5,), embed, L.GlobalAveragePooling1D(), L.Dense(2), dtype="int32")
        return Trial(
            model, clients(whole(6, 5), real(2)), optimizer=optimizer, steps=3, tolerance=1e-5
        )

    return make


for key, optimizer in OF_ROWS.items():
    case(name=f"embedding_by_{key}")(_of_rows(optimizer))


def _refused(name, pattern, optimizer):
    case(refused=pattern, name=f"optimizer_{name}")(_trial(optimizer))


# On TensorFlow, Keras's own reads its momentum again after having changed it.
_refused("schedule_free", "same steps", lambda: of.ScheduleFreeAdamW(0.1))
_refused("average", "use_ema", lambda: of.SGD(0.1, use_ema=True))
_refused("accumulation", "accumulation", lambda: of.SGD(0.1, gradient_accumulation_steps=2))
_refused("loss_scale", "loss_scale|LossScale", lambda: of.LossScaleOptimizer(of.SGD(0.1)))
_refused("loss_scale_factor", "loss_scale_factor", lambda: of.SGD(0.1, loss_scale_factor=2.0))
_refused(
    "of_several",
    "MultiOptimizer",
    lambda: of.MultiOptimizer(of.OptimizerMap(of.SGD(0.1), {".*bias": of.Adam(0.1)})),
)
