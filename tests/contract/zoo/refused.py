"""What cannot be as in Keras and is refused by name, and what precision the numbers have."""

import keras
from keras import layers as L

from tests.contract.case import case, chain, clients, holes, real, share, whole
from tests.contract.witness import Trial


class OwnStep(keras.Model):
    """A model with a training step of its own."""

    def train_step(self, data):
        return {"loss": 0.0}


class OwnTest(keras.Model):
    """A model with a test step of its own."""

    def test_step(self, data):
        return {"loss": 0.0}


class OwnFit(keras.Model):
    """A model that makes its training function itself."""

    def make_train_function(self, force=False):
        self.train_function = None


def _of(kind):
    def make():
        x = keras.Input((6,))
        return Trial(kind(x, L.Dense(1)(x)), clients(real(6), real(1)))

    return make


case(name="train_step_of_the_model", refused="train_step")(_of(OwnStep))
case(name="test_step_of_the_model", refused="test_step")(_of(OwnTest))
case(name="train_function_of_the_model", refused="make_train_function")(_of(OwnFit))


@case(refused="train_step")
def train_step_of_a_parent_class():
    class Child(OwnStep):
        pass

    return _of(Child)()


@case(refused="train_step")
def train_step_of_the_object():
    trial = _of(keras.Model)()
    trial.model.train_step = lambda data: {"loss": 0.0}
    return trial


def sequence(batch, **options):
    model = keras.Sequential(
        [keras.Input(batch_shape=(batch, 5, 2)), L.LSTM(3, **options), L.Dense(1)]
    )
    return Trial(model, clients(real(5, 2), real(1), sizes=(8, 4)))


@case(refused="stateful")
def stateful_recurrent_layer():
    return sequence(4, stateful=True)


@case(refused="batch")
def batch_size_of_the_input_fixed():
    return sequence(4)


@case(refused="Embedding|rows")
def ids_beyond_the_embedding():
    model = chain((5,), L.Embedding(9, 4), L.Flatten(), L.Dense(1), dtype="int32")
    return Trial(model, clients(holes(whole(9, 5), 12), real(1)))


@case(refused="Embedding|rows")
def negative_ids():
    model = chain((5,), L.Embedding(9, 4), L.Flatten(), L.Dense(1), dtype="int32")
    return Trial(model, clients(holes(whole(9, 5), -1), real(1)))


@case(refused="labels")
def labels_beyond_the_outputs():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(chain((6,), L.Dense(3)), clients(real(6), holes(whole(3), 3)), loss)


@case(refused="reduction")
def loss_that_is_summed():
    loss = keras.losses.MeanSquaredError(reduction="sum")
    return Trial(chain((6,), L.Dense(1)), clients(real(6), real(1)), loss)


@case(refused="trainable")
def nothing_to_train():
    model = chain((6,), L.Dense(1))
    model.trainable = False
    return Trial(model, clients(real(6), real(1)))


# Precision. Sums of half precision are rounded to 11 bits (bfloat16: 8) at each addition, in an
# order that compilation may change.


def of_precision(policy, *extra, **options):
    hidden = L.Dense(4, "tanh", dtype=policy)
    model = chain((6,), hidden, *extra, L.Dense(1, dtype=policy))
    return Trial(model, clients(real(6), real(1)), **options)


def of_the_whole(policy, y=None, **options):
    """A model whose own policy is the given one, as `Model.compile` reads it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = chain((6,), L.Dense(4, "tanh"), L.Dense(1))
    finally:
        keras.config.set_dtype_policy(before)
    return Trial(model, clients(real(6), y or real(1)), **options)


@case
def mixed_float16():
    return of_the_whole("mixed_float16", tolerance=3e-3)


@case
def mixed_float16_that_overflows():
    """2^15 times the loss is more than float16 holds: Keras skips the step and halves the scale."""
    adam = lambda: keras.optimizers.Adam(0.1)  # noqa: E731
    y = real(1, scale=10.0, shift=2000.0)
    return of_the_whole("mixed_float16", y, optimizer=adam, steps=14, tolerance=1e-2)


@case
def mixed_float16_in_one_layer():
    return of_precision("mixed_float16", tolerance=3e-3)


@case
def mixed_bfloat16():
    return of_the_whole("mixed_bfloat16", tolerance=3e-2)


@case
def weights_of_float16():
    return of_precision("float16", tolerance=3e-3)


@case
def weights_of_bfloat16():
    return of_precision("bfloat16", tolerance=3e-2)


@case
def weights_of_float64():
    return of_precision("float64")


@case
def weights_of_float64_with_statistics():
    return of_precision("float64", L.BatchNormalization(dtype="float64"))


@case
def several_precisions():
    x = keras.Input((6,))
    half = L.Dense(4, dtype="mixed_float16")(x)
    whole_ = L.Dense(4, dtype="float32", activity_regularizer="l2")(half)
    model = keras.Model(x, L.Dense(1, dtype="float32")(whole_))
    return Trial(model, clients(real(6), real(1), share()), tolerance=3e-3)
