"""Keras callbacks in a federated run."""

import csv

import keras
import numpy as np
import pytest

import tffed
from tests.shell import LOSS, blobs, classifier, compiled, population, weights
from tffed.callbacks import Snapshot, check_callbacks

callbacks = keras.callbacks


def fit(fed, *used, rounds=4, **arguments):
    arguments = {"validation_data": blobs(30, 9), "verbose": 0} | arguments
    return fed.fit(population(), rounds=rounds, callbacks=list(used), **arguments)


def test_early_stopping_stops_and_restores_the_best_weights():
    fed, seen = compiled(client_optimizer=keras.optimizers.SGD(5.0)), []
    keep = callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(weights(fed)))
    stop = callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    history = fit(fed, keep, stop, rounds=30)
    losses = history.history["val_loss"]
    assert len(losses) == np.argmin(losses) + 3 < 30
    for a, b in zip(weights(fed), seen[np.argmin(losses)], strict=True):
        np.testing.assert_array_equal(a, b)
    # And the state to go on from is the restored one.
    for a, b in zip(fed.state.weights.trainable, weights(fed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_model_checkpoint_writes_the_round_s_model(tmp_path):
    fed = compiled()
    fit(fed, callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"), rounds=2)
    saved = keras.models.load_model(tmp_path / "2.keras")
    for a, b in zip(saved.get_weights(), weights(fed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "1.keras").exists()


def test_csv_logger_writes_a_row_a_round(tmp_path):
    history = fit(compiled(), callbacks.CSVLogger(tmp_path / "log.csv"), rounds=3)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(r["loss"]) for r in rows] == history.history["loss"]
    assert "bytes_up" in rows[0]


def test_tensorboard_writes_the_metrics_of_rounds(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorflow import make_ndarray

    history = fit(compiled(), callbacks.TensorBoard(tmp_path), rounds=3)
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    found = [float(make_ndarray(e.tensor_proto)) for e in events.Tensors("epoch_loss")]
    np.testing.assert_allclose(found, history.history["loss"], rtol=1e-6)
    assert "epoch_bytes_up" in events.Tags()["tensors"]


def test_reduce_lr_on_plateau_and_scheduler_act_on_the_server_optimizer():
    fed = compiled()
    fit(fed, callbacks.LearningRateScheduler(lambda round, rate: rate * 0.5), rounds=3)
    assert float(fed.state.optimizer.learning_rate) == 0.125
    still = compiled()
    reduce = callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, min_delta=100.0)
    fit(still, reduce, rounds=2)
    assert float(still.server_optimizer.learning_rate) == pytest.approx(0.1)


def test_a_model_that_came_compiled_keeps_its_loss_and_its_optimizer():
    model = classifier()
    model.compile("adam", loss=LOSS, metrics=["accuracy"])
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=8), seed=3)
    fed.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(1.0, momentum=0.5))
    history = fit(fed, callbacks.LearningRateScheduler(lambda round, rate: rate * 0.5), rounds=2)
    assert float(fed.state.optimizer.learning_rate) == 0.25
    assert isinstance(model.optimizer, keras.optimizers.Adam) and "accuracy" in history.history


def test_a_server_rate_of_zero_freezes_the_model():
    fed = compiled()
    before = weights(fed)
    fit(fed, callbacks.LearningRateScheduler(lambda round: 0.0), rounds=2)
    for a, b in zip(before, weights(fed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_callback_can_stop_training_and_set_weights():
    fed = compiled()

    class Reset(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([np.zeros_like(w) for w in self.model.get_weights()])
            self.model.stop_training = epoch == 1

    history = fit(fed, Reset())
    assert history.epoch == [0, 1]
    assert not any(w.any() for w in weights(fed))


def test_callbacks_are_taken_alone_nested_and_as_a_list_of_keras_s():
    class Counting(callbacks.Callback):
        rounds = 0

        def on_epoch_end(self, epoch, logs=None):
            self.rounds += 1

    fed, one, two = compiled(), Counting(), Counting()
    for given in (one, [one, [two]], callbacks.CallbackList([one, two]), ()):
        fed.fit(population(), callbacks=given, verbose=0)
    assert (one.rounds, two.rounds) == (3, 2)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda tmp: callbacks.BackupAndRestore(tmp), "checkpoint_dir"),
        (lambda tmp: callbacks.TerminateOnNaN(), "left out and counted"),
        (lambda tmp: callbacks.SwapEMAWeights(), "moving average"),
        (lambda tmp: callbacks.ProgbarLogger(), "verbose"),
        (lambda tmp: callbacks.ModelCheckpoint(tmp / "m.keras", save_freq=10), "save_freq"),
        (lambda tmp: callbacks.TensorBoard(tmp, update_freq="batch"), "needs batches"),
        (lambda tmp: callbacks.LambdaCallback(on_train_batch_end=print), "on_train_batch_end"),
    ],
)
def test_callbacks_that_cannot_work_are_refused_with_the_reason(tmp_path, callback, message):
    with pytest.raises(ValueError, match=message):
        fit(compiled(), callback(tmp_path))


def test_snapshot_takes_only_what_changed_and_puts_it_back():
    def begun():
        stop = callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True)
        stop.set_model(compiled().model)
        stop.on_train_begin()
        return stop

    first = begun()
    snapshot = Snapshot([first])
    first.on_epoch_end(0, {"loss": 1.0})
    first.on_epoch_end(1, {"loss": 2.0})
    values, arrays = snapshot.capture()
    kind, changed = values[0]
    assert kind == "EarlyStopping" and "patience" not in changed and changed["wait"]["value"] == 1
    second = begun()
    Snapshot([second]).restore(values, arrays)
    assert (second.wait, second.best, second.best_epoch) == (first.wait, 1.0, 0)
    for a, b in zip(first.best_weights, second.best_weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_history_is_the_user_s_view():
    fed = compiled()
    history = fit(fed, rounds=2)
    assert fed.history is history and isinstance(history, keras.callbacks.History)
    assert tffed.Federated is type(fed)


def zero(callback):
    callback.model.set_weights([np.zeros_like(w) for w in callback.model.get_weights()])


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_epoch_end"])
def test_weights_set_in_any_hook_are_those_that_are_trained(hook):
    # The witness is Keras: next to no step, so that the weights are those that were set.
    def ends(fit, model):
        kind = type("Zero", (callbacks.Callback,), {hook: lambda self, *_, **__: zero(self)})
        model.set_weights([np.ones_like(w) for w in model.get_weights()])
        fit(kind())
        return model.get_weights()

    still = keras.optimizers.SGD(1e-9)
    fed, plain = compiled(client_optimizer=still, jit_compile=False), classifier()
    plain.compile(keras.optimizers.SGD(1e-9), LOSS)
    mine = ends(lambda c: fed.fit(population(), rounds=2, callbacks=[c], verbose=0), fed.model)
    its = ends(lambda c: plain.fit(*blobs(20), epochs=2, callbacks=[c], verbose=0), plain)
    for a, b, c in zip(mine, its, fed.state.weights.trainable, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_epoch_end"])
def test_stop_training_stops_after_as_many_rounds_as_keras_after_epochs(hook):
    def stop(self, *_, **__):
        self.model.stop_training = True

    kind = type("Stop", (callbacks.Callback,), {hook: stop})
    plain = classifier()
    plain.compile("sgd", LOSS)
    expected = plain.fit(*blobs(20), epochs=3, callbacks=[kind()], verbose=0).epoch
    assert fit(compiled(jit_compile=False), kind(), rounds=3).epoch == expected == [0]


def test_a_stopped_run_stays_stopped_when_it_is_resumed(tmp_path):
    stop = callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(fed.model, "stop_training", True)
    )
    fed = compiled(jit_compile=False)
    first = fit(fed, stop, checkpoint_dir=tmp_path)
    fed = compiled(jit_compile=False)
    assert fit(fed, checkpoint_dir=tmp_path).epoch == first.epoch == [0]


def test_a_logger_with_batch_hooks_is_taken_with_a_word():
    class Log(callbacks.Callback):
        last = None

        def on_train_batch_end(self, batch, logs=None):
            raise AssertionError

        def on_test_end(self, logs=None):
            raise AssertionError

        def on_epoch_end(self, epoch, logs=None):
            self.last = logs["loss"]

    log = Log()
    with pytest.warns(UserWarning, match="Log defines on_train_batch_end, on_test_end, which will"):
        history = fit(compiled(jit_compile=False), log, rounds=1)
    assert log.last == history.history["loss"][0]


def test_keras_s_own_callbacks_are_taken_without_a_word(tmp_path, recwarn):
    used = [
        callbacks.CSVLogger(tmp_path / "log.csv"),
        callbacks.EarlyStopping("loss"),
        callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        callbacks.LearningRateScheduler(lambda epoch: 0.5),
        callbacks.ModelCheckpoint(tmp_path / "m.keras"),
        callbacks.ReduceLROnPlateau("loss"),
        callbacks.TensorBoard(tmp_path),
        callbacks.History(),
        callbacks.RemoteMonitor(),
    ]
    assert check_callbacks(used) == used and not recwarn.list
