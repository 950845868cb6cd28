"""Keras optimizers of any class, whose own code runs on tensors instead of variables."""

import keras
import tensorflow as tf

from tffed import random

_CLOSE = 1e-3


def copied_slots(optimizer, variables, head, start):
    """Which slots begin as copies of which variables (as those of ScheduleFreeAdamW do).

    Found with variables of other values, each of one of its own.
    """
    others = [
        keras.Variable(tf.fill(v.shape, tf.cast(k + 1.5, v.dtype)), name=v.name)
        for k, v in enumerate(variables)
    ]
    slots = [v.numpy() for v in stateless_copy(optimizer, others).variables[head:]]
    found = {}
    for place, (mine, other) in enumerate(zip(start, slots, strict=True)):
        if other.size and (mine.shape != other.shape or not (mine == other).all()):
            found[place] = round(float(other.flat[0]) - 1.5)
            if not (other == other.flat[0]).all() or found[place] not in range(len(variables)):
                raise ValueError(
                    "Expected an optimizer whose state begins with zeros, constants or the "
                    f"weights. Received: {type(optimizer).__name__}, some of whose slots are "
                    "computed from the weights. Use another optimizer."
                )
    return found


def stateless_copy(optimizer, variables):
    """A copy of a Keras optimizer whose `stateless_apply` works.

    Keras's base class can run on tensors through a `StatelessScope`; its TensorFlow class overrides
    the methods that write to variables. A class placed before that one in the method resolution
    order puts the base class's back.
    """
    from keras.src.backend.tensorflow.optimizer import TFOptimizer
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    restored = {
        name: getattr(BaseOptimizer, name)
        for name in vars(TFOptimizer)
        if callable(getattr(BaseOptimizer, name, None))
        and not name.startswith("__")
        and name != "_clip_by_norm"  # writes to nothing, and takes the slices of embeddings
    }
    base = type("_Stateless", (TFOptimizer,), restored)
    kind = type(optimizer)
    try:
        copy = type(kind.__name__, (kind, base), {}).from_config(optimizer.get_config())
    except TypeError as error:
        raise ValueError(
            f"Expected an optimizer that can be built from its get_config(). Received: "
            f"{kind.__name__}, which cannot: {error}. Give it a get_config with all its arguments."
        ) from error
    copy.exclude_from_weight_decay([v for v in variables if not optimizer._use_weight_decay(v)])
    copy.build(variables)
    return copy


def check_steps(optimizer, variables, init, step):
    """Holds two steps against those that the optimizer takes on variables.

    Args:
        optimizer: A Keras optimizer; left as it is.
        variables: The Keras variables to be optimised, for their shapes and values.
        init: `(params, learning_rate) -> state`, as in `tffed.optimizers.Optimizer`.
        step: `(state, params, grads) -> (state, params)`, too.

    Raises:
        ValueError: They differ, as where code reads through `variable.value` what it has changed.
    """
    theirs = [keras.Variable(v.numpy(), name=v.name, dtype=v.dtype) for v in variables]
    for own, variable in zip(theirs, variables, strict=True):
        own.constraint = variable.constraint
    stateful = type(optimizer).from_config(optimizer.get_config())
    pairs = zip(theirs, variables, strict=True)
    stateful.exclude_from_weight_decay([t for t, v in pairs if not optimizer._use_weight_decay(v)])
    params = tuple(tf.identity(v.value) for v in variables)
    state = init(params, None)
    for k in range(2):
        grads = [
            tf.cast(0.1 * random.normal(v.shape, random.fold_in(random.seed(j), k)), v.dtype)
            for j, v in enumerate(variables)
        ]
        stateful.apply(grads, theirs)
        state, params = step(state, params, tuple(grads))
    for ours, other, first in zip(params, theirs, variables, strict=True):
        moved = tf.norm(tf.cast(other.value - first.value, tf.float32))
        if not tf.norm(tf.cast(ours - other.value, tf.float32)) <= _CLOSE * moved + 1e-6:
            raise ValueError(
                "Expected an optimizer that takes the same steps on tensors as on variables. "
                f"Received: {type(optimizer).__name__}, which does not for {other.path}: it reads "
                "a variable again after changing it, perhaps. Use another optimizer."
            )
