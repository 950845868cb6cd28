"""Where each metric of Keras is undefined, beside scikit-learn's formulas on the same clients."""

import keras
import numpy as np
import pytest
from sklearn import metrics as sk

import tffed
from tffed.evaluation import Evaluator
from tffed.model import from_keras

M = keras.metrics
SIZES = (1, 2, 3, 5, 1, 2, 4, 12)


def clients_of(y, p):
    """Clients of the sizes above; the model hands on what it is given, so p is what it predicts."""
    ends = np.cumsum((0, *SIZES))
    parts = zip(ends, ends[1:], strict=False)
    return tffed.data.from_dict({k: (p[a:b], y[a:b]) for k, (a, b) in enumerate(parts)})


def evaluated(metrics, y, p):
    """The `ClientEvaluation` of predictions p by a model that is the identity."""
    identity = keras.layers.EinsumDense("ab,b->ab", output_shape=(p.shape[1],))
    model = keras.Sequential([keras.Input(p.shape[1:]), identity])
    identity.set_weights([np.ones(p.shape[1], np.float32)])
    pure = from_keras(model, "mse", metrics=list(metrics.values()))
    return Evaluator(pure).clients(
        pure.init(),
        clients_of(y, p),
        list(range(len(SIZES))),
        personal=lambda weights, state: weights,
        states=lambda ids: np.zeros(len(ids), np.float32),
    )


def check(metrics, y, p, witness, tolerance=1e-5):
    """Compares each metric by client with `witness[name](y, p)`, which is NaN where undefined."""
    found, clients = evaluated(metrics, y, p), clients_of(y, p)
    for name in metrics:
        expected = np.array([witness[name](*clients[k][::-1]) for k in clients.ids], np.float64)
        assert np.isnan(expected).any() and not np.isnan(expected).all(), name
        np.testing.assert_allclose(
            found.metrics[name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )
        whole = np.sum(np.isnan(expected), 0)
        assert found.undefined[name] == whole.tolist(), name
        middle = np.nanpercentile(expected, 50, axis=0)
        np.testing.assert_allclose(found.percentiles()[name][50], middle, atol=tolerance)


def binary_data():
    rng = np.random.default_rng(2)
    y = (rng.random(sum(SIZES)) < 0.4).astype(np.float32)[:, None]
    # Of twelve levels between Keras's thresholds, so that its curve is the exact one.
    p = (rng.integers(0, 12, y.shape) + 0.5).astype(np.float32) / 12
    return y, p


def both(y):
    return 0 < y.sum() < len(y)


def at(y, p, value, of, reach):
    """The best of one rate at thresholds where another reaches a value."""
    if not y.sum() or ("specificity" in (of, reach) and y.all()):
        return np.nan
    found = [0.0]
    for threshold in np.linspace(0, 1, 200):
        hit = p > threshold
        true = (hit & (y == 1)).sum()
        rates = {
            "sensitivity": true / y.sum(),
            "specificity": (~hit & (y == 0)).sum() / max((y == 0).sum(), 1),
            "precision": true / max(hit.sum(), 1),
        }
        found.append(rates[of] if rates[reach] >= value else 0.0)
    return max(found)


def test_binary_metrics():
    y, p = binary_data()
    metrics = {
        "roc": M.AUC(name="roc"),
        "gain": M.AUC(curve="PRGAIN", name="gain"),
        "pr": M.AUC(curve="PR", summation_method="minoring", name="pr"),
        "precision": M.Precision(name="precision"),
        "recall": M.Recall(name="recall"),
        "several": M.Precision(thresholds=[0.1, 0.5, 0.9], name="several"),
        "sensitivity": M.SensitivityAtSpecificity(0.6, name="sensitivity"),
        "specificity": M.SpecificityAtSensitivity(0.6, name="specificity"),
        "precision_at": M.PrecisionAtRecall(0.6, name="precision_at"),
        "recall_at": M.RecallAtPrecision(0.6, name="recall_at"),
    }
    nan = {"zero_division": np.nan}
    witness = {
        "roc": lambda y, p: sk.roc_auc_score(y, p) if both(y) else np.nan,
        "precision": lambda y, p: sk.precision_score(y, p > 0.5, **nan),
        "recall": lambda y, p: sk.recall_score(y, p > 0.5, **nan),
        "several": lambda y, p: [sk.precision_score(y, p > t, **nan) for t in (0.1, 0.5, 0.9)],
        "sensitivity": lambda y, p: at(y, p, 0.6, "sensitivity", "specificity"),
        "specificity": lambda y, p: at(y, p, 0.6, "specificity", "sensitivity"),
        "precision_at": lambda y, p: at(y, p, 0.6, "precision", "sensitivity"),
        "recall_at": lambda y, p: at(y, p, 0.6, "sensitivity", "precision"),
    }
    chosen = {name: metrics[name] for name in witness}
    check(chosen, y, p, witness)
    curves = evaluated({name: metrics[name] for name in ("gain", "pr")}, y, p)
    parts = clients_of(y, p)
    labels = [parts[k][1] for k in parts.ids]
    assert np.isnan(curves.metrics["gain"]).tolist() == [not both(y) for y in labels]
    assert np.isnan(curves.metrics["pr"]).tolist() == [not y.any() for y in labels]


def class_data():
    rng = np.random.default_rng(3)
    one_hot = np.eye(4, dtype=np.float32)
    y, p = one_hot[rng.integers(0, 4, sum(SIZES))], rng.random((sum(SIZES), 4)).astype(np.float32)
    return y, p


def f_scores(y, p, average=None):
    y, p = y.argmax(1), p.argmax(1)
    given = {"labels": range(4), "zero_division": np.nan}
    scores = sk.fbeta_score(y, p, beta=2.0, average=None, **given)
    if average == "macro":  # scikit-learn leaves undefined classes out, we say so
        return scores.mean()
    return scores


def ious(y, p, classes):
    y, p = y.argmax(1), p.argmax(1)
    there = [c for c in classes if c in y or c in p]
    found = [np.sum((y == c) & (p == c)) / np.sum((y == c) | (p == c)) for c in there]
    return np.mean(found) if found else np.nan


def multi_auc(y, p):
    if not all(both(column) for column in y.T):
        return np.nan
    return sk.roc_auc_score(y, p, average="macro")


def test_metrics_of_classes():
    y, p = class_data()
    metrics = {
        "f": M.FBetaScore(beta=2.0, name="f"),
        "macro": M.FBetaScore(beta=2.0, average="macro", name="macro"),
        "iou": M.OneHotIoU(4, [1], name="iou"),
    }
    witness = {
        "f": f_scores,
        "macro": lambda y, p: f_scores(y, p, "macro"),
        "iou": lambda y, p: ious(y, p, [1]),
    }
    check(metrics, y, p, witness)
    p = (np.floor(p * 12) + 0.5).astype(np.float32) / 12
    check({"auc": M.AUC(multi_label=True, name="auc")}, y, p, {"auc": multi_auc}, 1e-4)


def r2(y, p):
    y, p = y.astype(np.float64), p.astype(np.float64)
    constant = np.ptp(y, 0) == 0
    scores = sk.r2_score(y, p, multioutput="raw_values") if len(y) > 1 else np.full(2, np.nan)
    return np.where(constant, np.nan, scores)


def test_r2_of_targets_that_do_not_differ():
    rng = np.random.default_rng(4)
    y = rng.normal(size=(sum(SIZES), 2)).astype(np.float32)
    y[3:6, 1] = 0.1  # a client whose second output is constant: its sums in float32 are not exact
    p = rng.normal(size=y.shape).astype(np.float32)
    metrics = {
        "r2": M.R2Score(class_aggregation=None, name="r2"),
        "mean": M.R2Score(name="mean"),
    }
    check(metrics, y, p, {"r2": r2, "mean": lambda y, p: r2(y, p).mean()})


@pytest.mark.parametrize("value", [0.0, 123.4567])
def test_r2_of_many_equal_targets_is_undefined(value):
    y = np.full((3000, 1), value, np.float32)
    p = np.random.default_rng(0).normal(size=y.shape).astype(np.float32)
    assert np.isnan(pooled(M.R2Score(), y, p))
    y[0] += 1.0 + abs(value)
    expected = sk.r2_score(y.astype(np.float64), p)
    assert pooled(M.R2Score(), y, p) == pytest.approx(expected, rel=2e-2)


def pooled(metric, y, p, *weight):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.ones((1, 1)), np.zeros(1)])
    pure = from_keras(model, "mse", weighted_metrics=[metric])
    return Evaluator(pure).pooled(pure.init(), (p, y, *weight))[metric.name]


@pytest.mark.parametrize(
    "metric", [M.MeanAbsoluteError(), M.RootMeanSquaredError(), M.BinaryAccuracy(), M.R2Score()]
)
def test_a_mean_whose_weights_are_all_zero_is_undefined(metric):
    y, p = binary_data()
    assert np.isnan(pooled(metric, y, p, np.zeros(len(y), np.float32)))
    assert not np.isnan(pooled(type(metric)(), y, p, np.ones(len(y), np.float32)))


def test_counts_are_always_defined():
    p = np.full((4, 1), 0.2, np.float32)
    assert pooled(M.TruePositives(), np.zeros_like(p), p) == 0.0
    assert pooled(M.TrueNegatives(), np.zeros_like(p), p) == 4.0
