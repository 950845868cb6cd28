"""Keras callbacks in a federated run: which can work, and how their state is kept.

A round is what callbacks call an epoch. Batches are inside a compiled loop, so the hooks of batches
are never called; a callback that lives by them is refused.
"""

import warnings

import keras
import numpy as np

_HOOKS = ("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end")
_UNCALLED = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
_UNCALLED += ("on_test_begin", "on_test_end", "on_test_batch_begin", "on_test_batch_end")
_REASONS = {
    "BackupAndRestore": "pass checkpoint_dir=… to fit, which also restores the server optimizer, "
    "the clients' states and the random streams",
    "TerminateOnNaN": "a client's NaN update is left out and counted in `dropped`, and a round in "
    "which all clients fail stops the run",
    "SwapEMAWeights": "the server optimizer keeps no moving average of the weights",
    "OrbaxCheckpoint": "it saves the state of the optimizer that callbacks see, which is the "
    "server's; use ModelCheckpoint, or checkpoint_dir=… of fit",
    "ProgbarLogger": "fit shows its own progress; see `verbose`",
}


def check_callbacks(callbacks):
    """The callbacks, one or a nest of them, as a list; each can work in a federated run.

    Warns of hooks that will not be called, which many loggers define beside others.

    Raises:
        ValueError: One is no Keras callback, or works by training batches.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = [] if callbacks is None else keras.tree.flatten(callbacks)  # as Keras does
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                f"Expected keras.callbacks.Callback objects. Received: callbacks holds {callback!r}"
            )
        reason = _refusal(callback)
        if reason:
            raise ValueError(
                f"{type(callback).__name__} cannot work in a federated run: {reason}. "
                f"Received: {type(callback).__name__} in callbacks."
            )
        if uncalled := _overridden(callback, _UNCALLED):
            warnings.warn(
                f"{type(callback).__name__} defines {', '.join(uncalled)}, which will not be "
                "called: local batches and validation run inside compiled loops. Its other hooks "
                "are called, a round being an epoch.",
                stacklevel=3,
            )
    return callbacks


def _refusal(callback):
    for kind in type(callback).__mro__:
        if kind.__name__ in _REASONS and kind.__module__.startswith("keras."):
            return _REASONS[kind.__name__]
    if isinstance(callback, keras.callbacks.TensorBoard):
        per_batch = callback.update_freq != "epoch" or callback._should_trace
        return "with update_freq or profile_batch it needs batches" if per_batch else None
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        return None if callback.save_freq == "epoch" else 'it needs save_freq="epoch"'
    uncalled = _overridden(callback, _UNCALLED)
    if uncalled and not _overridden(callback, _HOOKS):
        return f"it uses {uncalled[0]} alone, and local batches run inside a compiled loop"
    return None


def without_undefined(callback):
    """The callback; one of Keras's that takes the best of a value, such that it never sees NaN.

    Keras takes the first value as the best, and nothing is better than NaN.
    """
    chooses = hasattr(callback, "monitor_op") and getattr(callback, "save_best_only", True)
    return _Defined(callback) if chooses else callback


class _Defined(keras.callbacks.Callback):
    """Shows a callback what it monitors only where that is defined."""

    def __init__(self, callback):
        super().__init__()
        self._shown = callback
        self._told = False

    def set_params(self, params):
        self._shown.set_params(params)

    def set_model(self, model):
        self._shown.set_model(model)

    def on_train_begin(self, logs=None):
        self._shown.on_train_begin(logs)

    def on_train_end(self, logs=None):
        self._shown.on_train_end(logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._shown.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        name = self._shown.monitor
        value = (logs or {}).get(name)
        if value is None or np.ndim(value) or not np.isnan(value):
            self._shown.on_epoch_end(epoch, logs)
            return
        if not self._told:
            self._told = True
            warnings.warn(
                f"{name} is undefined in round {epoch + 1}. {type(self._shown).__name__} passes "
                "over such rounds.",
                stacklevel=2,
            )
        if isinstance(self._shown, keras.callbacks.ModelCheckpoint):
            return  # it would save without a value
        del logs[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's, that there is no such value
            self._shown.on_epoch_end(epoch, logs)
        logs[name] = value
def _overridden(callback, hooks):
    """Those of the hooks that are the callback's own; Keras's own callbacks need no word."""
    found = []
    for hook in hooks:
        own = getattr(callback, hook)
        own = getattr(own, "__func__", own)
        if own is not getattr(keras.callbacks.Callback, hook):
            found.append((hook, getattr(own, "__module__", None) or ""))
    return [hook for hook, module in found if not module.startswith("keras.")]


class Snapshot:
    """The attributes of callbacks that change during a run (EarlyStopping's `wait`, say).

    Taken when training begins; `capture` gives what has changed since, for a checkpoint, and
    `restore` puts it back into callbacks that have begun anew.
    """

    def __init__(self, callbacks):
        self._callbacks = callbacks
        self._first = [_attributes(callback) for callback in callbacks]

    def capture(self):
        """`(values, arrays)`: JSON-able changed values, and arrays they refer to by number."""
        values, arrays = [], []
        for callback, first in zip(self._callbacks, self._first, strict=True):
            changed = {}
            for name, value in _attributes(callback).items():
                if name in first and _same(first[name], value):
                    continue
                if _is_arrays(value):
                    changed[name] = {"arrays": [len(arrays), len(arrays) + len(value)]}
                    arrays.extend(value)
                else:
                    changed[name] = {"value": value}
            values.append([type(callback).__name__, changed])
        return values, arrays

    def restore(self, values, arrays):
        """Puts captured values back; callbacks of another kind or number begin anew."""
        for callback, (kind, changed) in zip(self._callbacks, values, strict=False):
            if type(callback).__name__ != kind:
                continue
            for name, held in changed.items():
                value = held["value"] if "value" in held else arrays[slice(*held["arrays"])]
                setattr(callback, name, value)


def _attributes(callback):
    found = {}
    for name, value in vars(callback).items():
        if isinstance(value, np.generic):
            value = value.item()
        if name != "params" and (_is_arrays(value) or _is_plain(value)):
            found[name] = list(value) if isinstance(value, list) else value
    return found


def _is_arrays(value):
    return isinstance(value, list) and bool(value) and all(isinstance(v, np.ndarray) for v in value)


def _is_plain(value):
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def _same(a, b):
    return type(a) is type(b) and not _is_arrays(b) and a == b
