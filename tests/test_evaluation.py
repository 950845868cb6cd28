"""Evaluation pooled and by client, what is left out of it, and what validation reads."""

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss

import tffed
from tests.shell import LOSS, blobs, classifier, compiled
from tffed.data.client_data import ResidentClientData
from tffed.evaluation import Evaluator, validation_sample
from tffed.model import from_keras

M = keras.metrics


def linear(units=1, activation=None):
    keras.utils.set_random_seed(1)
    last = keras.layers.Dense(units, activation)
    return keras.Sequential([keras.Input((4,)), last])


def federated(model, loss="mse", **arguments):
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=10), seed=3)
    fed.compile(keras.optimizers.SGD(1e-12), loss=loss, jit_compile=False, **arguments)
    return fed


def numbers(rows, columns=1, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def found(counts, values):
    return tffed.ClientEvaluation(list(range(len(counts))), np.array(counts), values, {})


def test_percentiles_and_means_by_entry_leave_out_what_is_undefined():
    nan = np.nan
    f1 = np.array([[0.0, 1.0], [0.2, nan], [nan, nan]])
    evaluation = found([5, 5, 0], {"f1": f1, "auc": np.array([nan, nan, 0.5]), "loss": np.ones(3)})
    middle = evaluation.percentiles((50,))
    np.testing.assert_allclose(middle["f1"][50], [0.1, 1.0])
    assert middle["auc"][50] == 0.5 and middle["loss"][50] == 1.0
    np.testing.assert_allclose(evaluation.mean()["f1"], [0.1, 1.0])
    assert evaluation.mean()["auc"] == 0.5
    assert evaluation.undefined == {"f1": [1, 2], "auc": 2}
    assert "1 of 3 clients without examples" in repr(evaluation)
    assert "auc undefined for 2 of 3 clients" in repr(evaluation)


def test_what_no_client_defines_is_nan():
    evaluation = found([2, 2], {"auc": np.full(2, np.nan)})
    assert np.isnan(evaluation.mean()["auc"]) and np.isnan(evaluation.percentiles()["auc"][10])


def test_a_client_without_examples_is_counted_and_passed_over():
    (x, y), fed = blobs(9), compiled()
    clients = ResidentClientData((x, y), ["a", "b", "c"], np.arange(9), np.array([4, 0, 5]))
    evaluation = fed.evaluate(clients)
    assert np.isnan(evaluation.metrics["loss"][1]) and np.isnan(evaluation.metrics["accuracy"][1])
    assert evaluation.pooled == pytest.approx(fed.evaluate(x, y), rel=1e-6)
    assert evaluation.mean()["loss"] == pytest.approx(evaluation.metrics["loss"][[0, 2]].mean())
    assert evaluation.sizes.tolist() == [4, 0, 5]
    assert np.isnan(fed.evaluate(clients, ids=["b"]).pooled["loss"])


def test_a_round_of_no_clients_has_no_loss(capsys):
    class Nobody(tffed.data.Uniform):
        def sample(self, clients, *, seed, round):
            return []

    history = compiled().fit({0: blobs(8)}, sampler=Nobody(1), verbose=2).history
    assert np.isnan(history["loss"][0]) and np.isnan(history["accuracy"][0])
    assert history["clients"] == [0.0] and "loss undefined" in capsys.readouterr().out


def test_class_weights_weigh_training_alone():
    x, y = blobs(30)
    weigh = {0: 1.0, 1: 4.0}
    fed = federated(classifier(), LOSS, class_weight=weigh, weighted_metrics=["accuracy"])
    expected = fed.model.evaluate(x, y, verbose=0, return_dict=True)
    assert fed.evaluate(x, y) == pytest.approx(expected, rel=1e-5)
    history = fed.fit({0: (x, y)}, validation_data=(x, y), verbose=0).history
    assert history["val_loss"][0] == pytest.approx(expected["loss"], rel=1e-5)
    p = fed.model.predict(x, verbose=0).astype(np.float64)
    p = np.exp(p) / np.exp(p).sum(1, keepdims=True)
    own = np.where(y == 1, 4.0, 1.0)
    weighted = log_loss(y, p, sample_weight=own) * own.mean()
    assert history["loss"][0] == pytest.approx(weighted, rel=1e-5)


def test_a_loss_that_divides_by_its_weights_is_pooled_by_them():
    x, y, w = numbers(600, 4), numbers(600, seed=1), np.geomspace(0.01, 10, 600, dtype=np.float32)
    model = linear()  # Federated refuses such a loss in training
    pure = from_keras(model, keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"))
    evaluator = Evaluator(pure)
    errors = np.square(model.predict(x, verbose=0) - y)[:, 0]
    expected = np.average(errors.astype(np.float64), weights=w)
    pooled = evaluator.pooled(pure.init(), (x, y, w))["loss"]  # 3 batches
    assert pooled == pytest.approx(expected, rel=1e-5)
    unweighted = (x[:5], y[:5], np.zeros(5, np.float32))
    assert np.isnan(evaluator.pooled(pure.init(), unweighted)["loss"])


def masked(ignore=None):
    ids = np.random.default_rng(4).integers(1, 9, (300, 6)).astype(np.int32)
    lengths = 1 + np.arange(300) // 60
    ids[np.arange(6) >= lengths[:, None]] = 0
    labels = np.random.default_rng(5).integers(0, 3, (300, 6))
    labels[150:, 1:] = 1  # the class that is ignored
    keras.utils.set_random_seed(1)
    embed = keras.layers.Embedding(9, 3, mask_zero=ignore is None)
    model = keras.Sequential([keras.Input((6,), dtype="int32"), embed, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore)
    return federated(model, loss, metrics=["accuracy"]), ids, labels


@pytest.mark.parametrize("ignore", [None, 1], ids=["a mask", "an ignored class"])
def test_a_masked_loss_does_not_depend_on_batches(ignore):
    fed, x, y = masked(ignore)
    whole = fed.model.evaluate(x, y, batch_size=300, verbose=0, return_dict=True)
    parts = fed.model.evaluate(x, y, batch_size=256, verbose=0, return_dict=True)
    assert abs(whole["loss"] - parts["loss"]) > 1e-5 * whole["loss"]  # Keras's own does
    assert fed.evaluate(x, y) == pytest.approx(whole, rel=2e-6)
    clients = tffed.data.from_dict({0: (x[:40], y[:40]), 1: (x[40:], y[40:])})
    assert fed.evaluate(clients).pooled == pytest.approx(whole, rel=2e-6)


def two_outputs(form):
    keras.utils.set_random_seed(1)
    x = keras.Input((4,))
    outputs = [keras.layers.Dense(3, name="kind", kernel_regularizer="l2")(x)]
    outputs.append(keras.layers.Dense(1, name="age")(x))
    if form == "list":
        return keras.Model(x, outputs), ["mse", "mae"], [0.5, 3.0], ("a", "b")
    loss, weigh = {"kind": "mse", "age": "mae"}, {"kind": 0.5, "age": 3.0}
    return keras.Model(x, outputs), loss, weigh, loss.keys()


@pytest.mark.parametrize("form", ["list", "dict"])
def test_losses_by_output_add_up_and_equal_keras(form):
    model, loss, weigh, names = two_outputs(form)
    x, targets = numbers(40, 4), (numbers(40, 3, seed=1), numbers(40, 1, seed=2))
    y = targets if form == "list" else dict(zip(names, targets, strict=True))
    metrics = {"kind": ["mae"], "age": [M.R2Score()]}
    fed = federated(model, loss, loss_weights=weigh, metrics=metrics)
    expected = model.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
    assert {"kind_loss", "age_loss", "kind_mae"} < set(expected)
    actual = fed.evaluate(x, y)
    assert actual == pytest.approx(expected, rel=1e-5)
    added = 0.5 * actual["kind_loss"] + 3.0 * actual["age_loss"] + float(sum(model.losses))
    assert actual["loss"] == pytest.approx(added, rel=1e-5)
    y = list(y) if form == "list" else y
    cut = {k: (x[c], _cut(y, c)) for k, c in enumerate((slice(0, 10), slice(10, 40)))}
    clients = tffed.data.from_dict(cut)
    assert fed.evaluate(clients).pooled == pytest.approx(expected, rel=1e-5)
    history = fed.fit(clients, verbose=0).history
    assert {k: history[k][0] for k in expected} == pytest.approx(expected, rel=1e-5)


def _cut(y, rows):
    return {k: v[rows] for k, v in y.items()} if isinstance(y, dict) else tuple(v[rows] for v in y)


def test_outputs_with_masks_of_their_own_add_up_over_batches():
    keras.utils.set_random_seed(1)
    ids = keras.Input((6,), dtype="int32")
    steps = keras.layers.Embedding(9, 3, mask_zero=True)(ids)
    named = {"all": keras.layers.Dense(1)(keras.layers.Flatten()(ids * 1.0))}
    named["word"] = keras.layers.Dense(2)(steps)
    model = keras.Model(ids, named)
    weigh = {"all": 2.0, "word": 0.3}
    fed = federated(model, {"all": "mae", "word": "mse"}, loss_weights=weigh)
    _, x, _ = masked()
    y = {"all": numbers(300), "word": numbers(1800, 2).reshape(300, 6, 2)}
    whole = model.evaluate(x, y, batch_size=300, verbose=0, return_dict=True)
    assert fed.evaluate(x, y) == pytest.approx(whole, rel=1e-5)  # 256 and 44


def test_several_losses_of_one_output_are_refused():
    fed = federated(linear(), ["mse", "mae"])
    with pytest.raises(ValueError, match="one loss for a model with one output.*Received"):
        fed.evaluate(numbers(4, 4), numbers(4))


def lazily(count, read):
    def client(i):
        read.append(i)
        return blobs(4, i)

    return tffed.data.from_function(range(count), client)


def fit_on(clients, fed=None, rounds=1, **arguments):
    fed = fed or compiled(tffed.fed_avg())
    return fed.fit({0: blobs(8)}, rounds, validation_data=clients, verbose=0, **arguments)


def test_a_large_population_is_sampled_once_by_the_seed():
    clients = tffed.data.from_function(range(2000), blobs)
    with pytest.warns(UserWarning, match="fixed sample of 100 of the 2000 clients"):
        ids = validation_sample(clients, None, 3)
    assert len(set(ids)) == 100 and ids == sorted(ids)
    assert ids == validation_sample(clients, 100, 3) != validation_sample(clients, 100, 4)
    assert validation_sample(clients.subset(range(100)), None, 3) == list(range(100))


def test_validation_reads_the_same_sample_in_each_round_and_after_a_resume(tmp_path):
    read, resumed, fed = [], [], compiled(tffed.fed_avg())
    chosen = {"validation_clients": 7, "checkpoint_dir": tmp_path}
    fit_on(lazily(2000, read), fed, 2, **chosen)
    first, *sample = read  # the first client tells what the data are like
    assert first == 0
    assert len(sample) == 2 * 7 and sample[:7] == sample[7:] and len(set(sample)) == 7
    fed = compiled(tffed.fed_avg())
    fit_on(lazily(2000, resumed), fed, 3, **chosen)
    assert resumed == read[:8]
    history = fit_on(lazily(2000, read), fed, validation_clients=[5, 3]).history
    assert read[-2:] == [5, 3] and "val_accuracy_p10" in history


@pytest.mark.parametrize("whom", [0, 31, [], "some", True, 2.0])
def test_wrong_validation_clients(whom):
    with pytest.raises(ValueError, match="from 1 to the 30 clients.*Received"):
        fit_on(lazily(30, []), validation_clients=whom)


def test_validation_clients_without_a_population_and_unknown_ones():
    with pytest.raises(ValueError, match="only where validation_data are clients"):
        fit_on(blobs(5), validation_clients=3)
    with pytest.raises(KeyError, match="99"):
        fit_on(lazily(30, []), validation_clients=[1, 99])


def test_arguments_of_evaluate_that_do_not_go_together():
    fed, (x, y) = compiled(), blobs(8)
    clients = tffed.data.from_dict({0: (x, y)})
    with pytest.raises(ValueError, match="at least one client.*Received: ids=.*Leave ids out"):
        fed.evaluate(clients, ids=[])
    for arguments in ((x, y, None, {"ids": [0]}), (clients, y, None, {}), (clients, None, y, {})):
        with pytest.raises(ValueError, match="Expected evaluate.*Received"):
            fed.evaluate(*arguments[:3], **arguments[3])


def monitors(path):
    up = {"monitor": "val_auc", "mode": "max"}
    stop = keras.callbacks.EarlyStopping(patience=0, restore_best_weights=True, **up)
    keep = keras.callbacks.ModelCheckpoint(path / "best.keras", save_best_only=True, **up)
    return stop, keep, keras.callbacks.ReduceLROnPlateau(patience=0, cooldown=9, **up)


def test_monitors_pass_over_what_is_undefined(tmp_path):
    x, y = blobs(12)
    y = y[:, None].astype(np.float32)
    one_class = x[y[:, 0] == 1], y[y[:, 0] == 1]
    fed = federated(linear(1, "sigmoid"), "binary_crossentropy", metrics=[M.AUC(name="auc")])
    stop, keep, reduce = monitors(tmp_path)
    every = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", "val_auc", mode="max")
    with pytest.warns(UserWarning, match="val_auc is undefined in round 1.*EarlyStopping passes"):
        history = fed.fit(
            {0: (x, y)},
            rounds=3,
            validation_data=one_class,
            callbacks=[stop, keep, reduce, every],
            verbose=0,
        )
    assert np.isnan(history.history["val_auc"]).tolist() == [True] * 3
    assert stop.best is None and stop.stopped_epoch == 0 and keep.best is None
    assert history.history["learning_rate"] == [1.0] * 3 and (tmp_path / "3.keras").exists()
    assert not (tmp_path / "best.keras").exists()
    fed.fit({0: (x, y)}, rounds=1, validation_data=(x, y), callbacks=[keep], verbose=0)
    assert keep.best == fed.evaluate(x, y)["auc"] and (tmp_path / "best.keras").exists()


def test_validation_says_for_how_many_clients_a_metric_is_undefined():
    x, y = blobs(12)
    y = y[:, None].astype(np.float32)
    parts = {"both": (x, y)} | {k: (x[y[:, 0] == k], y[y[:, 0] == k]) for k in (0, 1)}
    fed = federated(linear(1, "sigmoid"), "binary_crossentropy", metrics=[M.AUC(name="auc")])
    population = tffed.data.from_dict(parts)
    with pytest.warns(UserWarning, match="auc undefined for 2 of 3 clients"):
        history = fed.fit({0: (x, y)}, rounds=2, validation_data=population, verbose=0).history
    defined = fed.evaluate(x, y)["auc"]
    assert history["val_auc_p10"] == pytest.approx([defined] * 2, rel=1e-6)
    evaluation = fed.evaluate(population)
    np.testing.assert_array_equal(np.isnan(evaluation.metrics["auc"]), [False, True, True])
    assert evaluation.undefined == {"auc": 2}
