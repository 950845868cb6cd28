"""What tffed reads off a Keras model, and what it checks first."""

import keras
import numpy as np
import tensorflow as tf

from tffed import tree
from tffed.arguments import plain, real

BATCH_NORM_POLICIES = ("average", "local", "freeze")
_MEAN_REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_FLOAT16_LOSS_SCALE = 1024.0


def check(model, batch_norm):
    """Checks that a model can be trained federatedly; the errors are those of `from_keras`."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "tffed compiles its rounds with TensorFlow and needs Keras's TensorFlow backend. "
            f"Received: keras.backend.backend()={keras.backend.backend()!r}. Set "
            'KERAS_BACKEND="tensorflow" in the environment before Keras is first imported.'
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a keras.Model (Keras 3). Received: model={model!r}")
    if not model.built or not model.variables:
        raise ValueError(
            "Expected a built model: its weights must exist before the first round. Received: "
            f"model={model.name!r}, which is not built. Give it a keras.Input, or call "
            "`model.build(input_shape)` or the model itself on one batch."
        )
    if batch_norm not in BATCH_NORM_POLICIES:
        raise ValueError(
            f"`batch_norm` must be one of {BATCH_NORM_POLICIES}. "
            f"Received: batch_norm={batch_norm!r}"
        )


def compile_model(model, loss, metrics, loss_weights, weighted_metrics, optimizer):
    """Compiles the model with the loss and metrics, and checks that the loss averages."""
    if loss is not None:
        model.compile(
            optimizer=optimizer or getattr(model, "optimizer", None) or "sgd",
            loss=loss,
            metrics=metrics,
            loss_weights=loss_weights,
            weighted_metrics=weighted_metrics,
            auto_scale_loss=False,
        )
    elif not model.compiled:
        raise ValueError(
            "Expected a loss, or a model that is already compiled with one. Received: loss=None. "
            "Pass e.g. loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
    elif optimizer is not None:
        model.optimizer = optimizer
    for one in tf.nest.flatten(model.loss):
        reduction = getattr(one, "reduction", "sum_over_batch_size")
        if reduction not in _MEAN_REDUCTIONS:
            raise ValueError(
                "The loss must average over the examples of a batch, so that clients of different "
                f"sizes weigh as they should: reduction must be one of {_MEAN_REDUCTIONS}. "
                f"Received: reduction={reduction!r} in {type(one).__name__}. Build the loss with "
                'reduction="sum_over_batch_size".'
            )


def metrics_builder(model):
    """A function that creates the metrics' variables, which Keras does at their first use.

    It runs once, outside of the graph being traced, on one example of zeros.
    """
    built = False

    def build(x, y, sample_weight):
        nonlocal built
        if built:
            return
        with tf.init_scope():
            x, y, sample_weight = tree.map(_one_zero, (x, y, sample_weight))
            y_pred = model(x, training=False)
            model.compute_loss(x, y, y_pred, sample_weight, training=False)
            model.compute_metrics(x, y, y_pred, sample_weight)
            model.reset_metrics()
            for variable in model.metrics_variables:
                if keras.ops.any(keras.ops.convert_to_numpy(variable) != 0):
                    raise ValueError(
                        "The state of a metric must begin at zero, so that it adds up over "
                        f"clients. Received: {variable.path}. Evaluate that metric yourself."
                    )
        built = True

    return build


def _one_zero(leaf):
    if leaf is None:  # no sample weights
        return None
    return tf.zeros([size or 1 for size in (1, *leaf.shape[1:])], leaf.dtype)


def layers(model):
    """All layers of a model, nested ones and itself included."""
    return model._flatten_layers(include_self=True, recursive=True)


def statistics_of(model):
    """Non-trainable weights of layers that are not frozen: what a training call may update.

    Counters and other integers are no statistics that could be averaged: they stay as they are.
    So do weights that are frozen one by one, such as the kernels under low-rank adapters.
    """
    frozen = {id(v) for layer in layers(model) if not layer.trainable for v in layer.variables}
    frozen |= {id(v) for layer in layers(model) for v in layer._trainable_variables}
    weights = [v for v in model.non_trainable_weights if id(v) not in frozen]
    return [v for v in weights if tf.as_dtype(v.dtype).is_floating]


def seeds_of(model):
    """The states of seed generators (dropout and its like)."""
    seeds = {id(g.state) for layer in layers(model) for g in layer._seed_generators}
    return [v for v in model.non_trainable_variables if id(v) in seeds]


def loss_scale(model):
    """The factor that keeps the gradients of a float16 model from vanishing."""
    half = any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers(model))
    return _FLOAT16_LOSS_SCALE if half else 1.0


def class_weigher(class_weight):
    """A function from a batch to (x, y, sample_weight) with the class weights multiplied in.

    As in Keras, labels are rounded, may be negative, and those that are no key count as 1.

    Raises:
        ValueError: A key is no whole number, or a weight not finite.
    """

    def unpack(batch):
        return (*batch, None) if len(batch) == 2 else tuple(batch)

    if class_weight is None:
        return unpack
    classes, factors = _class_table(class_weight)

    def weigh(batch):
        x, y, sample_weight = unpack(batch)
        if tf.nest.is_nested(y) or y.shape.rank > 2:
            raise ValueError(
                "`class_weight` needs one class for each example: labels of shape [n], or one-hot "
                f"of shape [n, classes]. Received: y={tree.map(lambda a: a.shape, y)}. Give "
                "sample weights in the clients' data instead."
            )
        labels = tf.argmax(y, -1) if y.shape.rank > 1 and y.shape[-1] != 1 else y
        labels = tf.reshape(tf.cast(keras.ops.round(labels), tf.int32), [-1])
        matches = labels[:, None] == classes
        found = tf.reduce_sum(tf.where(matches, factors, 0.0), -1)
        weights = tf.where(tf.reduce_any(matches, -1), found, 1.0)
        if sample_weight is not None:  # of shape [n], [n, 1] or one an element
            shape = [-1, *[1] * (sample_weight.shape.rank - 1)]
            weights = tf.reshape(weights, shape) * tf.cast(sample_weight, weights.dtype)
        return x, y, weights

    return weigh


def _class_table(class_weight):
    """`(int32 [K] classes, float32 [K] weights)`."""
    for key, value in dict(class_weight).items():
        key = plain(key)
        if not isinstance(key, int | float) or key != round(key):
            raise ValueError(
                "The keys of `class_weight` must be classes, whole numbers. "
                f"Received: a key {key!r}. Give e.g. {{0: 1.0, 1: 3.0}}."
            )
        if not np.isfinite(real(value)):
            raise ValueError(
                "The values of `class_weight` must be finite numbers. "
                f"Received: class_weight[{key!r}]={value!r}"
            )
    classes = tf.constant([int(plain(key)) for key in class_weight], tf.int32)
    return classes, tf.constant([real(value) for value in class_weight.values()], tf.float32)


def update_masked_metrics(model, y, y_pred, mask):
    """Updates the unweighted metrics of a one-output model with the rows that count."""
    (y,), (y_pred,) = tf.nest.flatten(y), tf.nest.flatten(y_pred)
    for compiled in model.metrics:
        for metric in getattr(compiled, "metrics", ()):
            metric.update_state(y, y_pred, mask)
