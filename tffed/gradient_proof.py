"""A proof, on the model at hand, that its pure functions do what Keras's own step does."""

import functools
import warnings

import keras
import tensorflow as tf

from tffed import random, tree
from tffed.model_call import (
    call,
    drawing_from,
    example,
    first_rows,
    has_values,
    layers,
    seed_values,
)

_ROWS = 3
# Of the norm of what is compared, by the precision that a model computes in.
_CLOSE = {"float16": 0.1, "bfloat16": 0.2}
_CLOSE_OTHERWISE = 1e-3
_ROUNDING = 1e-5  # of the largest gradient: some are nothing else


def check_step(functions, model, state, given):
    """Compares gradient and changed variables of one step with those that Keras computes.

    Keras's are taken through the model's variables, by its own tape; what the call changes is put
    back. A warning says so if there is nothing to compare with: Keras cannot run the model on
    examples, gives no finite gradient, or another one each time.

    Args:
        functions: The `KerasFunctions` of the model.
        model: The Keras model.
        state: Its `CallState`.
        given: A batch `(x, y[, sample_weight])`, or its specs.

    Raises:
        ValueError: They differ.
    """
    run = _traced if any(isinstance(one, keras.layers.RNN) for one in layers(model)) else _eagerly
    for make in (first_rows, example, _ones) if has_values(given) else (example, _ones):
        batch = tree.map(lambda leaf, make=make: make(leaf, _ROWS), given)
        theirs = _of_keras(model, state, functions.weigh(batch), run)
        if theirs is not None:
            break
    else:
        return _warn(model, "it gives none on examples")
    weights = functions.begin(functions.init())
    scale = {"scale": 1.0} if functions.scaled else {}  # Keras's are taken without
    step = functools.partial(functions.grad, **scale)
    grads, after, _ = run(step, weights, batch, random.seed(0))
    ours = [*grads, *after.trainable, *after.non_trainable]
    variables = [*functions.variables, *functions.variables, *state.statistics, *state.counters]
    wrong = _differing(model, variables, ours, theirs)
    if not wrong:
        return None
    again = _of_keras(model, state, functions.weigh(batch), run)
    if again is None or _differing(model, variables, again, theirs):
        return _warn(model, "it draws numbers that no seed leads to, as tf.random and NumPy do")
    raise ValueError(
        "Expected a model whose gradients can be taken with tensors for its variables. Received: "
        f"{model.name!r}, whose step differs from Keras's own in {', '.join(wrong)}. "
        "tf.custom_gradient, tf.recompute_grad and keras.RematScope give no gradient to weights "
        "that are used inside of them: hand these over as arguments, or leave the function out."
    )


def _warn(model, why):
    warnings.warn(
        f"The step of {model.name!r} could not be held against Keras's own: {why}.", stacklevel=2
    )


def _eagerly(function, *arguments):
    return function(*arguments)


def _traced(function, *arguments):
    """Step by step, a loop of Keras's would take long."""
    traced = tf.function(lambda: function(*arguments), autograph=False)
    return traced.get_concrete_function()()


def _differing(model, variables, ours, theirs):
    """The paths of the variables of which two computations of a step differ."""
    dtypes = {getattr(layer, "compute_dtype", None) for layer in layers(model)}
    close = max(_CLOSE.get(dtype, _CLOSE_OTHERWISE) for dtype in dtypes)
    grads = theirs[: len(model.trainable_variables)]
    largest = max((_norm(g) for g in grads if g is not None), default=0.0)
    floors = [_ROUNDING * largest] * len(grads) + [_ROUNDING] * (len(theirs) - len(grads))
    compared = zip(variables, ours, theirs, floors, strict=True)
    return sorted({v.path for v, a, b, floor in compared if not _same(a, b, close, floor)})


def _of_keras(model, state, parts, run):
    """Gradients, then the variables after the call, as Keras computes them; None if it does not."""
    trained = model.trainable_variables
    changing = [*trained, *state.statistics, *state.counters]
    before = [
        (v, tf.identity(v.value)) for v in (*changing, *state.seeds, *model.metrics_variables)
    ]

    def gradient(x, y, sample_weight):
        with drawing_from(state.generator), tf.GradientTape() as tape:
            y_pred = call(model, x, training=True)
            loss = model._compute_loss(x, y, y_pred, sample_weight, training=True)
        return tape.gradient(loss, [v.value for v in trained])

    try:
        for variable, value in seed_values(state.seeds, random.seed(0)):
            variable.assign(value)
        grads = run(gradient, *parts)
        fine = tree.all_finite([g for g in grads if g is not None])
        return [*grads, *(tf.identity(v.value) for v in changing)] if fine else None
    except Exception:  # noqa: BLE001 - Keras itself cannot, or only with other data
        return None
    finally:
        for variable, value in before:
            variable.assign(value)


def _ones(spec, rows):
    numbers = tf.ones([rows, *(size or 4 for size in spec.shape[1:])], tf.int32)
    return (
        tf.strings.as_string(numbers) if spec.dtype == tf.string else tf.cast(numbers, spec.dtype)
    )


def _same(a, b, close, floor):
    if a is None or b is None:  # zeros and no gradient differ: Keras decays the former
        return a is b
    difference = tf.cast(tf.convert_to_tensor(a), tf.float64) - tf.cast(
        tf.convert_to_tensor(b), tf.float64
    )
    return _norm(difference) <= close * _norm(b) + floor


def _norm(value):
    return float(tf.norm(tf.cast(tf.convert_to_tensor(value), tf.float64)))
