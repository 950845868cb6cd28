"""After `fit` the model has the optimizer that its user gave it, and its files go on sensibly."""

import keras
import numpy as np
import pytest

import tffed
from tests.shell import LOSS, blobs, classifier, compiled, population

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def fitted(model, *used, recipe=None, rounds=2, rates=(0.1, 1.0)):
    fed = tffed.Federated(model, recipe or tffed.fed_avg(batch_size=8), seed=3)
    client = {} if recipe else {"client_optimizer": SGD(rates[0])}
    fed.compile(server_optimizer=SGD(rates[1]), loss=LOSS, jit_compile=False, **client)
    fed.fit(population(), rounds=rounds, callbacks=list(used), verbose=0)
    return fed


def moved(model, optimizer):
    """Whether two steps of `fit` from the model are those of Keras with such an optimizer."""
    x, y = blobs(20, 7)
    witness = classifier()
    witness.set_weights(model.get_weights())
    witness.compile(optimizer, LOSS)
    for one in (witness, model):
        one.fit(x, y, batch_size=10, shuffle=False, verbose=0)
    pairs = zip(model.get_weights(), witness.get_weights(), strict=True)
    return all(np.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_a_model_that_came_without_gets_the_client_optimizer_and_goes_on(tmp_path):
    fed = fitted(classifier())
    assert fed.model.optimizer is fed.client_optimizer
    fed.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.1)
    assert moved(loaded, SGD(0.1)) and moved(fed.model, SGD(0.1))


def test_the_user_s_own_optimizer_comes_back_even_after_an_error(tmp_path):
    model = classifier()
    model.compile(Adam(0.002), LOSS)
    own, seen = model.optimizer, []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.optimizer)
            self.model.save(tmp_path / "round.keras")
            if epoch == 1:
                raise KeyboardInterrupt

    save = keras.callbacks.ModelCheckpoint(tmp_path / "checkpoint.keras")
    with pytest.raises(KeyboardInterrupt):
        fitted(model, save, Look(), rounds=3)
    assert model.optimizer is own and all(float(one.learning_rate) == 1.0 for one in seen)
    for name in ("round", "checkpoint"):
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        assert isinstance(loaded.optimizer, Adam)
        assert float(loaded.optimizer.learning_rate) == pytest.approx(0.002)
        assert moved(loaded, Adam(0.002))


def test_fed_sgd_leaves_the_server_s_optimizer_and_a_second_compile_the_second():
    fed = fitted(classifier(), recipe=tffed.fed_sgd(), rates=(0.0, 0.3))
    assert fed.model.optimizer is fed.server_optimizer
    again = fitted(fed.model, rates=(0.05, 1.0))
    assert again.model.optimizer is again.client_optimizer


def test_a_schedule_of_the_clients_is_said_to_start_again_in_each_round():
    falling = keras.optimizers.schedules.ExponentialDecay(0.1, 30, 0.5)
    with pytest.warns(UserWarning, match="ExponentialDecay.*starts again in each round") as told:
        compiled(client_optimizer=SGD(falling))
    assert len([w for w in told if "schedule" in str(w.message)]) == 1
