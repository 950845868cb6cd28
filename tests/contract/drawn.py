"""Strategies of random models, drawn as plain data, and the models of what was drawn."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers as L
from keras import ops

from tests.contract.case import clients, either, holes, one_hot, padded, real, share, whole
from tests.contract.witness import Trial

SHAPES = {"vector": (6,), "sequence": (4, 3), "image": (4, 4, 2), "ids": (4,)}
# What differs is of another kind than rounding, which a random model may multiply.
TOLERANCE = 5e-5

REGULARIZERS = {
    "l1": lambda: keras.regularizers.L1(0.02),
    "l2": lambda: keras.regularizers.L2(0.05),
    "mean": lambda: lambda t: 0.1 * ops.mean(ops.square(t)),
}
CONSTRAINTS = {
    "non_neg": lambda: "non_neg",
    "max_norm": lambda: keras.constraints.MaxNorm(0.8),
    "unit_norm": lambda: keras.constraints.UnitNorm(),
    "clip": lambda: lambda w: ops.clip(w, -0.4, 0.4),
}
ACTIVATIONS = {
    "tanh": lambda: "tanh",
    "softplus": lambda: "softplus",
    "gelu": lambda: "gelu",
    "centred": lambda: lambda t: t - ops.mean(t, 0, keepdims=True),
}


class Counting(L.Layer):
    """Counts its training calls and divides by the count."""

    def build(self, shape):
        options = {"initializer": "zeros", "dtype": "int32", "trainable": False}
        self.count = self.add_weight(shape=(), **options)

    def call(self, x, training=False):
        if not training:
            return x
        self.count.assign_add(1)
        return x / ops.cast(self.count, x.dtype)


class Penalised(L.Layer):
    """Adds a loss in its call."""

    def call(self, x):
        self.add_loss(0.05 * ops.mean(ops.square(x)))
        return x


def _options(spec, *names):
    """Keyword arguments of a layer: regularizers and constraints by name."""
    tables = {"regularizer": REGULARIZERS, "constraint": CONSTRAINTS}
    return {k: tables[k.split("_")[-1]][spec[k]]() for k in names if spec.get(k)}


_DENSE = ("kernel_regularizer", "activity_regularizer", "bias_regularizer", "kernel_constraint")
# kind -> (a layer from its specification)
KINDS = {
    "Dense": lambda s: L.Dense(s["units"], ACTIVATIONS[s["act"]](), **_options(s, *_DENSE)),
    "Spectral": lambda s: L.SpectralNormalization(L.Dense(s["units"])),
    "Adapted": lambda s: L.Dense(s["units"], "tanh", lora_rank=2),
    "BatchNorm": lambda s: L.BatchNormalization(momentum=0.8),
    "LayerNorm": lambda s: L.LayerNormalization(),
    "UnitNorm": lambda s: L.UnitNormalization(),
    "PReLU": lambda s: L.PReLU(alpha_initializer="ones"),
    "Dropout": lambda s: L.Dropout(0.0),
    "Softmax": lambda s: L.Softmax(axis=s["axis"]),
    "Penalty": lambda s: L.ActivityRegularization(0.02, 0.02),
    "Penalised": lambda s: Penalised(),
    "Counting": lambda s: Counting(),
    "Lambda": lambda s: L.Lambda(lambda t: t * ops.mean(t, 0, keepdims=True)),
    "Nested": lambda s: keras.Sequential([build_layer(one) for one in s["layers"]]),
    "Conv1D": lambda s: L.Conv1D(s["units"], 2, padding="same", **_options(s, *_DENSE)),
    "Conv2D": lambda s: L.Conv2D(s["units"], 2, **_options(s, *_DENSE)),
    "Depthwise": lambda s: L.DepthwiseConv2D(2),
    "LSTM": lambda s: L.LSTM(s["units"], return_sequences=True, **_options(s, *_DENSE)),
    "GRU": lambda s: L.GRU(s["units"], return_sequences=True, **_options(s, *_DENSE)),
    "Backwards": lambda s: L.Bidirectional(L.SimpleRNN(s["units"], return_sequences=True)),
    "Masking": lambda s: L.Masking(),
    "Embedding": lambda s: L.Embedding(6, s["units"], mask_zero=s["mask"]),
    "Flatten": lambda s: L.Flatten(),
    "Average": lambda s: L.GlobalAveragePooling1D(),
    "Average2D": lambda s: L.GlobalAveragePooling2D(),
    "Last": lambda s: L.GRU(s["units"]),
}
ANYWHERE = ("Dense", "BatchNorm", "LayerNorm", "Dropout", "Penalty", "Penalised", "Counting")
OF_SHAPE = {
    "vector": (
        *ANYWHERE,
        "Spectral",
        "Adapted",
        "UnitNorm",
        "PReLU",
        "Softmax",
        "Lambda",
        "Nested",
    ),
    "sequence": (*ANYWHERE, "Conv1D", "LSTM", "GRU", "Backwards"),
    "image": (*ANYWHERE, "Conv2D", "Depthwise", "PReLU"),
}
TO_VECTOR = {"sequence": ("Flatten", "Average", "Last"), "image": ("Flatten", "Average2D")}


def build_layer(spec):
    """The layer of a specification."""
    return KINDS[spec["kind"]](spec)


# Losses: targets of so many units (and steps), and what may weigh them.
LOSSES = {
    "mse": (lambda: "mse", real),
    "huber": (lambda: keras.losses.Huber(0.7), real),
    "by_example": (lambda: lambda y, p: ops.mean(ops.square(y - p), -1), real),
    "of_the_batch": (lambda: lambda y, p: ops.mean(ops.abs(y - p)), real),
    "hinge": (lambda: "hinge", lambda *s: either(-1, 1, *s)),
    "binary": (
        lambda: keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1),
        lambda *s: either(0, 1, *s),
    ),
}
CLASSES = {
    "sparse": (
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda units, *s: whole(units, *s),
    ),
    "ignoring": (
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
        lambda units, *s: whole(units, *s),
    ),
    "ignoring_others": (
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
        lambda units, *s: holes(whole(units, *s), -1),
    ),
    "one_hot": (
        lambda: keras.losses.CategoricalCrossentropy(from_logits=True),
        lambda units, *s: one_hot(units, *s),
    ),
}
# A large epsilon: Keras's own would multiply rounding where a gradient is near 0.
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.8, weight_decay=0.1),
    "clipped": lambda: keras.optimizers.SGD(0.2, global_clipnorm=0.5),
    "adam": lambda: keras.optimizers.Adam(0.05, epsilon=1e-2),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.2, epsilon=1e-2),
    "nadam": lambda: keras.optimizers.Nadam(0.05, epsilon=1e-2),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.02, epsilon=1e-2),
}
PATHS = {"default": {}, "graph": {"jit_compile": False}, "batched": {"batched": True}}


@st.composite
def layer_specs(draw, shape, most):
    """Layers that take and give examples of this shape."""
    return [draw(_layer(shape)) for _ in range(draw(st.integers(0, most)))]


@st.composite
def _layer(draw, shape):
    kind = draw(st.sampled_from(OF_SHAPE[shape]))
    spec = {"kind": kind}
    if kind in ("Dense", "Spectral", "Adapted", "Conv1D", "Conv2D", "LSTM", "GRU", "Backwards"):
        spec["units"] = draw(st.integers(2, 4))
    if kind == "Dense":
        spec["act"] = draw(st.sampled_from(sorted(ACTIVATIONS)))
    if kind in ("Dense", "Conv1D", "Conv2D", "LSTM", "GRU"):
        some = draw(st.sets(st.sampled_from(_DENSE), max_size=2))
        for name in sorted(some):
            table = CONSTRAINTS if name.endswith("constraint") else REGULARIZERS
            spec[name] = draw(st.sampled_from(sorted(table)))
    if kind == "Softmax":
        spec["axis"] = draw(st.sampled_from([-1, 0]))
    if kind == "Nested":
        spec["layers"] = [{"kind": "Dense", "units": 3, "act": "tanh"}, *draw(_plain())]
    return spec


def _plain():
    kinds = st.sampled_from(["BatchNorm", "Penalty", "Penalised"])
    return st.lists(kinds.map(lambda kind: {"kind": kind}), max_size=1)


@st.composite
def specifications(draw):
    """A model and how it is trained, as nested dictionaries of names and numbers."""
    start = draw(st.sampled_from(sorted(SHAPES)))
    shape, layers = start, []
    if start == "ids":
        layers.append({"kind": "Embedding", "units": 3, "mask": draw(st.booleans())})
        shape = "sequence"
    elif start == "sequence" and draw(st.booleans()):
        layers.append({"kind": "Masking"})
    layers += draw(layer_specs(shape, 2))
    by_step = shape == "sequence" and draw(st.integers(0, 3)) == 0
    if shape != "vector" and not by_step:
        layers.append({"kind": draw(st.sampled_from(TO_VECTOR[shape])), "units": 3})
        layers += draw(layer_specs("vector", 1))
    classes = draw(st.booleans())
    loss = draw(st.sampled_from(sorted(CLASSES if classes else LOSSES)))
    weights = draw(st.sampled_from(["none", "column", "steps" if by_step else "flat"]))
    count = st.integers(1, 9)
    return {
        "input": start,
        "layers": layers,
        "units": 3 if classes else draw(st.integers(1, 2)),
        "by_step": by_step,
        "loss": loss,
        "weights": weights,
        "class_weight": weights == "none" and classes and not by_step and draw(st.booleans()),
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
        "metrics": draw(st.booleans()),
        "batch": draw(st.integers(2, 8)),
        "steps": draw(st.integers(1, 3)),
        "sizes": draw(st.lists(count, min_size=1, max_size=3)),
        "path": draw(st.sampled_from(["default", "default", "default", "graph", "batched"])),
    }


def trial(spec) -> Trial:
    """The model of a specification and its data."""
    shape = SHAPES[spec["input"]]
    ids = spec["input"] == "ids"
    layers = [build_layer(one) for one in spec["layers"]]
    inputs = keras.Input(shape, dtype="int32" if ids else None)
    model = keras.Sequential([inputs, *layers, L.Dense(spec["units"])])
    loss, targets = (LOSSES | CLASSES)[spec["loss"]]
    extra = (shape[0],) if spec["by_step"] else ()
    units = spec["units"]
    classes = spec["loss"] in CLASSES
    y = targets(units, *extra) if classes else targets(*extra, units)
    weights = {"none": (), "flat": (share(),), "column": (share(1),), "steps": (share(*extra),)}
    x = padded(6, 4) if ids else _sometimes_zero(shape) if _masked(spec) else real(*shape)
    data = clients(x, y, *weights[spec["weights"]], sizes=spec["sizes"])
    compiled = {}
    if spec["metrics"]:
        metric = "accuracy" if classes else "mae"
        compiled = {"metrics": [metric], "weighted_metrics": [metric]}
    return Trial(
        model,
        data,
        loss(),
        optimizer=OPTIMIZERS[spec["optimizer"]],
        compiled=compiled,
        class_weight={0: 2.0, 2: 0.5} if spec["class_weight"] else None,
        batch_size=spec["batch"],
        steps=spec["steps"],
        tolerance=TOLERANCE,
    )


def _masked(spec):
    return any(one["kind"] == "Masking" for one in spec["layers"])


def _sometimes_zero(shape):
    def make(rng, n):
        ends = rng.integers(1, shape[0] + 1, (n, 1))
        return real(*shape)(rng, n) * (np.arange(shape[0]) < ends)[..., None].astype("float32")

    return make
