"""Whether the states of a model's metrics add up, found out by trying.

A federation adds metric states over batches and clients. That is right for sums and wrong for a
maximum, a moving average or a last value. So each metric is fed batches of random examples: one
after the other, and each alone. Where the states of the first differ from the sum of the others,
the metric is refused.
"""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tffed import tree

_SIZES = (3, 5)
_TOLERANCE = 2e-5  # above the rounding of float32, below what a slow moving average forgets
_TOLERANCE_OF_HALF = 1e-2


def check_additive(model, like, y_pred):
    """Tries whether the states of a model's metrics add up, outside of these states.

    Args:
        model: A compiled `keras.Model` whose metrics are built.
        like: `(x, y, sample_weight)` of `tf.TensorSpec` or None.
        y_pred: What the model predicts for one example.

    Raises:
        ValueError: The states of a metric do not add up, or it keeps none.
    """
    names = _names(model)
    if not names:
        return
    trial = _Trial(model, like, y_pred)
    for number, kind in enumerate(("own", "realistic", "wide")):
        try:
            unlike, by_batch = trial.run(np.random.default_rng(number), kind)
            if unlike:  # of sums that nearly cancel, rounding may show once
                again, _ = trial.run(np.random.default_rng([number, 1]), kind)
                unlike = [key for key in unlike if key in again]
        except Exception as error:  # a metric may take other targets only, which is Keras's to say
            if kind != "wide":
                _untried(sorted(set(names.values())), error)
            continue
        _refuse([names[key] for key in unlike if key in names])
        if kind == "realistic":
            _warn({names[key] for key in by_batch if key in names})


def _names(model):
    """`{id of a variable: name of its metric}` for all but Keras's trackers of losses."""
    losses = [model._loss_tracker, *getattr(model._compile_loss, "metrics", ())]
    found = {}
    for held in model.metrics:
        for metric in held.metrics if held is model._compile_metrics else [held]:
            if any(metric is loss for loss in losses):
                continue
            if not metric.variables:
                raise ValueError(
                    "Expected a metric whose state is in variables, so that it can travel. "
                    f"Received: the metric {metric.name!r}, which has none. Create its state with "
                    "self.add_variable(…) in __init__."
                )
            found |= {id(v): metric.name for v in metric.variables}
    return found


class _Trial:
    """Random batches, fed to a model's metrics; see `check_additive`."""

    def __init__(self, model, like, y_pred):
        self._model, self._like, self._pred = model, like, y_pred
        self._variables = model.metrics_variables

    def run(self, rng, kind):
        """Ids of variables whose states do not add up, and of those that depend on the batches.

        `kind`: the model's "own" predictions, "realistic" ones (probabilities where the model's
        are), or targets and predictions from a "wide" range.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._run(rng, kind)

    def _run(self, rng, kind):
        first, second = (self._batch(rng, size, kind) for size in _SIZES)
        empty = [tf.zeros(v.shape, v.dtype) for v in self._variables]
        alone = self._feed(empty, first)
        together = self._feed(alone, second)
        added = tree.add(alone, self._feed(empty, second))
        at_once = together
        if kind == "realistic":
            whole = tree.map(_joined, first, second)
            at_once = self._feed(empty, whole)
        return self._unlike(together, added), self._unlike(together, at_once)

    def _unlike(self, states, others):
        pairs = zip(self._variables, states, others, strict=True)
        return [id(variable) for variable, a, b in pairs if not _alike(a, b)]

    def _feed(self, states, batch):
        model, (x, y, weight, y_pred) = self._model, batch
        mapping = [(v, v.value) for v in model.trainable_variables]  # for regularizers
        mapping += zip(self._variables, states, strict=True)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            if y_pred is None:
                y_pred = model(x, training=False)
                model._compute_loss(x, y, y_pred, weight, training=False)
            model.compute_metrics(x, y, y_pred, weight)
        return [tf.convert_to_tensor(scope.get_current_value(v)) for v in self._variables]

    def _batch(self, rng, size, kind):
        x, y, weight = self._like
        x = tree.map(lambda leaf: _features(rng, size, leaf), x)
        weight = tree.map(lambda leaf: _weights(rng, size, leaf), weight)
        like = tf.nest.flatten(self._pred)
        targets = tf.nest.flatten(y)
        paired = like if len(like) == len(targets) else [None] * len(targets)
        pairs = zip(targets, paired, strict=True)
        targets = [_targets(rng, size, leaf, pred, kind) for leaf, pred in pairs]
        y, y_pred = tf.nest.pack_sequence_as(y, targets), None
        if kind != "own":
            y_pred = tree.map(lambda leaf: _predictions(rng, size, leaf, kind), self._pred)
        return x, y, weight, y_pred


def _alike(a, b):
    half = a.dtype in (tf.float16, tf.bfloat16)
    a, b = (np.asarray(s, np.float64) for s in (a, b))
    scale = max(np.abs(np.nan_to_num([a, b])).max(initial=0.0), 1e-6)
    atol = (_TOLERANCE_OF_HALF if half else _TOLERANCE) * scale
    return np.allclose(a, b, rtol=0.0, atol=atol, equal_nan=True)


def _joined(a, b):
    return None if a is None else tf.concat([a, b], 0)


def _shape(size, leaf):
    return (size, *(extent or 1 for extent in leaf.shape[1:]))


def _features(rng, size, leaf):
    shape = _shape(size, leaf)
    if not tf.as_dtype(leaf.dtype).is_floating:  # ids, which may have few legal values
        return tf.zeros(shape, leaf.dtype)
    return tf.constant(rng.normal(size=shape), leaf.dtype)


def _weights(rng, size, leaf):
    return None if leaf is None else tf.cast(rng.uniform(0.5, 2.0, _shape(size, leaf)), leaf.dtype)


def _targets(rng, size, leaf, pred, kind):
    """Classes for an output of several units, one-hot or as numbers; else zeros and ones."""
    shape, units = _shape(size, leaf), 1
    if pred is not None and pred.shape.rank:
        units = pred.shape[-1]
    if units > 1 and shape[-1:] == (units,) and len(shape) == pred.shape.rank:
        values = np.eye(units)[rng.integers(0, units, shape[:-1])]
    else:
        values = rng.integers(0, max(units, 2), shape)
    if kind == "wide" and tf.as_dtype(leaf.dtype).is_floating:
        values = _both_signs(rng, shape)
    return tf.cast(tf.constant(values), leaf.dtype)


def _both_signs(rng, shape):
    values = rng.normal(size=shape) * 3.0
    values[0], values[-1] = -np.abs(values[0]), np.abs(values[-1])
    return values


def _predictions(rng, size, leaf, kind):
    shape = _shape(size, leaf)
    if kind == "wide":
        values = _both_signs(rng, shape)
    else:
        values = rng.uniform(size=shape)
        if np.allclose(np.asarray(leaf, np.float64).sum(-1), 1.0, atol=1e-3):
            values /= values.sum(-1, keepdims=True)
    return tf.cast(tf.constant(values), leaf.dtype)


def _untried(names, error):
    warnings.warn(
        f"The metrics {names} could not be tried on random examples ({type(error).__name__}: "
        f"{error}). It is taken for granted that their states add up over batches and clients.",
        stacklevel=2,
    )


def _refuse(names):
    if names:
        raise ValueError(
            "Expected metrics whose states add up: they are added over batches and clients, which "
            "is right for sums and counts, and wrong for a maximum or a moving average. Received: "
            f"the metric {names[0]!r}, whose state after two batches is not the sum of the states "
            "of each. Leave it out of compile, and compute it from fed.predict(x)."
        )


def _warn(names):
    for name in sorted(names):
        warnings.warn(
            f"The metric {name!r} gives each batch one value, so its mean depends on how examples "
            "fall into batches and clients. Let it return one value for each example.",
            stacklevel=2,
        )
