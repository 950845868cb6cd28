"""Gradient inversion: what a server can see of the examples behind an update."""

import math

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.arguments import positive_integer
from tffed.extras import require
from tffed.local import dense
from tffed.model import from_keras

_DISTANCES = ("squared", "cosine")


def invert(
    model,
    gradient,
    shape,
    labels=None,
    *,
    weights=None,
    loss=None,
    steps=300,
    distance="squared",
    bounds=None,
    restarts=1,
    seed=0,
):
    """Recovers the inputs of a batch from its gradient (Zhu et al. 2019, "deep leakage").

    Looks for inputs x' whose own gradient g(x') is that observed: minimises, by L-BFGS,
    ‖g(x') - g‖² / ‖g‖², or 1 - cos(g(x'), g), which a clipped gradient does not hinder (Geiping et
    al. 2020). Labels that are not given are read off the gradient first (`infer_labels`).

    An update of `fed_sgd` is the negative of the gradient.

    Args:
        model: A built `keras.Model` with integer labels, whose activations have second derivatives.
        gradient: Flat sequence of arrays like the model's trainable weights.
        shape: Shape of the inputs, with the number of examples first.
        labels: Integers `[N]`, or None.
        weights: `ModelWeights` at which the gradient was taken; by default those of the model.
        loss: A Keras loss; by default the model is compiled with one.
        steps: Most steps of the optimizer.
        distance: `"squared"` or `"cosine"`.
        bounds: `(smallest, largest)` value of an input, if the attacker knows them.
        restarts: Starts from so many random inputs; the closest one's end is returned.
        seed: Of the random inputs.

    Returns:
        `(x, history)`: float32 inputs of `shape`, in no particular order, and the distance after
        each step.

    Raises:
        ValueError: The gradient is not like the weights, or an argument is outside its range.
    """
    positive_integer("steps", steps)
    positive_integer("restarts", restarts)
    if distance not in _DISTANCES:
        raise ValueError(f"`distance` must be one of {_DISTANCES}. Received: distance={distance!r}")
    functional = from_keras(model, loss)
    weights = functional.init() if weights is None else weights
    observed = tuple(tf.constant(np.asarray(g), tf.float32) for g in gradient)
    wanted = [tuple(w.shape) for w in weights.trainable]
    if [tuple(g.shape) for g in observed] != wanted:
        raise ValueError(
            f"Expected a gradient of the shapes of the trainable weights, {wanted}. Received: "
            f"{[tuple(g.shape) for g in observed]}."
        )
    labels = infer_labels(observed, shape[0]) if labels is None else labels
    objective = _objective(functional, weights, observed, shape, labels, distance)
    rng = np.random.default_rng(seed)
    low, high = bounds or (0.0, 1.0)
    starts = [rng.uniform(low, high, shape) for _ in range(restarts)]
    found = [_minimise(objective, start, steps, bounds) for start in starts]
    x, history = min(found, key=lambda pair: pair[1][-1])
    return x.reshape(shape).astype(np.float32), history


def infer_labels(gradient, examples):
    """The labels behind a classifier's gradient (iDLG, Zhao et al. 2020).

    The gradient of the last bias is the mean over the examples of p - onehot(y): for one example
    the only negative entry is its label, exactly. For several, the labels are taken off one by one,
    each worth (1 - 1/K) / N; that is a guess, good while predictions are near uniform.

    Args:
        gradient: Flat sequence of arrays; the last is that of the last layer's bias, `[K]`, or of
            its kernel `[inputs, K]`, if its inputs are not negative.
        examples: Their number N.

    Returns:
        Integer labels `[N]`, ascending.

    Raises:
        ValueError: The last array is of neither kind.
    """
    last = np.asarray(gradient[-1], np.float64)
    if last.ndim not in (1, 2):
        raise ValueError(
            "Expected the gradient of a dense last layer. Received: a last array of shape "
            f"{last.shape}. Pass labels=…"
        )
    left = last.copy() if last.ndim == 1 else last.sum(0)
    worth = (1 - 1 / len(left)) / examples
    if last.ndim == 2:  # of unknown scale: as if one label alone were behind it
        worth *= np.maximum(-left, 0).sum()
    labels = []
    for _ in range(examples):
        labels.append(int(left.argmin()))
        left[labels[-1]] += worth
    return np.sort(labels)


def dense_input(kernel_gradient, bias_gradient):
    """The input of a dense layer from the gradient of one example, exactly.

    With z = x W + b: ∂L/∂W = x (∂L/∂z)ᵀ and ∂L/∂b = ∂L/∂z, so x is any column of the one over the
    entry of the other; the largest entry is taken. Of several examples it is a weighted mean.

    Args:
        kernel_gradient: `[inputs, units]`.
        bias_gradient: `[units]`.

    Returns:
        The input `[inputs]`.

    Raises:
        ValueError: The bias's gradient is zero.
    """
    kernel, bias = np.asarray(kernel_gradient), np.asarray(bias_gradient)
    unit = np.abs(bias).argmax()
    if bias[unit] == 0:
        raise ValueError(
            "Expected a gradient that is not zero: no unit was active. Received: bias_gradient=0."
        )
    return kernel[:, unit] / bias[unit]


def figure(path, originals, reconstructions):
    """Draws the originals and, below them, what a server could see.

    Args:
        path: File to write, its format by its ending; or None.
        originals: Images `[N, height, width]`, `[N, height, width, 1]` or with 3 channels, in
            [0, 1].
        reconstructions: `{name: images of the same shape}`, a row each; values outside [0, 1] are
            cut off. A name may have several lines.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Shapes differ.
    """
    rows = {"Original": originals, **reconstructions}
    for name, images in rows.items():
        if np.shape(images) != np.shape(originals) or np.ndim(images) not in (3, 4):
            raise ValueError(
                f"Expected images like the originals. Received: {name!r} of shape "
                f"{np.shape(images)}, originals of shape {np.shape(originals)}."
            )
    columns = len(originals)
    size = (1.9 + 1.05 * columns, 1.1 * len(rows))
    drawn = require("matplotlib.figure", "plot").Figure(size, layout="constrained")
    grid = drawn.subplots(len(rows), columns, squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        for place, image in zip(axes, np.asarray(images), strict=True):
            place.imshow(np.clip(image, 0, 1), cmap="gray_r", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
            place.spines[:].set_color("#bbbbbb")
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    if path is not None:
        drawn.savefig(path, dpi=120)
    return drawn


def _objective(model, weights, observed, shape, labels, distance):
    """`(flat x) -> (distance, its gradient)` in float64, as SciPy wants them."""
    labels, seed = tf.constant(np.asarray(labels)), random.seed(0)
    target, norm = tree.pack(observed)[0], tree.global_norm(observed)

    @tf.function(autograph=False)
    def value(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            grads, _, _ = model.grad(weights, (tf.reshape(x, shape), labels), seed)
            grads = dense(grads, weights.trainable)
            own = tree.pack(grads)[0]
            if distance == "squared":
                far = tf.reduce_sum(tf.square(own - target)) / norm**2
            else:
                far = 1 - tf.reduce_sum(own * target) / (tf.norm(own) * norm)
        return far, tape.gradient(far, x)

    def evaluate(x):
        far, slope = value(tf.constant(x, tf.float32))
        return float(far), slope.numpy().astype(np.float64)

    return evaluate


def _minimise(objective, start, steps, bounds):
    """`(x, distance by step)`; a start from which the distance is not a number ends at once."""
    optimize = require("scipy.optimize", "data")
    history = [objective(start.ravel())[0]]
    if not math.isfinite(history[0]):
        return start, [math.inf]
    done = optimize.minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=None if bounds is None else [bounds] * start.size,
        callback=lambda intermediate_result: history.append(float(intermediate_result.fun)),
        options={"maxiter": steps, "maxfun": 4 * steps, "ftol": 1e-14, "gtol": 1e-12},
    )
    return done.x, history
