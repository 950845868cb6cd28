"""Several inputs and outputs, shared and nested models, subclasses, preprocessing layers."""

import keras
import numpy as np
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, one_hot, real, share, whole
from tests.contract.witness import Trial

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def two_inputs():
    return keras.Input((3,), name="b_first"), keras.Input((2,), name="a_second")


def joined(a, b):
    return L.Dense(1)(L.Concatenate()([L.Dense(4, "tanh")(a), b]))


@case
def inputs_by_name():
    a, b = two_inputs()
    model = keras.Model({"b_first": a, "a_second": b}, joined(a, b))
    return Trial(model, clients({"a_second": real(2), "b_first": real(3)}, real(1)))


@case
def inputs_by_name_for_a_list():
    a, b = two_inputs()
    model = keras.Model([a, b], joined(a, b))
    return Trial(model, clients({"a_second": real(2), "b_first": real(3)}, real(1)))


@case
def inputs_in_order():
    a, b = two_inputs()
    return Trial(keras.Model([a, b], joined(a, b)), clients((real(3), real(2)), real(1)))


def two_outputs(names=("kind", "age"), wrap=tuple):
    x = keras.Input((5,))
    hidden = L.Dense(6, "tanh")(x)
    outputs = [L.Dense(3, name=names[0])(hidden), L.Dense(1, name=names[1])(hidden)]
    nest = dict(zip(names, outputs, strict=True)) if wrap is dict else outputs
    return keras.Model(x, nest)


LOSSES = {"kind": SPARSE, "age": "mse"}
TARGETS = {"kind": whole(3), "age": real(1)}


@case
def outputs_by_name():
    compiled = {
        "loss_weights": {"kind": 0.3, "age": 2.0},
        "metrics": {"kind": ["accuracy"], "age": ["mae"]},
    }
    data = clients(real(5), TARGETS)
    return Trial(two_outputs(wrap=dict), data, LOSSES, compiled=compiled)


@case
def outputs_in_order_losses_by_name():
    return Trial(two_outputs(), clients(real(5), TARGETS), LOSSES)


@case
def outputs_in_order():
    compiled = {"loss_weights": [0.3, 2.0], "metrics": [["accuracy"], ["mae", "mse"]]}
    data = clients(real(5), (whole(3), real(1)))
    return Trial(two_outputs(), data, [SPARSE, "mse"], compiled=compiled)


@case
def outputs_with_one_loss():
    return Trial(two_outputs(), clients(real(5), (real(3), real(1))), "mae")


@case
def outputs_of_which_one_has_no_loss():
    data = clients(real(5), (whole(3), real(1)))
    decay = lambda: keras.optimizers.SGD(0.3, weight_decay=0.5)  # noqa: E731
    return Trial(two_outputs(), data, [SPARSE, None], optimizer=decay)


@case
def outputs_with_sample_weights_by_name():
    compiled = {"weighted_metrics": {"age": ["mae"]}}
    data = clients(real(5), TARGETS, {"kind": share(), "age": share()})
    return Trial(two_outputs(wrap=dict), data, LOSSES, compiled=compiled)


@case
def outputs_with_sample_weights_by_name_in_a_column():
    data = clients(real(5), TARGETS, {"kind": share(1), "age": share(1)})
    return Trial(two_outputs(wrap=dict), data, LOSSES)


@case
def output_in_a_dictionary():
    x = keras.Input((5,))
    model = keras.Model(x, {"only": L.Dense(1, name="only")(x)})
    return Trial(model, clients(real(5), {"only": real(1)}), {"only": "mse"})


@case
def loss_weight_of_one_output():
    compiled = {"loss_weights": [0.25]}
    return Trial(chain((5,), L.Dense(1)), clients(real(5), real(1)), ["mse"], compiled=compiled)


@case
def shared_layer():
    x = keras.Input((4,))
    shared = L.Dense(4, "tanh", kernel_regularizer=keras.regularizers.L2(0.1))
    return Trial(keras.Model(x, L.Dense(1)(shared(shared(x)))), clients(real(4), real(1)))


@case
def siamese():
    tower = chain((4,), L.Dense(5, "relu"), L.BatchNormalization(), L.Dense(3))
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], ops.sum((tower(a) - tower(b)) ** 2, -1, keepdims=True))
    return Trial(model, clients((real(4), real(4)), real(1)), optimizer=_gentle)


def _gentle():
    return keras.optimizers.SGD(0.03)


@case
def operations_between_layers():
    x = keras.Input((4, 3))
    y = ops.mean(L.Dense(5)(x)[:, 1:], 1) + ops.max(ops.softmax(L.Dense(5)(x), -1), 1)
    model = keras.Model(x, L.Dense(1)(ops.concatenate([y, -y], -1)))
    return Trial(model, clients(real(4, 3), real(1)))


class Residual(keras.Model):
    """A subclassed model that reads `training`."""

    def __init__(self):
        super().__init__()
        self.first, self.last = L.Dense(5, "tanh"), L.Dense(1)
        self.norm = L.BatchNormalization()

    def call(self, x, training=None):
        hidden = self.norm(self.first(x), training=training)
        return self.last(x + hidden * (2.0 if training else 1.0))


class Plain(keras.Model):
    """A subclassed model that does not take `training`."""

    def __init__(self):
        super().__init__()
        self.blocks = [L.Dense(5, "tanh", activity_regularizer="l2"), L.Dropout(0.0)]
        self.heads = {"one": L.Dense(1)}

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["one"](x)


def called(model, *shape):
    model(np.zeros((1, *shape), np.float32))
    return model


@case
def subclass_with_training():
    return Trial(called(Residual(), 5), clients(real(5), real(1)))


@case
def subclass_without_training():
    return Trial(called(Plain(), 5), clients(real(5), real(1)))


@case
def sequential_built_late():
    model = keras.Sequential([L.Dense(4, "tanh"), L.Dense(1)])
    model.build((None, 5))
    return Trial(model, clients(real(5), real(1)))


@case
def preprocessing():
    x = {
        "size": keras.Input((2,), name="size"),
        "kind": keras.Input((1,), dtype="int64", name="kind"),
        "code": keras.Input((1,), dtype="int64", name="code"),
    }
    norm = L.Normalization()
    norm.adapt(np.random.default_rng(1).normal(3, 2, (50, 2)).astype("float32"))
    bins, lookup = L.Discretization([-1.0, 0.0, 1.0]), L.IntegerLookup(vocabulary=[3, 5, 7])
    parts = [
        norm(x["size"]),
        L.CategoryEncoding(9, output_mode="multi_hot")(bins(x["size"])),
        L.CategoryEncoding(5, output_mode="one_hot")(lookup(x["kind"])),
        L.Flatten()(L.Embedding(4, 2)(L.Hashing(4)(x["code"]))),
    ]
    model = keras.Model(x, L.Dense(1)(L.Concatenate()(parts)))
    data = {
        "size": real(2),
        "kind": whole(9, 1, dtype="int64"),
        "code": whole(2**45, 1, dtype="int64"),
    }
    return Trial(model, clients(data, real(1)), optimizer=lambda: keras.optimizers.SGD(0.1))


@case
def saved_and_loaded():
    import os
    import tempfile

    model = chain((5,), L.Dense(4, "tanh"), L.BatchNormalization(), L.Dense(3, "softmax"))
    with tempfile.TemporaryDirectory() as folder:
        model.save(os.path.join(folder, "m.keras"))
        model = keras.models.load_model(os.path.join(folder, "m.keras"))
    return Trial(model, clients(real(5), one_hot(3)), "categorical_crossentropy")
