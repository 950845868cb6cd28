"""Keras optimizers as pure functions: (state, params, grads) -> (state, params).

Keras's own stateless form raises on the TensorFlow backend. SGD, Adam, AdamW, Adagrad and RMSprop
are written out here from their Keras configuration; any other runs its code on tensors instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from tffed import tree
from tffed.stateless_optimizer import check_steps, copied_slots, stateless_copy


class OptimizerState(NamedTuple):
    """What an optimizer carries from step to step.

    Attributes:
        iteration: int64 scalar, the steps done.
        learning_rate: float32 scalar; unused where the Keras optimizer has a schedule.
        slots: Flat tuple of the moments.
    """

    iteration: Any
    learning_rate: Any
    slots: tuple


class Optimizer(NamedTuple):
    """An optimizer as two pure functions.

    Attributes:
        init: `(params, learning_rate=None) -> OptimizerState`.
        step: `(state, params, grads) -> (state, params)`; flat tuples of tensors in Keras's order;
            an embedding's gradient may be `tf.IndexedSlices`. A parameter whose gradient is None
            stays as it is; the others end within their variables' constraints.
        learning_rate: The initial learning rate, or None where a schedule gives it.
        plain_sgd: True for gradient descent without momentum, decay, clipping, schedule or
            constraints, which some algorithms (SCAFFOLD) require.
        any_shape: Whether tensors may have other shapes than the variables it was made for.
    """

    init: Callable
    step: Callable
    learning_rate: float | None
    plain_sgd: bool = False
    any_shape: bool = True


def from_keras(optimizer, variables) -> Optimizer:
    """Builds the pure form of a Keras optimizer.

    Each step does what Keras does, in its order: clip the gradients (`clipnorm`, `clipvalue` or
    `global_clipnorm`), decay the weights, update, project onto the constraints. A schedule is a
    function of the steps done since `init`: on a client, since the round began.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, or a name such as `"adam"`. Left as it is.
        variables: The Keras variables that will be optimised, for shapes and for
            `exclude_from_weight_decay`.

    Returns:
        An `Optimizer`.

    Raises:
        ValueError: `optimizer` is no Keras optimizer, its learning rate is not positive, it uses
            `use_ema`, gradient accumulation or loss scaling, whose state is outside the step, or it
            takes other steps on tensors than on variables.
    """
    optimizer = get(optimizer)
    update = _NATIVE.get(type(optimizer))
    if update is None:
        return _adapted(optimizer, list(variables))
    decay = optimizer.weight_decay or 0.0
    decayed = [bool(decay) and optimizer._use_weight_decay(v) for v in variables]
    constraints = [getattr(v, "constraint", None) for v in variables]
    slots_of, update = update(optimizer)
    schedule, initial = _learning_rate(optimizer)

    plain = (
        type(optimizer) is keras.optimizers.SGD
        and schedule is None
        and not slots_of
        and not decay
        and optimizer.clipnorm is optimizer.clipvalue is optimizer.global_clipnorm is None
        and not any(constraints)
    )

    def init(params, learning_rate=None):
        rate = _rate(initial, learning_rate)
        slots = tuple(slot for make in slots_of for slot in tree.map(make, tuple(params)))
        return OptimizerState(tf.constant(0, tf.int64), rate, slots)

    def step(state, params, grads):
        rate = schedule(state.iteration) if schedule else state.learning_rate
        grads = _clip(optimizer, grads)
        columns = [state.slots[i :: len(params)] for i in range(len(params))]
        new = []
        rows = zip(params, grads, columns, decayed, constraints, strict=True)
        for param, grad, slots, decays, constraint in rows:
            if grad is None:
                new.append((param, slots))
                continue
            lr = tf.cast(rate, param.dtype)
            param = param - param * tf.cast(decay, param.dtype) * lr if decays else param
            grad, square = _dense(grad, param.dtype, keep=plain)
            param, slots = update(param, grad, square, slots, lr, state.iteration)
            new.append((param if constraint is None else _projected(constraint, param), slots))
        params = tuple(param for param, _ in new)
        slots = tuple(slots[k] for k in range(len(slots_of)) for _, slots in new)
        return OptimizerState(state.iteration + 1, state.learning_rate, slots), params

    any_shape = all(c is None or isinstance(c, keras.constraints.NonNeg) for c in constraints)
    return Optimizer(init, step, initial, plain, any_shape)


def _dense(grad, dtype, keep):
    """A gradient and its square, as Keras's optimizers see them; `keep` leaves slices as they are.

    Of a row of an embedding that comes up more than once in a batch they add up the gradients, and
    the squares: (Σ g)², as of a dense gradient, is not what Keras takes.
    """
    if not isinstance(grad, tf.IndexedSlices):
        grad = tf.cast(grad, dtype)
        return grad, lambda: tf.square(grad)
    if keep:
        return grad, None
    squares = tf.IndexedSlices(tf.square(grad.values), grad.indices, grad.dense_shape)
    dense = tf.cast(tf.convert_to_tensor(grad), dtype)
    return dense, lambda: tf.cast(tf.convert_to_tensor(squares), dtype)


def _projected(constraint, param):
    return tf.cast(constraint(param), param.dtype)


def get(optimizer):
    """The Keras optimizer of that name, or the one given, if a federated run can use it.

    Raises:
        ValueError: It cannot; see `from_keras`.
    """
    try:
        found = keras.optimizers.get(optimizer)
    except ValueError:
        found = None
    if not isinstance(found, keras.optimizers.Optimizer):
        raise ValueError(
            "Expected a keras.optimizers.Optimizer or the name of one, e.g. "
            f"keras.optimizers.SGD(0.1). Received: optimizer={optimizer!r}"
        )
    optimizer = found
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Pass the inner optimizer instead of a LossScaleOptimizer: from_keras scales the loss "
            f"of float16 models itself. Received: optimizer={optimizer.name!r}"
        )
    for option in ("use_ema", "gradient_accumulation_steps", "loss_scale_factor"):
        if getattr(optimizer, option):
            raise ValueError(
                f"`{option}` is not supported in federated training: it reaches outside the "
                f"optimizer's step. Received: {option}={getattr(optimizer, option)}. Build the "
                "optimizer without it."
            )
    _, rate = _learning_rate(optimizer)
    if rate is not None and not rate > 0:
        raise ValueError(
            f"The learning rate must be positive. Received: learning_rate={rate} "
            f"in {type(optimizer).__name__}."
        )
    return optimizer


def _learning_rate(optimizer):
    """(schedule or None, initial rate or None) of a Keras optimizer."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate, None
    if callable(rate) and not isinstance(rate, keras.Variable):
        return (lambda iteration: rate()), None
    return None, float(ops.convert_to_numpy(rate))


def _rate(initial, learning_rate):
    """The first learning rate: what is asked for, else the optimizer's, else (a schedule) 0."""
    rate = initial if learning_rate is None else learning_rate
    return tf.cast(0.0 if rate is None else rate, tf.float32)


def _clip(optimizer, grads):
    there = [g for g in grads if g is not None]
    clipped = iter(_clipped(optimizer, there))
    return tuple(None if g is None else next(clipped) for g in grads)


def _clipped(optimizer, grads):
    if optimizer.clipnorm:
        return tuple(tf.clip_by_norm(g, optimizer.clipnorm) for g in grads)
    if optimizer.global_clipnorm:
        clipped, _ = tf.clip_by_global_norm(list(grads), optimizer.global_clipnorm)
        return tuple(map(tf.convert_to_tensor, clipped))  # Keras adds up slices here
    if optimizer.clipvalue:
        bound = optimizer.clipvalue
        return tuple(tf.clip_by_value(g, -bound, bound) for g in grads)
    return grads


# Each native optimizer: a Keras optimizer -> (slot initialisers, update), where
# update(param, grad, square, slots, learning_rate, iteration) -> (param, slots), and square() is
# that of the gradient.


def _sgd(o):
    def update(param, grad, square, slots, lr, _):
        if isinstance(grad, tf.IndexedSlices):
            return tf.tensor_scatter_nd_sub(param, grad.indices[:, None], grad.values * lr), ()
        if not slots:
            return param - grad * lr, ()
        momentum = slots[0] * o.momentum - grad * lr
        step = momentum * o.momentum - grad * lr if o.nesterov else momentum
        return param + step, (momentum,)

    return ((tf.zeros_like,) if o.momentum else ()), update


def _adam(o):
    def update(param, grad, square, slots, lr, iteration):
        t = tf.cast(iteration + 1, param.dtype)
        correction = tf.sqrt(1 - tf.pow(tf.cast(o.beta_2, param.dtype), t))
        alpha = lr * correction / (1 - tf.pow(tf.cast(o.beta_1, param.dtype), t))
        m = slots[0] + (grad - slots[0]) * (1 - o.beta_1)
        v = slots[1] + (square() - slots[1]) * (1 - o.beta_2)
        hat = (tf.maximum(slots[2], v),) if o.amsgrad else ()
        root = tf.sqrt(hat[0] if hat else v)
        return param - m * alpha / (root + o.epsilon), (m, v, *hat)

    return (tf.zeros_like,) * (3 if o.amsgrad else 2), update


def _adagrad(o):
    def update(param, grad, square, slots, lr, _):
        accumulator = slots[0] + square()
        return param - lr * grad / tf.sqrt(accumulator + o.epsilon), (accumulator,)

    return (lambda p: tf.fill(tf.shape(p), tf.cast(o.initial_accumulator_value, p.dtype)),), update


def _rmsprop(o):
    def update(param, grad, square, slots, lr, _):
        slots = list(slots)
        velocity = o.rho * slots.pop(0) + (1 - o.rho) * square()
        new = [velocity]
        momentum = slots.pop(0) if o.momentum > 0 else None
        denominator = velocity + o.epsilon
        if o.centered:
            average = o.rho * slots.pop(0) + (1 - o.rho) * grad
            denominator = velocity - tf.square(average) + o.epsilon
        step = lr * grad / tf.sqrt(denominator)
        if momentum is not None:
            step = o.momentum * momentum + step
            new.append(step)
        return param - step, tuple(new + [average] if o.centered else new)

    return (tf.zeros_like,) * (1 + (o.momentum > 0) + bool(o.centered)), update


_NATIVE = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.AdamW: _adam,
    keras.optimizers.Adagrad: _adagrad,
    keras.optimizers.RMSprop: _rmsprop,
}


def _adapted(optimizer, variables) -> Optimizer:
    """Runs a Keras optimizer's own code on tensors."""
    stateless = stateless_copy(optimizer, variables)
    schedule, initial = _learning_rate(optimizer)
    head = 1 if schedule else 2
    start = [v.numpy() for v in stateless.variables[head:]]
    copies = copied_slots(optimizer, variables, head, start)

    def init(params, learning_rate=None):
        # The slots' first values were built with the variables, or are the parameters' own.
        slots = tuple(
            tf.cast(params[copies[k]], x.dtype) if k in copies else tf.constant(x)
            for k, x in enumerate(start)
        )
        return OptimizerState(tf.constant(0, tf.int64), _rate(initial, learning_rate), slots)

    def step(state, params, grads):
        counters = (state.iteration,) if schedule else (state.iteration, state.learning_rate)
        params, values = stateless.stateless_apply(
            [*counters, *state.slots], list(grads), list(params)
        )
        return OptimizerState(values[0], state.learning_rate, tuple(values[head:])), tuple(params)

    check_steps(optimizer, variables, init, step)
    return Optimizer(init, step, initial, any_shape=False)
