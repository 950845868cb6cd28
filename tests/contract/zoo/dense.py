"""Dense models: regularizers, activations, normalisation, layers frozen or in low precision."""

import keras
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, real, whole
from tests.contract.witness import Trial

SPARSE = keras.losses.SparseCategoricalCrossentropy


def regression():
    return clients(real(6), real(1))


def classes(seed=0):
    return clients(real(6), whole(3), seed=seed)


def two_layers(units=1, **options):
    return chain((6,), L.Dense(4, "tanh", **options), L.Dense(units))


@case
def dense():
    return Trial(two_layers(), regression(), compiled={"metrics": ["mae"]})


@case
def classifier_with_accuracy():
    compiled = {"metrics": ["accuracy"]}
    return Trial(two_layers(3), classes(), SPARSE(from_logits=True), compiled=compiled)


@case
def kernel_and_bias_regularizers():
    hidden = two_layers(
        kernel_regularizer=keras.regularizers.L1L2(0.01, 0.1),
        bias_regularizer=keras.regularizers.L2(0.1),
    )
    return Trial(hidden, regression())


@case
def orthogonal_regularizer():
    regularizer = keras.regularizers.OrthogonalRegularizer(0.1)
    return Trial(two_layers(kernel_regularizer=regularizer), regression())


@case
def activity_regularizer():
    return Trial(two_layers(activity_regularizer=keras.regularizers.L2(0.1)), regression())


@case
def activity_regularizer_in_nested_models():
    inner = chain((6,), L.Dense(4, "tanh", activity_regularizer=keras.regularizers.L1(0.05)))
    x = keras.Input((6,))
    middle = keras.Model(x, inner(x) * 2.0)
    return Trial(chain((6,), middle, L.Dense(1)), regression())


@case
def activity_regularizer_of_a_layer_used_twice():
    shared = L.Dense(4, activity_regularizer=keras.regularizers.L2(0.1))
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model([a, b], L.Dense(1)(L.Subtract()([shared(a), shared(b)])))
    return Trial(model, clients((real(6), real(6)), real(1)))


@case
def activity_regularizer_set_after_building():
    model = two_layers()
    model.layers[0].activity_regularizer = keras.regularizers.L2(0.1)
    return Trial(model, regression())


@case
def activity_regularizer_of_the_user():
    return Trial(two_layers(activity_regularizer=lambda t: 0.1 * ops.mean(t**2)), regression())


@case
def activity_regularization_layer():
    model = chain((6,), L.Dense(4), L.ActivityRegularization(0.01, 0.1), L.Dense(1))
    return Trial(model, regression())


@case
def activation_across_the_batch():
    model = chain((6,), L.Dense(4, lambda t: t - ops.mean(t, 0, keepdims=True)), L.Dense(1))
    return Trial(model, regression())


@case
def softmax_across_the_batch():
    return Trial(chain((6,), L.Dense(4), L.Softmax(axis=0), L.Dense(1)), regression())


@case
def lambda_layer():
    return Trial(chain((6,), L.Dense(4), L.Lambda(lambda t: t**2), L.Dense(1)), regression())


@case
def activation_layers():
    layers = [L.PReLU(), L.LeakyReLU(), L.ELU(), L.Activation("gelu"), L.ReLU(6.0)]
    dense = [part for layer in layers for part in (L.Dense(5), layer)]
    return Trial(chain((6,), *dense, L.Softmax(), L.Dense(1)), regression())


@case
def normalisation_layers():
    layers = [
        L.LayerNormalization(),
        L.RMSNormalization(),
        L.GroupNormalization(2),
        L.UnitNormalization(),
    ]
    dense = [part for layer in layers for part in (L.Dense(4), layer)]
    return Trial(chain((6,), *dense, L.Dense(1)), regression(), tolerance=5e-6)


@case
def low_rank_adapters():
    model = chain((6,), L.Dense(4, "tanh"), L.Dense(1))
    model.layers[0].enable_lora(2)
    return Trial(model, regression())


@case(refused="overwrites")
def float8():
    model = two_layers(units=4)
    model.layers[0].quantize("float8")
    return Trial(model, clients(real(6), real(4)))


@case
def int8_layer():
    model = chain((6,), L.Dense(4, "tanh"), L.Dense(1))
    model.layers[0].quantize("int8")
    return Trial(model, regression())


@case
def partly_frozen():
    """A layer, and one weight of another."""
    model = chain((6,), L.Dense(4, "tanh", kernel_regularizer="l2"), L.Dense(3), L.Dense(1))
    model.layers[0].trainable = False
    model.layers[1].kernel.trainable = False
    return Trial(model, regression())


class Transposed(L.Layer):
    """Multiplies by the transposed kernel of another layer, which it holds, too."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, x):
        return x @ ops.transpose(self.other.kernel)


@case
def one_kernel_in_two_layers():
    first = L.Dense(4, "tanh", kernel_regularizer="l2")
    return Trial(chain((6,), first, Transposed(first), L.Dense(1)), regression())
