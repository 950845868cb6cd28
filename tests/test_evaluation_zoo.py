"""Every metric of Keras: pooled, by client and in training, beside Keras's own evaluation."""

import inspect

import keras
import numpy as np
import pytest

import tffed

M = keras.metrics
SIZES = (9, 4, 14, 5)
ROWS = sum(SIZES)
BATCH = 8


class Recorded(keras.layers.Layer):
    """Metrics inside a layer: a mean and a sum of what passes."""

    def __init__(self):
        super().__init__()
        self.kept = M.Mean(name="averaged"), M.Sum(name="summed")
        self.mean, self.sum = self.kept

    def call(self, x):
        rows = keras.ops.mean(x, -1)
        self.mean.update_state(rows)
        self.sum.update_state(rows)
        return x


def error(y_true, y_pred):
    """A user's function, by example."""
    return keras.ops.max(keras.ops.abs(y_true - y_pred), -1)


def binary():
    yield from (M.AUC(curve=curve, name=curve) for curve in ("ROC", "PR", "PRGAIN"))
    yield from (kind() for kind in (M.Precision, M.Recall, M.BinaryIoU, M.Hinge, M.SquaredHinge))
    yield M.Precision(thresholds=[0.3, 0.6], name="several")
    yield from (M.SensitivityAtSpecificity(0.5), M.SpecificityAtSensitivity(0.5))
    yield from (M.PrecisionAtRecall(0.5), M.RecallAtPrecision(0.5))
    yield from (M.TruePositives(), M.TrueNegatives(), M.FalsePositives(), M.FalseNegatives())
    yield from (M.BinaryAccuracy(), M.BinaryCrossentropy(), M.Accuracy(), M.Poisson(), error)


def categorical():
    yield from (M.CategoricalAccuracy(), M.TopKCategoricalAccuracy(2), M.CategoricalHinge())
    yield from (M.CategoricalCrossentropy(), M.KLDivergence(), M.F1Score())
    yield from (M.F1Score(average=a, name=a) for a in ("macro", "micro", "weighted"))
    yield from (M.FBetaScore(beta=2.0), M.OneHotIoU(3, [0, 2]), M.OneHotMeanIoU(3))
    yield from (M.AUC(multi_label=True, name="auc"), M.Precision(class_id=1), M.Recall(top_k=2))


def sparse():
    yield from (M.SparseCategoricalAccuracy(), M.SparseTopKCategoricalAccuracy(2))
    yield from (M.SparseCategoricalCrossentropy(from_logits=True), "accuracy")
    yield from (M.MeanIoU(3, sparse_y_pred=False), M.IoU(3, [2], sparse_y_pred=False))


def regression():
    yield from (M.MeanSquaredError(), M.RootMeanSquaredError(), M.MeanAbsoluteError())
    yield from (M.MeanAbsolutePercentageError(), M.MeanSquaredLogarithmicError(), M.LogCoshError())
    yield from (M.CosineSimilarity(), M.PearsonCorrelation(), M.ConcordanceCorrelation())
    yield from (M.R2Score(), M.R2Score(class_aggregation=None, name="by_output"))


KINDS = {
    "binary": (binary, 1, "sigmoid", "binary_crossentropy"),
    "categorical": (categorical, 3, "softmax", "categorical_crossentropy"),
    "sparse": (sparse, 3, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "regression": (regression, 3, None, "mse"),
}


def examples(kind):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    classes = rng.integers(0, 3, ROWS)
    targets = {
        "binary": (classes > 0)[:, None].astype(np.float32),
        "categorical": np.eye(3, dtype=np.float32)[classes],
        "sparse": classes,
        "regression": rng.normal(size=(ROWS, 3)).astype(np.float32),
    }
    return x, targets[kind]


def population(x, y):
    ends = np.cumsum((0, *SIZES))
    return {k: (x[a:b], y[a:b]) for k, (a, b) in enumerate(zip(ends, ends[1:], strict=False))}


def federation(kind):
    metrics, units, activation, loss = KINDS[kind]
    keras.utils.set_random_seed(5)
    middle = [Recorded()] if kind == "regression" else []
    last = keras.layers.Dense(units, activation)
    model = keras.Sequential([keras.Input((4,)), *middle, last])
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=BATCH), seed=1)
    # XLA, with padded batches, compiles the fewest; the others run as a graph, which is sooner.
    jit = kind == "sparse"
    fed.compile(keras.optimizers.SGD(1e-12), loss=loss, metrics=list(metrics()), jit_compile=jit)
    return fed


def same(actual, expected, where):
    assert set(expected) <= set(actual), where
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=2e-5, atol=2e-6, err_msg=f"{name} {where}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_all_metrics_equal_keras(kind):
    fed, (x, y) = federation(kind), examples(kind)
    clients = tffed.data.from_dict(population(x, y))
    expected = fed.model.evaluate(x, y, verbose=0, return_dict=True)
    same(fed.evaluate(x, y), expected, "pooled")
    found = fed.evaluate(clients)
    same(found.pooled, expected, "pooled over clients")
    for k, client in enumerate(clients.ids[:2]):
        own = fed.model.evaluate(*clients[client], verbose=0, return_dict=True)
        rows = {name: values[k] for name, values in found.metrics.items()}
        defined = {n: np.where(np.isnan(rows[n]), np.nan, own[n]) for n in own}
        same(rows, defined, f"of client {client}")
    history = fed.fit(clients, rounds=1, verbose=0).history
    same({name: history[name][0] for name in expected}, expected, "in training")


def test_the_zoo_holds_all_of_keras():
    used = {type(m).__name__ for make, *_ in KINDS.values() for m in make()} | {"Mean", "Sum"}
    kinds = {name for name, kind in vars(M).items() if inspect.isclass(kind)}
    assert kinds - used == {"Metric", "MeanMetricWrapper"}  # bases; `error` becomes a wrapper
