"""A Keras model as pure functions of its weights."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tffed import random, tree
from tffed.keras_model import (
    check,
    class_weigher,
    compile_model,
    layers,
    loss_scale,
    seeds_of,
    statistics_of,
)
from tffed.maskable import independent_examples
from tffed.metrics import add_batch, loss_parts, metrics_builder, report, update_masked_metrics
from tffed.recurrent import own_loops
from tffed.resized import resized


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
        grad: `(weights, batch, seed, mask=None, sparse=False, noise=()) -> (gradients,
            non_trainable, sums)`.
            The gradient is that of the loss as Keras computes it for this batch; or, with a float32
            mask of ones and zeros by row, for the batch of the rows that count (only if
            `maskable`). With `sparse`, an embedding's may come as `tf.IndexedSlices`. `noise`:
            the secret seed of a model with a `mechanism`, else `()`.
        evaluate: `(weights, batch) -> sums`, in inference mode.
        zeros: `(batch) -> sums` of no examples; `batch` gives only shapes.
        report: `(sums) -> {metric name: float32 scalar}`.
        assign: `(weights) -> None`: writes the values into the Keras model.
        variables: The Keras variables behind `ModelWeights.trainable`.
        local_statistics: Whether `non_trainable` stays on each client.
        maskable: Whether padding a batch and masking it gives what the batch itself gives.
        mechanism: The `tffed.privacy.Mechanism` by which gradients are noised, or None.
        sampled: Whether local steps are to draw each example by a coin of its own.
        forward: `(weights, batch, seed, mask=None) -> (loss, non_trainable, sums)`, of which `grad`
            takes the gradient; in inference mode if `seed` is None.
    """

    init: Callable
    grad: Callable
    evaluate: Callable
    zeros: Callable
    report: Callable
    assign: Callable
    variables: list[Any]
    local_statistics: bool
    maskable: bool
    mechanism: Any = None
    forward: Callable | None = None
    sampled: bool = False


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
        optimizer: What `model.optimizer` becomes; by default it stays.

    Returns:
        A `FunctionalModel`.

    Raises:
        ValueError: The model is not built, has nothing to train, has no loss or one that does not
            average over the examples, or an argument is not one of its choices.
        RuntimeError: Keras runs on another backend than TensorFlow.
    """
    check(model, batch_norm)
    if batch_norm == "freeze":
        for layer in layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    if not model.trainable_variables:
        raise ValueError(
            "Expected a model with trainable weights; all its layers are frozen. Received: "
            f"model={model.name!r}. Set `layer.trainable = True` on what is to be trained."
        )
    compile_model(model, loss, metrics, loss_weights, weighted_metrics, optimizer)
    parts = _Functions(model, class_weight)
    return FunctionalModel(
        init=parts.init,
        grad=parts.grad,
        evaluate=parts.evaluate,
        zeros=parts.zeros,
        report=parts.report,
        assign=parts.assign,
        variables=parts.variables,
        local_statistics=batch_norm == "local",
        maskable=independent_examples(model),
        forward=parts.forward,
    )


class _Functions:
    """The functions of a `FunctionalModel`, over what they all read off the Keras model."""

    def __init__(self, model, class_weight):
        self.variables = list(model.trainable_variables)
        self._model = model
        self._statistics = statistics_of(model)
        self._seeds = seeds_of(model)
        self._scale = loss_scale(model)
        self._weigh, self._unpack = class_weigher(class_weight), class_weigher(None)
        self._build_metrics = metrics_builder(model)

    def init(self):
        return ModelWeights(
            tuple(tf.identity(v.value) for v in self.variables),
            tuple(tf.identity(v.value) for v in self._statistics),
        )

    def assign(self, weights):
        variables = self.variables + self._statistics
        values = (*weights.trainable, *weights.non_trainable)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def zeros(self, batch):
        self._build_metrics(*self._weigh(batch))
        states = (tf.zeros(v.shape, v.dtype) for v in self._model.metrics_variables)
        return (tf.zeros(()), tf.zeros(()), *states)

    def grad(self, weights, batch, seed, mask=None, sparse=False, noise=()):
        del noise
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights.trainable)
            value, statistics, sums = self.forward(weights, batch, seed, mask)
            scaled = value * tf.cast(self._scale, value.dtype)
        grads = tape.gradient(scaled, weights.trainable, unconnected_gradients="zero")
        if not sparse or self._scale != 1:  # dense ones add up and travel
            grads = tuple(tf.convert_to_tensor(g) for g in grads)
        if self._scale != 1:
            grads = tree.scale(grads, 1 / self._scale)
        return tuple(grads), statistics, sums

    def evaluate(self, weights, batch):
        return self.forward(weights, batch, None)[2]

    def report(self, sums):
        return report(self._model, sums)

    def forward(self, weights, batch, seed, mask=None):
        model, training, sums = self._model, seed is not None, self.zeros(batch)
        x, y, sample_weight = (self._weigh if training else self._unpack)(batch)
        rows = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        count = rows if mask is None else tf.reduce_sum(mask)
        if mask is not None:
            sample_weight = mask if sample_weight is None else mask * sample_weight
        with keras.StatelessScope(self._mapping(weights, seed, sums), collect_losses=True) as scope:
            for update in zip(self.variables, weights.trainable, strict=True):
                scope.add_update(update)  # of any shape
            with own_loops(model), self._widths(weights):
                y_pred = model(x, training=training)
            with loss_parts(model, training) as parts:
                value = model.compute_loss(x, y, y_pred, sample_weight, training=training)
            if mask is None:
                model.compute_metrics(x, y, y_pred, sample_weight)
            else:
                update_masked_metrics(model, y, y_pred, mask)
        if mask is not None:  # Keras has divided by all rows
            value *= tf.cast(tf.math.divide_no_nan(rows, count), value.dtype)
        sums = add_batch(model, scope, sums, value, parts, rows=rows, count=count)
        statistics = tuple(scope.get_current_value(v) for v in self._statistics)
        return value, statistics, sums

    def _mapping(self, weights, seed, sums):
        """What each Keras variable, but the trainable ones, stands for while the model runs."""
        mapping = [*zip(self._statistics, weights.non_trainable, strict=True)]
        mapping += zip(self._model.metrics_variables, sums[2:], strict=True)
        if seed is not None:
            for i, variable in enumerate(self._seeds):
                mapping.append((variable, tf.cast(random.fold_in(seed, i), variable.dtype)))
        return mapping

    def _widths(self, weights):
        """The context in which the model takes weights of the smaller model that clients train."""
        pairs = [*zip(self.variables, weights.trainable, strict=True)]
        if all(variable.shape == value.shape for variable, value in pairs):
            return contextlib.nullcontext()
        return resized(self._model, {id(variable): value for variable, value in pairs})
