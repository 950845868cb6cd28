"""Which metrics of users are taken: additivity is tried, results of any form are reported."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tffed.evaluation import Evaluator
from tffed.model import from_keras

M, ops = keras.metrics, keras.ops


class Own(M.Metric):
    """A user's metric with one state and a rule for it."""

    def __init__(self, rule, name="own"):
        super().__init__(name=name)
        self.rule = rule
        self.kept = self.add_variable(shape=(), initializer="zeros", name="kept")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.kept.assign(self.rule(self.kept, y_true, y_pred))

    def result(self):
        return self.kept


def error(y, p):
    return ops.abs(y - ops.cast(p, y.dtype))


NOT_ADDITIVE = {
    "maximum": lambda s, y, p: ops.maximum(s, ops.max(error(y, p))),
    "minimum": lambda s, y, p: ops.minimum(s, ops.min(p)),
    "moving average": lambda s, y, p: 0.9 * s + 0.1 * ops.mean(p),
    "slow average": lambda s, y, p: 0.9999 * s + 0.0001 * ops.mean(p),
    "last batch": lambda s, y, p: ops.mean(error(y, p)),
    "running mean": lambda s, y, p: 0.5 * (s + ops.mean(p)),
    "root of squares": lambda s, y, p: ops.sqrt(s * s + ops.sum(ops.square(p))),
}
ADDITIVE = {
    "sum": lambda s, y, p: s + ops.sum(error(y, p)),
    "count of rows": lambda s, y, p: s + ops.cast(ops.shape(p)[0], "float32"),
}
# (units, activation, loss, targets)
KINDS = {
    "regression": (1, None, "mse", np.float32),
    "binary": (1, "sigmoid", "binary_crossentropy", np.float32),
    "softmax": (3, "softmax", "categorical_crossentropy", np.float32),
    "labels": (3, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), np.int64),
}


def model_of(kind="regression", layers=()):
    units, activation, loss, dtype = KINDS[kind]
    keras.utils.set_random_seed(1)
    last = keras.layers.Dense(units, activation, kernel_initializer="zeros")
    y = np.zeros((6, 1 if kind == "labels" else units), dtype)
    return keras.Sequential([keras.Input((2,)), *layers, last]), loss, y


def tried(metrics, kind="regression", layers=(), model=None):
    made, loss, y = model_of(kind, layers)
    pure = from_keras(model or made, loss, metrics=metrics)
    pure.zeros((np.zeros((6, 2), np.float32), y))
    return pure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", NOT_ADDITIVE)
def test_states_that_do_not_add_up_are_refused_by_name(rule, kind):
    def own(state, y, p):
        return NOT_ADDITIVE[rule](state, ops.cast(y, "float32"), p)

    with pytest.raises(ValueError, match="add up.*Received: the metric 'own'.*fed.predict"):
        tried([Own(own)], kind)


@pytest.mark.parametrize("rule", ADDITIVE)
def test_states_that_add_up_are_taken(rule):
    tried([Own(ADDITIVE[rule])])


def test_metrics_in_layers_and_in_overrides_are_tried():
    class Watch(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.metric = Own(lambda s, y, p: ops.maximum(s, ops.max(p)), "largest")

        def call(self, x):
            self.metric.update_state(None, x)
            return x

    with pytest.raises(ValueError, match="Received: the metric 'largest'"):
        tried(None, layers=[Watch()])

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.largest = Own(lambda s, y, p: ops.maximum(s, ops.max(p)), "largest")

        def call(self, x):
            return self.dense(x)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.largest.update_state(None, x)
            return super().compute_metrics(x, y, y_pred, sample_weight)

    model = Model()
    model(np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="Received: the metric 'largest'"):
        tried(["mae"], model=model)


def test_the_trial_leaves_no_trace():
    metric = Own(ADDITIVE["sum"])
    pure = tried([metric, "mae"])
    assert float(metric.kept.numpy()) == 0.0
    assert all(not np.any(s) for s in pure.zeros((np.zeros((6, 2)), np.zeros((6, 1)))))


def test_a_metric_without_variables_is_refused():
    class Listed(M.Metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            self.seen = [*getattr(self, "seen", []), 1]

        def result(self):
            return float(len(self.seen))

    with pytest.raises(ValueError, match="state is in variables.*Received: the metric 'listed'"):
        tried([Listed(name="listed")])


def test_a_function_of_a_whole_batch_is_told():
    def gap(y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred))

    with pytest.warns(UserWarning, match="The metric 'gap' gives each batch one value"):
        tried([gap])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried(["mae", M.R2Score(), M.CosineSimilarity()])


def test_names_that_rounds_report_and_values_of_no_metric_are_refused():
    with pytest.raises(ValueError, match="other names.*Received: a metric named 'clients'"):
        tried([Own(ADDITIVE["sum"], "clients")])
    with pytest.raises(ValueError, match="Received: a metric named 'loss'"):
        tried([Own(ADDITIVE["sum"], "loss")])

    class Model(keras.Sequential):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            found = super().compute_metrics(x, y, y_pred, sample_weight)
            return found | {"gap": ops.mean(y - y_pred)}

    model = Model([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="Received: 'gap', which no metric holds"):
        tried(["mae"], model=model)


def test_a_result_that_takes_tensors_for_numbers_is_named():
    pure = tried([M.R2Score(num_regressors=2, name="adjusted")])
    like = [tf.TensorSpec(s.shape, s.dtype) for s in pure.zeros((np.zeros((6, 2)), np.zeros(6)))]
    with pytest.raises(ValueError, match="can be compiled. Received: the metric 'adjusted'"):
        tf.function(lambda *sums: pure.report(sums), autograph=False).get_concrete_function(*like)


class Several(M.Metric):
    """A dictionary of a variable, a vector, another metric's result and a Python number."""

    def __init__(self):
        super().__init__(name="several")
        self.inner = M.MeanAbsoluteError()
        self.by_feature = self.add_variable((2,), "zeros", name="by_feature")
        self.largest = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.inner.update_state(y_true, y_pred)
        self.by_feature.assign_add(ops.sum(ops.concatenate([y_true, y_pred], -1), 0))
        self.largest.assign_add(ops.sum(y_true))

    def result(self):
        inner = {"own_mae": self.inner.result(), "constant": 2}
        return {"total": self.largest, "sums": self.by_feature} | inner


def test_results_of_any_form_have_keras_s_names_and_values():
    model, loss, _ = model_of()
    pure = from_keras(model, loss, metrics=[Several(), Own(ADDITIVE["sum"])])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)).astype("f4"), rng.normal(size=(300, 1)).astype("f4")
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    found = Evaluator(pure).pooled(pure.init(), (x, y))
    assert set(found) == set(expected) == {"loss", "own", "total", "sums", "own_mae", "constant"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    empty = pure.report(pure.zeros((x, y)))
    assert all(np.isnan(value).all() for value in empty.values())
