"""Dense models: constraints, weights of examples and classes, forms of data."""

import keras
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, either, holes, one_hot, real, share, whole
from tests.contract.witness import Trial
from tests.contract.zoo.dense import SPARSE, classes, regression, two_layers

# Padding that repeats the first example must count for something to be seen.
FIRST_LABEL_NOT_0 = 1

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


@case(refused="divides by the sum of the sample weights")
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
