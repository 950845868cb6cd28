"""A Keras model's loss and metrics as sums that add up over batches and clients."""

import contextlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tffed import tree
from tffed.additive import check_additive
from tffed.model_call import CallScope, call, first_rows, has_values
from tffed.undefined import as_float, undefined_is_nan

NAN = float("nan")
_RESERVED = {
    *("loss", "clients", "dropped", "empty", "examples", "bytes_up", "bytes_down", "seconds"),
    # What stages of an aggregator and local steps tell of themselves.
    *("clip_norm", "clipped", "kept", "local_steps", "skipped", "sparsity"),
}


def metrics_builder(model):
    """A function that creates the metrics' variables, which Keras does at their first use.

    It runs once, outside of the graph being traced, on two of the examples, or on zeros if
    these have no values yet; then it finds out by
    trying whether the metrics' states add up.
    """
    built = False

    def build(x, y, sample_weight):
        nonlocal built
        if built:
            return
        with tf.init_scope():
            like = tree.map(_spec, (x, y, sample_weight))
            given = [leaf for leaf in tree.leaves((x, y, sample_weight)) if leaf is not None]
            make = _two_rows if has_values(given) else _two_zeros
            x, y, sample_weight = tree.map(make, (x, y, sample_weight))
            with CallScope():  # a layer may count its calls
                y_pred = call(model, x, training=False)
            model._compute_loss(x, y, y_pred, sample_weight, training=False)
            _check_names(model, model.compute_metrics(x, y, y_pred, sample_weight))
            model.reset_metrics()
            for variable in model.metrics_variables:
                if keras.ops.any(keras.ops.convert_to_numpy(variable) != 0):
                    raise ValueError(
                        "The state of a metric must begin at zero, so that it adds up over "
                        f"clients. Received: {variable.path}. Evaluate that metric yourself."
                    )
            _one_loss_an_output(model, y, y_pred)
            check_additive(model, like, y_pred)
        built = True

    return build


def _check_names(model, returned):
    """Checks the names of metrics, and that `compute_metrics` returns nothing else."""
    names = [name for name, _ in _flat(model.get_metrics_result())]
    compiled = getattr(model._compile_metrics, "metrics", ())
    taken = [name for name in (*names, *(m.name for m in compiled)) if name in _RESERVED]
    if taken and taken != ["loss"]:  # Keras's own
        raise ValueError(
            f"Expected metrics of other names than {sorted(_RESERVED)}, which rounds report "
            f"themselves. Received: a metric named {taken[-1]!r}. Give it another name."
        )
    shown = {text.format(name) for name in names for text in ("val_{}", "{}_p10", "{}_p90")}
    if taken := sorted(shown & {*names}):
        raise ValueError(
            "Expected metrics of other names than those under which validation shows another one. "
            f"Received: a metric named {taken[0]!r}, and the metrics {names}. Give it another name."
        )
    returned = returned if isinstance(returned, dict) else {}
    alone = sorted({name for name, _ in _flat(returned)} - {"loss", *names})
    if alone:
        raise ValueError(
            "Expected compute_metrics to return what metrics of the model hold: other values are "
            f"those of the last batch alone. Received: {alone[0]!r}, which no metric holds. Keep "
            "it in a keras.metrics.Mean that is an attribute of the model."
        )


def _one_loss_an_output(model, y, y_pred):
    losses = getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or ()
    if len(losses) > 1 and not tf.nest.is_nested(y) and not tf.nest.is_nested(y_pred):
        raise ValueError(
            "Expected one loss for a model with one output: of several, Keras uses the first "
            f"alone. Received: loss={[one.loss.name for one in losses]}. Write one function that "
            "adds them up."
        )


def _spec(leaf):
    return None if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype)


def _two_rows(leaf):
    return None if leaf is None else first_rows(leaf, 2)  # no sample weights


def _two_zeros(leaf):
    if leaf is None:
        return None
    zeros = tf.zeros([size or 1 for size in (2, *leaf.shape[1:])], tf.int32)
    return tf.strings.as_string(zeros) if leaf.dtype == tf.string else tf.cast(zeros, leaf.dtype)


def update_masked_metrics(model, y, y_pred, mask):
    """Updates the unweighted metrics of a one-output model with the rows that count."""
    (y,), (y_pred,) = tf.nest.flatten(y), tf.nest.flatten(y_pred)
    for compiled in model.metrics:
        for metric in getattr(compiled, "metrics", ()):
            metric.update_state(y, y_pred, mask)


class LossPart(NamedTuple):
    """One of the losses that a batch's loss is made of, as Keras computed it.

    Attributes:
        value: The loss, a scalar.
        weight: Its factor in the sum of the losses.
        divisor: What Keras divided a sum by to get it; None in training, or if it shows no sum.
    """

    value: Any
    weight: Any
    divisor: Any


@contextlib.contextmanager
def results_unread(model):
    """While it lasts, a metric's result is refused: it would be that of the present batch alone."""
    changed = [metric for metric in every_metric(model) if "result" not in vars(metric)]

    def refuse():
        raise ValueError(
            "Expected layers and compute_loss to leave the results of metrics alone: within a "
            "client's steps these are of the present batch, not of an epoch. Received: "
            f"{model.name!r}, which reads one. Keep a running value in a variable of the model's."
        )

    for metric in changed:
        vars(metric)["result"] = refuse
    try:
        yield
    finally:
        for metric in changed:
            del vars(metric)["result"]


@contextlib.contextmanager
def loss_parts(model, training):
    """A list that `model.compute_loss` fills with a `LossPart` for each loss it computes."""
    parts, compiled = [], getattr(model, "_compile_loss", None)
    flat = None if compiled is None else compiled._flat_losses
    if flat is None:
        yield parts
        return
    compiled._flat_losses = [one._replace(loss=_recorded(one, parts, training)) for one in flat]
    try:
        yield parts
    finally:
        compiled._flat_losses = flat


def _recorded(entry, parts, training):
    def loss(y_true, y_pred, sample_weight=None):
        value = entry.loss(y_true, y_pred, sample_weight)
        weight = 1.0 if entry.loss_weights is None else entry.loss_weights
        divisor = None if training else _divisor(entry.loss, y_true, y_pred, sample_weight)
        parts.append(LossPart(as_float(value), as_float(weight), divisor))
        return value

    return loss


def _divisor(loss, y_true, y_pred, sample_weight):
    """The entries that a loss is the mean of: those of masks, or the sum of the sample weights."""
    shape = []
    if type(loss).__call__ is not keras.losses.Loss.__call__:
        return None
    if loss.reduction != "mean_with_sample_weight":
        sample_weight = None
    total = _Ones(loss, shape)(y_true, y_pred, sample_weight)
    return as_float(total) if shape[0].rank else None


class _Ones(keras.losses.Loss):
    """The sum of the weights by which a loss takes its mean."""

    def __init__(self, loss, shape):
        super().__init__(reduction="sum", dtype=loss.dtype)
        self._loss, self._shape = loss, shape

    def call(self, y_true, y_pred):
        values = self._loss.call(y_true, y_pred)
        self._shape.append(tf.TensorShape(values.shape))
        ones = tf.ones_like(values)
        mask = getattr(values, "_keras_mask", None)
        if mask is not None:
            ones._keras_mask = mask
        return ones


def add_batch(model, scope, sums, value, parts, *, rows, count):
    """The sums with those of a batch added.

    In training a batch weighs by its examples, as in Keras. In evaluation a loss weighs by its own
    divisor, so that the size of the batches does not show.

    Args:
        model: The Keras model.
        scope: The `keras.StatelessScope` in which it ran.
        sums: The sums before.
        value: The loss of the batch.
        parts: The `LossPart`s that it is made of.
        rows: The number of rows, a float32 scalar.
        count: The number of those that count.
    """
    value, trackers = tf.cast(value, tf.float32), _trackers(model, parts)
    before, whole, rest = dict(_states(model, sums)), count, value
    states = {id(v): scope.get_current_value(v) for v in model.metrics_variables}
    divisors = [count if part.divisor is None else part.divisor for part in parts]
    for tracker, part, divisor in zip(trackers, parts, divisors, strict=False):
        own = part.value * tf.math.divide_no_nan(rows, count)  # Keras has divided by all rows
        _put(states, before, tracker, own, divisor)
        rest -= part.weight * own
    if len(parts) == 1:
        whole = divisors[0]
    elif trackers:
        _put(states, before, model._loss_tracker, rest, count)
    total = (sums[0] + value * whole, sums[1] + whole)
    return (*total, *(states[id(v)] for v in model.metrics_variables))


def report(model, sums):
    """`{name: float32 tensor}` from sums: NaN where a metric is undefined, all of it if empty."""
    mapping = [*zip(model.metrics_variables, sums[2:], strict=True)]
    with keras.StatelessScope(mapping), undefined_is_nan(every_metric(model)):
        results = dict(_flat(model.get_metrics_result()))
        whole, trackers = model._loss_tracker.result(), _all_trackers(model)
        by_output = [tracker.result() for tracker in trackers]
    loss = tf.where(sums[1] > 0, tf.math.divide_no_nan(sums[0], sums[1]), NAN)
    if trackers:  # in evaluation each output has its own divisor
        weights = (entry.loss_weights for entry in model._compile_loss._flat_losses)
        weights = [1.0 if weight is None else as_float(weight) for weight in weights]
        total = whole + sum(w * value for w, value in zip(weights, by_output, strict=True))
        loss = tf.where(tf.math.is_nan(whole), loss, total)
    empty = tf.reduce_all([tf.reduce_all(s == 0) for s in sums])
    return {name: tf.where(empty, NAN, v) for name, v in (results | {"loss": loss}).items()}


def every_metric(model):
    """All metrics of a model: compiled ones, those by output, in layers and in other metrics."""
    found, left = [], list(model.metrics)
    while left:
        metric = left.pop()
        if all(metric is not one for one in found):
            found.append(metric)
            left += metric.metrics if metric is model._compile_metrics else metric._metrics
    return found


def _flat(results):
    """Pairs of names and values; those of a dictionary have its own names, as in Keras's logs."""
    for name, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, as_float(value)


def _states(model, sums):
    return zip(map(id, model.metrics_variables), sums[2:], strict=True)


def _trackers(model, parts):
    """The metrics of the losses by output, if a batch's parts are these."""
    found = _all_trackers(model)
    return found if len(parts) == len(found) else []


def _all_trackers(model):
    """The metrics that hold the losses by output: Keras has them where there are several."""
    compiled, held = getattr(model, "_compile_loss", None), set(map(id, model.metrics_variables))
    found = [] if compiled is None else compiled.metrics
    ours = (*found, model._loss_tracker)
    return found if all(id(v) in held for m in ours for v in m.variables) else []


def _put(states, before, tracker, value, count):
    """Adds a value that weighs `count` to the states of a mean."""
    states[id(tracker.total)] = before[id(tracker.total)] + value * count
    states[id(tracker.count)] = before[id(tracker.count)] + count
