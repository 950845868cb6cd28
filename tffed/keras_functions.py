"""The functions of a `tffed.FunctionalModel`, made of a Keras model."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import tensorflow as tf

from tffed import tree
from tffed.embeddings import checked_ids
from tffed.gradient_proof import check_step
from tffed.keras_model import batch_parts, class_weigher, scales_loss
from tffed.maskable import independent_examples, padding_is_exact
from tffed.metrics import (
    add_batch,
    loss_parts,
    metrics_builder,
    report,
    results_unread,
    update_masked_metrics,
)
from tffed.model_call import CallScope, call, has_values, seed_values, state_of
from tffed.recurrent import own_loops
from tffed.resized import resized

# For single gradients; a client's steps look for a factor themselves, see `tffed.loss_scale`.
_STATIC_LOSS_SCALE = 1024.0


class ModelWeights(NamedTuple):
    """What a client trains, as flat tuples of tensors in Keras's order.

    Attributes:
        trainable: The values of `model.trainable_variables`. Frozen layers have none here.
        non_trainable: Statistics that a training call changes, such as BatchNorm's moving mean and
            variance; never seeds, counters, metrics, or what training leaves as it is.
    """

    trainable: tuple
    non_trainable: tuple


class KerasFunctions:
    """The functions of a `FunctionalModel`, over what they all read off a Keras model."""

    def __init__(self, model, class_weight):
        self.variables = list(model.trainable_variables)
        self.scaled = scales_loss(model)
        self._model = model
        self._state = state_of(model)
        self._compiled = model._compile_loss
        self.weigh = class_weigher(class_weight)
        self._build_metrics = metrics_builder(model)
        self._padding, self._proved = {}, False
        self._connected = [False] * len(self.variables)

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
        self._prove(batch)
        states = (tf.zeros(v.shape, v.dtype) for v in self._model.metrics_variables)
        return (tf.zeros(()), tf.zeros(()), *states)

    def connected(self):
        """Which trainable weights had a gradient so far; before there was any, all."""
        return self._connected if any(self._connected) else [True] * len(self.variables)

    def grad(self, weights, batch, seed, mask=None, sparse=False, noise=(), scale=None):
        del noise
        scale = _STATIC_LOSS_SCALE if self.scaled and scale is None else scale
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights.trainable)
            value, scope, sums = self._run(weights, batch, seed, mask, tape.watch)
            scaled = value if scale is None else value * tf.cast(scale, value.dtype)
        pairs = zip(self.variables, weights.trainable, strict=True)
        sources = [[w, *scope.sources.get(id(v), ())] for v, w in pairs]
        with scope:  # a gradient of the user's own may read a variable
            grads = [_sum(parts) for parts in tape.gradient(scaled, sources)]
        self._connected = [c or g is not None for c, g in zip(self._connected, grads, strict=True)]
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
        return report(self._model, sums)

    def maskable(self, batch):
        key = str(tree.spec(batch))
        if key not in self._padding:
            structure = independent_examples(self._model)
            # Dropout draws other numbers for another size.
            still = self._state.draws
            self._padding[key] = structure and padding_is_exact(self, batch, still)
        return self._padding[key]

    def forward(self, weights, batch, seed, mask=None):
        value, scope, sums = self._run(weights, batch, seed, mask)
        return value, self._left(weights, scope).non_trainable, sums

    def _run(self, weights, batch, seed, mask, watch=lambda value: None):
        """`(loss, the scope of the call, sums)` of a batch."""
        self._check_unchanged()
        model, training, sums = self._model, seed is not None, self.zeros(batch)
        x, y, sample_weight = self.weigh(batch) if training else batch_parts(batch)
        rows = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        count = rows if mask is None else tf.reduce_sum(mask)
        if mask is not None:
            sample_weight = tree.map(lambda w: _masked(w, mask), sample_weight)
        mapping = self._mapping(weights, seed, sums)
        with CallScope(mapping, watch, self._state.generator) as scope:
            widths = self._widths(weights)
            with own_loops(model), checked_ids(model, mask), widths, results_unread(model):
                y_pred = call(model, x, training)
            with loss_parts(model, training) as parts, results_unread(model):
                value = model._compute_loss(x, y, y_pred, sample_weight, training=training)
            if mask is None:
                model.compute_metrics(x, y, y_pred, sample_weight)
            else:
                update_masked_metrics(model, y, y_pred, mask)
        self._check_scope(scope, training)
        if mask is not None:  # Keras has divided by all rows
            value *= tf.cast(tf.math.divide_no_nan(rows, count), value.dtype)
        sums = add_batch(model, scope, sums, value, parts, rows=rows, count=count)
        return value, scope, sums

    def _prove(self, batch):
        """Once, holds a step against Keras's own."""
        if self._proved:
            return
        self._proved = True
        if not has_values(batch):
            batch = tree.map(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), batch)
        try:
            # The graph being traced, and its gradient tapes, are this thread's.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(check_step, self, self._model, self._state, batch).result()
        except ValueError:
            self._proved = False
            raise

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
        if self._model._compile_loss is not self._compiled:
            raise ValueError(
                "Expected the loss and the metrics that the model was compiled with. Received: "
                f"{self._model.name!r}, which was compiled otherwise since (by model.compile, or "
                "by another Federated). Call compile(…) of this one again."
            )

    def _check_scope(self, scope, training):
        scope.check()
        known = (*self.variables, *self._state.statistics, *self._state.counters)
        known = {id(v) for v in (*known, *self._model.metrics_variables, *self._state.seeds)}
        optimizer = getattr(self._model, "optimizer", None)
        steps = {id(v) for v in optimizer.variables} if optimizer is not None else ()
        read = [v.path for k, v in scope.read.items() if k in steps]
        if training and read:
            raise ValueError(
                "Expected a training call that does not look at its optimizer, which is the "
                f"server's during a fit. Received: {self._model.name!r}, which reads "
                f"{', '.join(read)}. Count steps in a variable of the model's own."
            )
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
