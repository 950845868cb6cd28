"""A Keras model as pure functions of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tffed import random, tree

BATCH_NORM_POLICIES = ("average", "local", "freeze")
_MEAN_REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_FLOAT16_LOSS_SCALE = 1024.0


class ModelWeights(NamedTuple):
    """What a client trains, as flat tuples of tensors in Keras's order.

    Attributes:
        trainable: The values of `model.trainable_variables`. Frozen layers have none here.
        non_trainable: Statistics that training updates, such as BatchNorm's moving mean and
            variance; never seeds, metrics or the weights of frozen layers.
    """

    trainable: tuple
    non_trainable: tuple


class FunctionalModel(NamedTuple):
    """A model, its loss and its metrics as pure functions.

    A batch is `(x, y)` or `(x, y, sample_weight)`. Sums are a flat tuple: the loss times the number
    of examples, that number, then the states of the Keras metrics. They add up over batches and
    clients.

    Attributes:
        init: `() -> ModelWeights`: the Keras model's present values.
        grad: `(weights, batch, seed) -> (gradients, non_trainable, sums)`. The gradient is that
            of the loss as Keras computes it for this batch.
        evaluate: `(weights, batch) -> sums`, in inference mode.
        zeros: `(batch) -> sums` of no examples; `batch` gives only shapes.
        report: `(sums) -> {metric name: float32 scalar}`.
        assign: `(weights) -> None`: writes the values into the Keras model.
        variables: The Keras variables behind `ModelWeights.trainable`.
        local_statistics: Whether `non_trainable` stays on each client.
    """

    init: Callable
    grad: Callable
    evaluate: Callable
    zeros: Callable
    report: Callable
    assign: Callable
    variables: list[Any]
    local_statistics: bool


def from_keras(
    model,
    loss=None,
    metrics=None,
    *,
    loss_weights=None,
    weighted_metrics=None,
    class_weight=None,
    batch_norm="average",
    optimizer=None,
) -> FunctionalModel:
    """Reads a built Keras model as pure functions of its weights.

    The loss and the metrics are Keras's own: `model.compile` is called with them, so several
    outputs, `loss_weights`, regularizers and an overridden `compute_loss` or `compute_metrics`
    work. An overridden `train_step` is not used. A float16 model's loss is multiplied by 1024
    before its gradient is taken and the gradient divided by it.

    BatchNorm's moving statistics follow `batch_norm`:

    - `"average"`: each client updates them, the server averages the changes like the weights.
    - `"local"`: each client keeps its own in its client state (SiloBN, Andreux et al. 2020). They
      never travel; the global model keeps those it began with.
    - `"freeze"`: every BatchNormalization layer is set to `trainable = False`, which in Keras also
      makes it use its moving statistics in training: nothing of it changes or travels.

    A partial batch keeps its true size, so statistics never see padding.

    Args:
        model: A built `keras.Model`: Sequential, functional or subclassed.
        loss: Anything `keras.Model.compile` takes. None: the model is already compiled.
        metrics: Keras metrics whose state adds up over batches, as that of Keras's own does.
        loss_weights: As in `keras.Model.compile`.
        weighted_metrics: As in `keras.Model.compile`.
        class_weight: `{class: weight}`, as in `keras.Model.fit`.
        batch_norm: One of `"average"`, `"local"`, `"freeze"`.
        optimizer: What `model.optimizer` becomes if `loss` is given; by default it stays.

    Returns:
        A `FunctionalModel`.

    Raises:
        ValueError: The model is not built, has nothing to train, has no loss or one that does not
            average over the examples, or an argument is not one of its choices.
        RuntimeError: Keras runs on another backend than TensorFlow.
    """
    _check_model(model, batch_norm)
    if batch_norm == "freeze":
        for layer in _layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    if not model.trainable_variables:
        raise ValueError(
            "Expected a model with trainable weights; all its layers are frozen. Received: "
            f"model={model.name!r}. Set `layer.trainable = True` on what is to be trained."
        )
    _compile(model, loss, metrics, loss_weights, weighted_metrics, optimizer)
    variables = list(model.trainable_variables)
    statistics = _statistics(model)
    seeds = _seeds(model)
    scale = _loss_scale(model)
    weigh = _class_weigher(class_weight)
    build_metrics = _metrics_builder(model)

    def forward(weights, batch, seed, training, sums):
        x, y, sample_weight = weigh(batch)
        mapping = [*zip(variables, weights.trainable, strict=True)]
        mapping += zip(statistics, weights.non_trainable, strict=True)
        mapping += [(v, _seed_value(seed, i, v)) for i, v in enumerate(seeds) if training]
        mapping += zip(model.metrics_variables, sums[2:], strict=True)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            y_pred = model(x, training=training)
            value = model.compute_loss(x, y, y_pred, sample_weight, training=training)
            model.compute_metrics(x, y, y_pred, sample_weight)
        count = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        sums = (
            sums[0] + tf.cast(value, tf.float32) * count,
            sums[1] + count,
            *(scope.get_current_value(v) for v in model.metrics_variables),
        )
        return value, tuple(scope.get_current_value(v) for v in statistics), sums

    def zeros(batch):
        x, y, sample_weight = weigh(batch)
        build_metrics(x, y, sample_weight)
        return (
            tf.zeros(()),
            tf.zeros(()),
            *(tf.zeros(v.shape, v.dtype) for v in model.metrics_variables),
        )

    def grad(weights, batch, seed):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights.trainable)
            value, non_trainable, sums = forward(weights, batch, seed, True, zeros(batch))
            scaled = value * tf.cast(scale, value.dtype)
        grads = tape.gradient(scaled, weights.trainable, unconnected_gradients="zero")
        # The gradient of an embedding comes as IndexedSlices; a dense one adds up and travels.
        grads = tuple(tf.convert_to_tensor(g) for g in grads)
        return (tree.scale(grads, 1 / scale) if scale != 1 else grads), non_trainable, sums

    def evaluate(weights, batch):
        return forward(weights, batch, None, False, zeros(batch))[2]

    def report(sums):
        with keras.StatelessScope([*zip(model.metrics_variables, sums[2:], strict=True)]):
            results = model.get_metrics_result()
        results = {name: tf.cast(value, tf.float32) for name, value in results.items()}
        return results | {"loss": tf.math.divide_no_nan(sums[0], sums[1])}

    def init():
        return ModelWeights(
            tuple(tf.identity(v.value) for v in variables),
            tuple(tf.identity(v.value) for v in statistics),
        )

    def assign(weights):
        for variable, value in zip(
            variables + statistics, (*weights.trainable, *weights.non_trainable), strict=True
        ):
            variable.assign(value)

    return FunctionalModel(
        init, grad, evaluate, zeros, report, assign, variables, batch_norm == "local"
    )


def _check_model(model, batch_norm):
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


def _compile(model, loss, metrics, loss_weights, weighted_metrics, optimizer):
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
    for one in tf.nest.flatten(model.loss):
        reduction = getattr(one, "reduction", "sum_over_batch_size")
        if reduction not in _MEAN_REDUCTIONS:
            raise ValueError(
                "The loss must average over the examples of a batch, so that clients of different "
                f"sizes weigh as they should: reduction must be one of {_MEAN_REDUCTIONS}. "
                f"Received: reduction={reduction!r} in {type(one).__name__}. Build the loss with "
                'reduction="sum_over_batch_size".'
            )


def _metrics_builder(model):
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


def _layers(model):
    return model._flatten_layers(include_self=True, recursive=True)


def _statistics(model):
    """Non-trainable weights of layers that are not frozen: what a training call may update.

    Counters and other integers are no statistics that could be averaged: they stay as they are.
    """
    frozen = {id(v) for layer in _layers(model) if not layer.trainable for v in layer.variables}
    weights = [v for v in model.non_trainable_weights if id(v) not in frozen]
    return [v for v in weights if tf.as_dtype(v.dtype).is_floating]


def _seeds(model):
    """The states of seed generators (dropout and its like)."""
    seeds = {id(g.state) for layer in _layers(model) for g in layer._seed_generators}
    return [v for v in model.non_trainable_variables if id(v) in seeds]


def _seed_value(seed, index, variable):
    return tf.cast(random.fold_in(seed, index), variable.dtype)


def _loss_scale(model):
    half = any(getattr(layer, "compute_dtype", None) == "float16" for layer in _layers(model))
    return _FLOAT16_LOSS_SCALE if half else 1.0


def _class_weigher(class_weight):
    """A function from a batch to (x, y, sample_weight) with the class weights multiplied in."""

    def unpack(batch):
        return (*batch, None) if len(batch) == 2 else tuple(batch)

    if class_weight is None:
        return unpack
    size = max(class_weight) + 1
    table = tf.constant([float(class_weight.get(c, 1.0)) for c in range(size)])

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
        known = tf.gather(table, tf.minimum(labels, size - 1))
        weights = tf.where(labels < size, known, 1.0)
        return x, y, weights if sample_weight is None else weights * sample_weight

    return weigh
