"""Where a Keras metric is undefined: NaN, where Keras reports 0.

A ratio whose denominator is 0 has no value. Keras divides without NaN and reports 0, which is then
ranked, averaged and monitored as if it had been measured. Whether there is a value is decided by
the metric's state:

| metric | undefined if |
|---|---|
| Mean and all that are means (accuracies, errors, losses) | its weights sum to 0 |
| Precision | nothing is predicted positive, by threshold |
| Recall | nothing is positive, by threshold |
| AUC | nothing is positive; for ROC and PRGAIN, nothing is negative; of a label that counts |
| PrecisionAtRecall, RecallAtPrecision | nothing is positive |
| SensitivityAtSpecificity, SpecificityAtSensitivity | nothing is positive, or nothing negative |
| FBetaScore, F1Score | a class is neither there nor predicted; "weighted": nothing is positive |
| R2Score | the targets of an output do not differ |
| IoU and its kinds | none of the classes is there or predicted (Keras leaves out single ones) |

An average over classes or outputs ("macro", "uniform_average") is undefined where one of them is.
Counts and sums are always defined.
"""

import contextlib

import keras
import tensorflow as tf

# Below (1.5 + n / 4096) of this share of Σ y², the variance of n targets in batches of 256 is
# the rounding of float32.
_ROUNDING = 2.0**-20


@contextlib.contextmanager
def undefined_is_nan(metrics):
    """Inside, the results of these metrics are float32 tensors, NaN where they are undefined."""
    changed = [metric for metric in metrics if "result" not in vars(metric)]
    for metric in changed:
        vars(metric)["result"] = _result(metric)
    try:
        yield
    finally:
        for metric in changed:
            del vars(metric)["result"]


def _result(metric):
    original = metric.result

    def result():
        try:
            values = tf.nest.map_structure(as_float, original())
        except tf.errors.OperatorNotAllowedInGraphError as error:
            raise ValueError(
                "Expected a metric whose result can be compiled. Received: the metric "
                f"{metric.name!r}, whose result() takes a tensor for a Python number or bool, at "
                "which keras.Model.fit stops too. Use keras.ops.where or keras.ops.cond instead."
            ) from error
        predicate = _predicate(metric)
        if predicate is None:
            return values
        nowhere = predicate(metric)
        return tf.nest.map_structure(lambda value: _where(nowhere, value), values)

    return result


def as_float(value):
    """A metric's value (a tensor, a Keras variable, a number) as a float32 tensor."""
    return tf.cast(keras.ops.convert_to_tensor(value), tf.float32)


def _predicate(metric):
    """The row of the table; none for a metric whose result is the user's own."""
    owner = next(kind for kind in type(metric).__mro__ if "result" in vars(kind))
    if not owner.__module__.startswith("keras."):
        return None
    return next((_UNDEFINED[kind] for kind in type(metric).__mro__ if kind in _UNDEFINED), None)


def _where(undefined, value):
    """NaN by entry where the two have one shape, else everywhere if any entry is undefined."""
    if undefined.shape != value.shape:
        undefined = tf.reduce_any(undefined)
    return tf.where(undefined, float("nan"), value)


def _zero(*states):
    """Whether states of counts sum to nothing, by entry."""
    return tf.add_n([keras.ops.convert_to_tensor(state) for state in states]) <= 0


def _positives(metric):
    return _zero(metric.true_positives, metric.false_negatives)


def _negatives(metric):
    return _zero(metric.true_negatives, metric.false_positives)


def _either(metric):
    return (_positives(metric) | _negatives(metric))[0]


def _auc(metric):
    undefined = _positives(metric)[0]
    if metric.curve.name != "PR":
        undefined |= _negatives(metric)[0]
    if metric.multi_label and metric.label_weights is not None:
        weights = tf.cast(metric.label_weights, tf.float32)
        undefined = (undefined & (weights != 0)) | (tf.reduce_sum(weights) == 0)
    return undefined


def _f_score(metric):
    if metric.average == "weighted":
        return tf.reduce_all(_zero(metric.intermediate_weights))
    return _zero(metric.true_positives, metric.false_positives, metric.false_negatives)


def _r2(metric):
    states = (metric.count, metric.sum, metric.squared_sum, metric.num_samples)
    count, total, squares, number = map(keras.ops.convert_to_tensor, states)
    variance = squares - tf.math.divide_no_nan(total * total, count)
    return variance <= _ROUNDING * (1.5 + number / 4096) * squares


def _iou(metric):
    table = keras.ops.convert_to_tensor(metric.total_cm)
    there = tf.reduce_sum(table, 0) + tf.reduce_sum(table, 1) > 0
    return ~tf.reduce_any(tf.gather(there, metric.target_class_ids))


_UNDEFINED = {
    keras.metrics.Mean: lambda m: keras.ops.convert_to_tensor(m.count) == 0,
    keras.metrics.Precision: lambda m: _zero(m.true_positives, m.false_positives),
    keras.metrics.Recall: _positives,
    keras.metrics.AUC: _auc,
    keras.metrics.PrecisionAtRecall: lambda m: _positives(m)[0],
    keras.metrics.RecallAtPrecision: lambda m: _positives(m)[0],
    keras.metrics.SensitivityAtSpecificity: _either,
    keras.metrics.SpecificityAtSensitivity: _either,
    keras.metrics.FBetaScore: _f_score,
    keras.metrics.R2Score: _r2,
    keras.metrics.IoU: _iou,
}
