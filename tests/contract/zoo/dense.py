"""Dense models: regularizers, constraints, weights of examples and classes."""

import keras
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, either, holes, one_hot, real, share, whole
from tests.contract.witness import Trial

SPARSE = keras.losses.SparseCategoricalCrossentropy
# Padding that repeats the first example must count for something to be seen.
FIRST_LABEL_NOT_0 = 1


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


# Constraints: applied after each local step, and to the mean.


def constrained(constraint, optimizer=None, **options):
    model = chain((6,), L.Dense(4, "tanh", kernel_constraint=constraint, **options), L.Dense(1))
    trial = Trial(model, regression())
    return trial if optimizer is None else trial._replace(optimizer=optimizer)


@case
def constraint_non_negative():
    return constrained("non_neg")


@case
def constraint_non_negative_adam():
    return constrained("non_neg", lambda: keras.optimizers.Adam(0.1))


@case
def constraint_non_negative_nadam():
    return constrained("non_neg", lambda: keras.optimizers.Nadam(0.1))


@case
def constraint_max_norm():
    return constrained(keras.constraints.MaxNorm(0.7))


@case
def constraint_unit_norm_two_rounds():
    return constrained(keras.constraints.UnitNorm())._replace(rounds=2)


@case
def constraint_min_max_norm():
    return constrained(keras.constraints.MinMaxNorm(0.4, 0.6, rate=0.5))


@case
def constraint_of_bias_and_of_the_user():
    return constrained(lambda w: ops.clip(w, -0.2, 0.2), bias_constraint="non_neg")


@case
def constraint_of_embeddings():
    embed = L.Embedding(7, 4, embeddings_constraint="unit_norm")
    model = chain((5,), embed, L.GlobalAveragePooling1D(), L.Dense(1), dtype="int32")
    return Trial(model, clients(whole(7, 5), real(1)))


@case
def constraint_of_normalisation():
    norm = L.BatchNormalization(gamma_constraint="non_neg", beta_constraint="non_neg")
    return Trial(chain((6,), L.Dense(4), norm, L.Dense(1)), regression())


# Sample weights and class weights.


@case
def sample_weights():
    return Trial(two_layers(), clients(real(6), real(1), share()))


@case
def sample_weights_in_a_column():
    return Trial(two_layers(), clients(real(6), real(1), share(1)))


@case
def sample_weights_in_a_column_of_labels():
    return Trial(two_layers(3), clients(real(6), whole(3), share(1)), SPARSE(from_logits=True))


@case
def sample_weights_of_float64_and_zero():
    data = clients(real(6), real(1), holes(share(dtype="float64"), 0.0))
    return Trial(two_layers(), data)


@case
def sample_weights_of_whole_numbers():
    return Trial(two_layers(), clients(real(6), real(1), whole(4, dtype="int64")))


@case
def sample_weights_by_step():
    model = chain((5, 3), L.Dense(4, "tanh"), L.Dense(1))
    return Trial(model, clients(real(5, 3), real(5, 1), share(5)))


@case
def weighted_metrics():
    compiled = {"metrics": ["mae"], "weighted_metrics": ["mse"]}
    return Trial(two_layers(), clients(real(6), real(1), share()), compiled=compiled)


@case
def loss_divided_by_its_weights():
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    return Trial(two_layers(), clients(real(6), real(1), share()), loss)


@case
def class_weights():
    compiled = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    return Trial(
        two_layers(3),
        classes(),
        SPARSE(from_logits=True),
        class_weight={0: 1.0, 1: 3.0, 2: 0.5},
        compiled=compiled,
    )


@case
def class_weights_of_one_hot_labels():
    data = clients(real(6), one_hot(3))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    return Trial(two_layers(3), data, loss, class_weight={0: 2.0, 2: 0.5})


@case
def class_weights_of_negative_labels():
    data = clients(real(6), either(-1, 1, 1))
    return Trial(two_layers(), data, "hinge", class_weight={-1: 5.0, 1: 1.0})


@case
def ignored_class_0():
    data = classes(seed=FIRST_LABEL_NOT_0)
    return Trial(two_layers(3), data, SPARSE(from_logits=True, ignore_class=0))


@case
def ignored_class_minus_1():
    data = clients(real(6), holes(whole(3), -1, first=1))
    return Trial(two_layers(3), data, SPARSE(from_logits=True, ignore_class=-1))


@case
def ignored_class_255():
    data = clients(real(4, 4, 2), holes(whole(3, 4, 4, dtype="uint8"), 255, first=1), share(4, 4))
    model = chain((4, 4, 2), L.Conv2D(3, 3, padding="same"))
    compiled = {"metrics": [keras.metrics.MeanIoU(3, ignore_class=255, sparse_y_pred=False)]}
    return Trial(model, data, SPARSE(from_logits=True, ignore_class=255), compiled=compiled)


# Forms of data.


@case
def targets_without_a_column():
    return Trial(two_layers(), clients(real(6), real()), compiled={"metrics": ["mae"]})


@case
def labels_as_floats_in_a_column():
    data = clients(real(6), whole(3, 1, dtype="float32"))
    return Trial(two_layers(3), data, SPARSE(from_logits=True), compiled={"metrics": ["accuracy"]})


@case
def labels_of_bool():
    data = clients(real(6), either(True, False, 1, dtype="bool"))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Trial(two_layers(), data, loss)


@case
def inputs_of_float64():
    return Trial(two_layers(), clients(real(6, dtype="float64"), real(1, dtype="float64")))


@case
def inputs_of_float16():
    return Trial(two_layers(), clients(real(6, dtype="float16"), real(1)))


@case
def inputs_of_uint8():
    model = chain((6,), L.Rescaling(1 / 255), L.Dense(4), L.Dense(1))
    return Trial(model, clients(whole(256, 6, dtype="uint8"), whole(5, 1, dtype="int64")))


@case
def inputs_of_bool():
    model = chain((6,), L.Dense(4), L.Dense(1), dtype="bool")
    return Trial(model, clients(either(True, False, 6, dtype="bool"), real(1)))


@case
def one_client_larger_than_the_batch_only():
    return Trial(two_layers(), clients(real(6), real(1), sizes=(10,)), steps=3)


@case
def batches_larger_than_the_clients():
    return Trial(two_layers(), regression(), batch_size=16)
