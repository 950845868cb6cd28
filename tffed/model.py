"""A Keras model as pure functions of its weights."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tffed import tree
from tffed.embeddings import checked_ids
from tffed.keras_model import (
    batch_parts,
    check,
    class_weigher,
    compile_model,
    metrics_builder,
    scales_loss,
    update_masked_metrics,
)
from tffed.maskable import independent_examples, padding_is_exact
from tffed.model_call import CallScope, call, global_seed, layers, seed_values, state_of
from tffed.recurrent import own_loops
from tffed.resized import resized

# For single gradients; a client's steps look for a factor themselves, see `tffed.loss_scale`.
_STATIC_LOSS_SCALE = 1024.0


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
        grad: `(weights, batch, seed, mask=None, sparse=False, noise=(), scale=None) -> (gradients,
            weights, sums)`.
            The gradient is that of the loss as Keras computes it for this batch; or, with a float32
            mask of ones and zeros by row, for the batch of the rows that count (only if
            `maskable`). It is None for a weight on which the loss does not depend. With `sparse`,
            an embedding's may come as `tf.IndexedSlices`. `noise`: the secret seed of a model with
            a `mechanism`, else `()`. `scale`: the factor on the loss of a `scaled` model; 1024 by
            default. The weights are those that the call leaves, at which the gradient was taken:
            layers may assign trainable ones, too.
        evaluate: `(weights, batch) -> sums`, in inference mode.
        zeros: `(batch) -> sums` of no examples; `batch` gives only shapes.
        report: `(sums) -> {metric name: float32 scalar}`.
        assign: `(weights) -> None`: writes the values into the Keras model.
        variables: The Keras variables behind `ModelWeights.trainable`.
        local_statistics: Whether `non_trainable` stays on each client.
        maskable: `(batch) -> bool`: whether padding such a batch and masking it gives what the
            batch itself gives, tried on it.
        mechanism: The `tffed.privacy.Mechanism` by which gradients are noised, or None.
        sampled: Whether local steps are to draw each example by a coin of its own.
        forward: `(weights, batch, seed, mask=None) -> (loss, non_trainable, sums)`, of which `grad`
            takes the gradient; in inference mode if `seed` is None.
        begin: `(weights) -> weights` with which a client begins: statistics and then counters are
            its `non_trainable`.
        end: `(weights) -> weights` that a client ends with, without the counters.
        scaled: Whether the loss is multiplied by a factor before its gradient is taken (float16).
    """

    init: Callable
    grad: Callable
    evaluate: Callable
    zeros: Callable
    report: Callable
    assign: Callable
    variables: list[Any]
    local_statistics: bool
    maskable: Callable
    mechanism: Any = None
    forward: Callable | None = None
    sampled: bool = False
    begin: Callable = lambda weights: weights
    end: Callable = lambda weights: weights
    scaled: bool = False


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
    work. An overridden `train_step` or `test_step` is refused. A float16 model's loss is multiplied
    by a factor before its gradient is taken, and the gradient divided by it.

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
            average over the examples, trains in a way of its own (`train_step`), keeps state
            between batches or where it cannot be followed, or an argument is not one of its
            choices.
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
        maskable=parts.maskable,
        forward=parts.forward,
        begin=parts.begin,
        end=parts.end,
        scaled=parts.scaled,
    )


class _Functions:
    """The functions of a `FunctionalModel`, over what they all read off the Keras model."""

    def __init__(self, model, class_weight):
        self.variables = list(model.trainable_variables)
        self.scaled = scales_loss(model)
        self._model = model
        self._state = state_of(model)
        self._weigh = class_weigher(class_weight)
        self._build_metrics = metrics_builder(model)
        self._padding = {}

    def init(self):
        self._check_unchanged()
        return ModelWeights(_values(self.variables), _values(self._state.statistics))

    def begin(self, weights):
        counters = _values(self._state.counters)
        return weights._replace(non_trainable=(*weights.non_trainable, *counters))

    def end(self, weights):
        kept = len(weights.non_trainable) - len(self._state.counters)
        return weights._replace(non_trainable=weights.non_trainable[:kept])

    def assign(self, weights):
        variables = self.variables + self._state.statistics
        values = (*weights.trainable, *weights.non_trainable)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def zeros(self, batch):
        self._build_metrics(*batch_parts(batch))
        states = (tf.zeros(v.shape, v.dtype) for v in self._model.metrics_variables)
        return (tf.zeros(()), tf.zeros(()), *states)

    def grad(self, weights, batch, seed, mask=None, sparse=False, noise=(), scale=None):
        del noise
        scale = _STATIC_LOSS_SCALE if self.scaled and scale is None else scale
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights.trainable)
            value, scope, sums = self._run(weights, batch, seed, mask, tape.watch)
            scaled = value if scale is None else value * tf.cast(scale, value.dtype)
        pairs = zip(self.variables, weights.trainable, strict=True)
        sources = [[w, *scope.sources.get(id(v), ())] for v, w in pairs]
        grads = [_sum(parts) for parts in tape.gradient(scaled, sources)]
        if all(g is None for g in grads):
            raise ValueError(
                "Expected a loss that depends on the model's weights. Received: "
                f"{self._model.name!r}, none of whose trainable weights has a gradient."
            )
        if not sparse:  # dense ones add up and travel
            grads = [g if g is None else tf.convert_to_tensor(g) for g in grads]
        if scale is not None:
            grads = [_divided(g, scale) for g in grads]
        return tuple(grads), self._left(weights, scope), sums

    def evaluate(self, weights, batch):
        return self.forward(weights, batch, None)[2]

    def report(self, sums):
        model = self._model
        with keras.StatelessScope([*zip(model.metrics_variables, sums[2:], strict=True)]):
            results = model.get_metrics_result()
        results = {name: tf.cast(value, tf.float32) for name, value in results.items()}
        return results | {"loss": tf.math.divide_no_nan(sums[0], sums[1])}

    def maskable(self, batch):
        key = str(tree.spec(batch))
        if key not in self._padding:
            structure = independent_examples(self._model)
            still = bool(self._state.seeds)  # dropout draws other numbers for another size
            self._padding[key] = structure and padding_is_exact(self, batch, still)
        return self._padding[key]

    def forward(self, weights, batch, seed, mask=None):
        value, scope, sums = self._run(weights, batch, seed, mask)
        return value, self._left(weights, scope).non_trainable, sums

    def _run(self, weights, batch, seed, mask, watch=lambda value: None):
        """`(loss, the scope of the call, sums)` of a batch."""
        self._check_unchanged()
        model, training, sums = self._model, seed is not None, self.zeros(batch)
        x, y, sample_weight = self._weigh(batch) if training else batch_parts(batch)
        rows = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        count = rows if mask is None else tf.reduce_sum(mask)
        if mask is not None:
            sample_weight = tree.map(lambda w: _masked(w, mask), sample_weight)
        with CallScope(self._mapping(weights, seed, sums), watch) as scope:
            with own_loops(model), checked_ids(model, mask), self._widths(weights):
                y_pred = call(model, x, training)
            value = model._compute_loss(x, y, y_pred, sample_weight, training=training)
            if mask is None:
                model.compute_metrics(x, y, y_pred, sample_weight)
            else:
                update_masked_metrics(model, y, y_pred, mask)
        self._check_scope(scope, training)
        if mask is not None:  # Keras has divided by all rows
            value *= tf.cast(tf.math.divide_no_nan(rows, count), value.dtype)
        total = (sums[0] + tf.cast(value, tf.float32) * count, sums[1] + count)
        metrics = (scope.get_current_value(v) for v in model.metrics_variables)
        return value, scope, (*total, *metrics)

    def _mapping(self, weights, seed, sums):
        """What each Keras variable stands for while the model runs."""
        mapping = [*zip(self.variables, weights.trainable, strict=True)]
        state = self._state.statistics + self._state.counters
        mapping += zip(state, weights.non_trainable, strict=False)  # counters only in training
        mapping += zip(self._model.metrics_variables, sums[2:], strict=True)
        return mapping if seed is None else mapping + seed_values(self._state.seeds, seed)

    def _left(self, weights, scope):
        """The weights after a call."""
        state = self._state.statistics + self._state.counters
        state = state[: len(weights.non_trainable)]
        return ModelWeights(
            tuple(scope.get_current_value(v) for v in self.variables),
            tuple(scope.get_current_value(v) for v in state),
        )

    def _check_unchanged(self):
        """Checks that the same weights are trained as when the model was read."""
        if [id(v) for v in self._model.trainable_variables] != [id(v) for v in self.variables]:
            raise ValueError(
                "Expected the trainable weights that the model had when it was compiled. Received: "
                f"{self._model.name!r}, some of whose layers were frozen, unfrozen or replaced "
                "since. Call compile(…) again."
            )

    def _check_scope(self, scope, training):
        scope.check()
        known = (*self.variables, *self._state.statistics, *self._state.counters)
        known = {id(v) for v in (*known, *self._model.metrics_variables, *self._state.seeds)}
        known.add(id(global_seed()))
        left = [v.path for k, v in scope.assigned.items() if k not in known]
        if training and left:
            raise ValueError(
                f"Expected a training call to change what it did when {self._model.name!r} was "
                f"read. Received: {', '.join(left)}, changed as well. Call the model once on a "
                "batch before compile(…), or freeze what must not change."
            )

    def _widths(self, weights):
        """The context in which the model takes weights of the smaller model that clients train."""
        pairs = [*zip(self.variables, weights.trainable, strict=True)]
        if all(variable.shape == value.shape for variable, value in pairs):
            return contextlib.nullcontext()
        return resized(self._model, {id(variable): value for variable, value in pairs})


def _values(variables):
    return tuple(tf.identity(v.value) for v in variables)


def _masked(sample_weight, mask):
    """Sample weights, of any rank, times a mask of rows."""
    if sample_weight is None:
        return mask
    shape = [-1] + [1] * (sample_weight.shape.rank - 1)
    return tf.cast(sample_weight, mask.dtype) * tf.reshape(mask, shape)


def _divided(grad, scale):
    if isinstance(grad, tf.IndexedSlices):
        values = _divided(grad.values, scale)
        return tf.IndexedSlices(values, grad.indices, grad.dense_shape)
    return None if grad is None else grad / tf.cast(scale, grad.dtype)


def _sum(parts):
    """The sum of the gradients that there are, or None."""
    parts = [part for part in parts if part is not None]
    return tf.add_n(parts) if len(parts) > 1 else next(iter(parts), None)
