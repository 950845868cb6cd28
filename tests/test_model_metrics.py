"""Metrics, sample weights, class weights and BatchNorm statistics of the pure form."""

import operator

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import arrays, assert_close, assert_same_bits
from tests.test_model import CASES, ROWS, SPARSE, cnn, labels, mlp, numbers, pure, tensors
from tffed import random, tree


def pieces(batch, size=3):
    """Cuts a batch into batches of `size`, the last one smaller."""
    cuts = [slice(k, k + size) for k in range(0, ROWS, size)]
    return [tensors(tree.map(operator.itemgetter(cut), batch)) for cut in cuts]


def keras_report(model, batch, size=3):
    x, y, weight = (*batch, None)[:3]
    return model.evaluate(x, y, sample_weight=weight, batch_size=size, verbose=0, return_dict=True)


def one_hot(batch):
    return (batch[0], np.eye(3, dtype=np.float32)[batch[1]], *batch[2:])


METRICS = [
    # (case, arguments of compile, batch size)
    (
        CASES["weights"],
        lambda: {"metrics": ["accuracy"], "weighted_metrics": ["sparse_categorical_crossentropy"]},
        3,
    ),
    (CASES["regularizer"], lambda: {"metrics": ["accuracy"]}, 3),
    (CASES["regression"], lambda: {"metrics": ["mae", keras.metrics.RootMeanSquaredError()]}, 3),
    (
        CASES["outputs"],
        lambda: {"metrics": {"kind": ["accuracy"], "size": ["mse", keras.metrics.R2Score()]}},
        1,  # Keras averages the loss of one output over batches, whatever their sizes
    ),
]


@pytest.mark.parametrize("case, extra, size", METRICS)
def test_sums_over_batches_report_what_keras_evaluates(case, extra, size):
    make, batch, arguments = case
    model = make()
    functional, _, weights = pure(model, **arguments, **extra())
    parts = pieces(batch, size)
    total = functional.zeros(parts[0])
    for part in parts:
        total = tree.add(total, functional.evaluate(weights, part))
    expected = keras_report(model, batch, size)
    actual = functional.report(total)
    assert set(actual) == set(expected) and len(actual) > 1
    for name, value in expected.items():
        assert float(actual[name]) == pytest.approx(value, rel=1e-5), name


def test_counting_metrics_report_what_keras_evaluates():
    batch = one_hot(CASES["mlp"][1])
    model = mlp()
    functional, _, weights = pure(
        model,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.AUC(from_logits=True, name="auc"),
            keras.metrics.F1Score(name="f1"),
            keras.metrics.Precision(thresholds=0.0, name="precision"),
        ],
    )
    parts = [functional.evaluate(weights, part) for part in pieces(batch)]
    actual = functional.report(tf.nest.map_structure(lambda *s: tf.add_n(s), *parts))
    expected = keras_report(model, batch)
    assert_close(actual["auc"], expected["auc"], 1e-5)
    assert_close(actual["f1"], expected["f1"], 1e-5)
    assert_close(actual["precision"], expected["precision"], 1e-5)


def test_training_sums_count_like_evaluation_without_dropout():
    make, batch, _ = CASES["mlp"]
    _, grad, weights = pure(make(), metrics=["accuracy"])
    sums = [grad(weights, part, random.seed(1))[2] for part in pieces(batch)]
    model = make()
    model.compile(loss=SPARSE, metrics=["accuracy"])
    for variable, value in zip(model.trainable_variables, weights.trainable, strict=True):
        variable.assign(value)
    expected = keras_report(model, batch)
    total = [sum(column) for column in zip(*map(arrays, sums), strict=True)]
    assert total[0] / total[1] == pytest.approx(expected["loss"], rel=1e-5)
    assert total[-2] / total[-1] == pytest.approx(expected["accuracy"], rel=1e-5)


def test_metrics_leave_the_keras_model_alone():
    make, batch, _ = CASES["mlp"]
    model = make()
    functional, _, weights = pure(model, metrics=["accuracy"])
    functional.evaluate(weights, tensors(batch))
    assert all(not np.any(v.numpy()) for v in model.metrics_variables)


def test_a_metric_that_does_not_begin_at_zero_is_refused():
    class FromOne(keras.metrics.Mean):
        def reset_state(self):
            super().reset_state()
            self.total.assign(1.0)

        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(y_pred)

    functional, _, weights = pure(mlp(), metrics=[FromOne(name="odd")])
    with pytest.raises(ValueError, match="must begin at zero.*Received: .*odd"):
        functional.evaluate(weights, tensors(CASES["mlp"][1]))


@pytest.mark.parametrize("one_hot_labels", [False, True])
def test_class_weights_equal_keras(one_hot_labels):
    batch = (numbers(ROWS, 5), labels())
    loss = SPARSE
    if one_hot_labels:
        batch, loss = one_hot(batch), keras.losses.CategoricalCrossentropy(from_logits=True)
    model, class_weight = mlp(), {0: 3.0, 1: 0.5}  # class 2 has weight 1
    _, grad, weights = pure(model, loss=loss, class_weight=class_weight)
    grads, _, sums = grad(weights, tensors(batch), random.seed(1))
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss)
    value = model.train_on_batch(*batch, class_weight=class_weight)
    stepped = [w - g for w, g in zip(weights.trainable, grads, strict=True)]
    assert_close([v.value for v in model.trainable_variables], stepped, 1e-6)
    assert float(sums[0]) / ROWS == pytest.approx(float(value), rel=1e-5)


def test_class_weights_multiply_sample_weights():
    x, y, weight = CASES["weights"][1]
    class_weight = {0: 3.0, 2: 0.5}
    per_class = np.array([3.0, 1.0, 0.5], np.float32)[y]
    model = mlp()
    _, both, weights = pure(model, class_weight=class_weight)
    actual = both(weights, tensors((x, y, weight)), random.seed(1))[0]
    _, plain, _ = pure(model)
    expected = plain(weights, tensors((x, y, weight * per_class)), random.seed(1))[0]
    assert_close(actual, expected, 1e-6)


def test_statistics_equal_keras_after_a_step():
    model, batch = cnn(dropout=0.0), CASES["cnn"][1]
    _, grad, weights = pure(model)
    assert [w.shape for w in weights.non_trainable] == [(4,), (4,)]
    statistics = grad(weights, tensors(batch), random.seed(1))[1].non_trainable
    assert_same_bits(weights.non_trainable, [v.value for v in model.layers[1].variables[2:]])
    model.train_on_batch(*batch)
    assert_close(statistics, [v.value for v in model.layers[1].variables[2:]], 1e-6)
    assert float(tf.norm(statistics[0])) > 0.01


def test_evaluation_uses_the_statistics_given():
    model, batch = cnn(), CASES["cnn"][1]
    functional, _, weights = pure(model)
    moved = weights._replace(non_trainable=tuple(w + 0.7 for w in weights.non_trainable))
    functional.assign(moved)
    expected = keras_report(model, batch)["loss"]
    functional.assign(weights)
    actual = functional.report(functional.evaluate(moved, tensors(batch)))["loss"]
    assert float(actual) == pytest.approx(expected, rel=1e-5)
    assert abs(keras_report(model, batch)["loss"] - expected) > 1e-3


def test_frozen_batch_norm_neither_learns_nor_travels():
    model, batch = cnn(), tensors(CASES["cnn"][1])
    functional, grad, weights = pure(model, batch_norm="freeze")
    assert weights.non_trainable == () and not functional.local_statistics
    assert [w.shape for w in weights.trainable] == [(3, 3, 1, 4), (4,), (16, 3), (3,)]
    grads, _, _ = grad(weights, batch, random.seed(1))
    with tf.GradientTape() as tape:  # as in inference: the moving statistics normalise
        loss = SPARSE(batch[1], model(batch[0], training=False))
    assert_close(grads, tape.gradient(loss, model.trainable_variables), 1e-6)


def test_only_the_local_policy_keeps_statistics_on_clients():
    assert pure(cnn(), batch_norm="local")[0].local_statistics
    assert not pure(cnn(), batch_norm="average")[0].local_statistics


@pytest.mark.parametrize("name", ["empty", "clip_norm", "val_loss", "acc_p10", "val_acc"])
def test_a_metric_by_whose_name_another_number_goes_is_refused(name):
    model = mlp()
    metrics = [keras.metrics.SparseCategoricalAccuracy(name=n) for n in ("acc", name)]
    functional, _, weights = pure(model, metrics=metrics)
    with pytest.raises(ValueError, match=f"other names than.*Received: a metric named '{name}'"):
        functional.evaluate(weights, tensors(CASES["mlp"][1]))
