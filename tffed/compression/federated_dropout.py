"""Federated dropout (Caldas et al. 2018, arXiv:1812.07210)."""

import math

import tensorflow as tf

from tffed import random
from tffed.aggregation.submodel import Submodel
from tffed.arguments import fraction
from tffed.compression.units import units


def federated_dropout(model, keep=0.75, *, rescale=True) -> Submodel:
    """Each client of each round trains a smaller model, and only that travels, down and up.

    Of the n units of each hidden Dense layer, or filters of a hidden convolution, a client has
    k = max(1, round(keep · n)), drawn uniformly without replacement from its seed of the round. Of
    a kernel with n of n' inputs and k of k' outputs the sub-matrix [n, k] travels, of its bias k
    numbers; the output layer has all its units. A kernel after Flatten loses the rows of all
    positions of a dropped filter. The client trains the smaller model, so operations and memory of
    its steps become fewer, too. Only where a frozen BatchNormalization lies between, with noise in
    the steps, and with optimizers other than SGD, Adam, AdamW, Adagrad and RMSprop it trains the
    whole one with zeros in place of dropped units and their gradients, which gives the same.

    The server takes the mean of each coordinate over the clients that had it (weighted as the
    reducer says); one that none had stays, whatever the server's optimizer does: momentum and decay
    wait for a round in which a client has it. Such a mean follows the clients' updates whatever
    their number. The unbiased one, the sum divided by the probability that a client has the
    coordinate, overshoots where many happen to have it.

    The global model sums over all n units, a client over k: to make up for that, the server
    multiplies kernels by n / k of their inputs on the way down (inverted dropout, in the weights)
    and divides the updates by it. So a client's step moves the global kernel (k / n)² times as far
    as inverted dropout of the activations would.

    Layers are to be frozen before; units that a frozen layer reads or makes are all kept.

    Args:
        model: The Keras model: Sequential, or functional with its layers in a chain; of Dense,
            convolutional (channels last) and, between them, elementwise, pooling and Flatten
            layers. What comes before the first of them may be anything.
        keep: The share of units to keep, in (0, 1].
        rescale: Whether weights make up for units that are missing; without, they are sent as
            they are.

    Returns:
        A `Submodel`: the first part of a `chain`.

    Raises:
        ValueError: The model is another, or `keep` is outside its range.
    """
    keep = fraction("keep", keep)
    sizes, cuts, frozen = units(model)
    kept = [max(1, math.floor(keep * size + 0.5)) for size in sizes]

    def choose(known, seed):
        del known
        parts = []
        for group, (size, count) in enumerate(zip(sizes, kept, strict=True)):
            order = random.shuffle(tf.range(size), random.fold_in(seed, group))
            # Where each unit is among those kept; beyond the last if it is not.
            parts.append((order[:count], tf.minimum(tf.argsort(order), count)))
        return tuple(parts)

    def take(parts, weights):
        _check(cuts, weights)
        return tuple(
            tf.reshape(_gathered(tf.reshape(w, cut.view), cut, parts), _small(cut, kept))
            for cut, w in zip(cuts, weights, strict=True)
        )

    def put(parts, value, like):
        del like
        found = []
        for cut, v in zip(cuts, value, strict=True):
            v = tf.reshape(v, _small_view(cut, kept))
            found.append(tf.reshape(_spread(v, cut, parts), cut.shape))
        return tuple(found)

    def like(like):
        _check(cuts, like)
        pairs = zip(cuts, like, strict=True)
        return tuple(tf.TensorSpec(_small(cut, kept), w.dtype) for cut, w in pairs)

    def scale(like):
        del like
        return tuple(_made_up_for(cut, sizes, kept) for cut in cuts) if rescale else None

    return Submodel(
        seed=random.part_seed,
        choose=choose,
        take=take,
        put=put,
        like=like,
        scale=scale,
        own=True,
        resized=not frozen,
        name=f"federated_dropout({keep}, rescale={rescale})",
    )


def _check(cuts, weights):
    shapes = [tuple(w.shape) for w in weights]
    if shapes != [cut.shape for cut in cuts]:
        raise ValueError(
            "Expected the model that federated_dropout was given, with the same layers frozen. "
            f"Received: trainable weights of the shapes {shapes}. Give it the model to be trained, "
            "after freezing."
        )


def _gathered(tensor, cut, parts):
    for axis, group in cut.groups.items():
        tensor = tf.gather(tensor, parts[group][0], axis=axis)
    return tensor


def _spread(tensor, cut, parts):
    for axis, group in cut.groups.items():
        room = [[0, int(a == axis)] for a in range(tensor.shape.rank)]
        tensor = tf.gather(tf.pad(tensor, room), parts[group][1], axis=axis)
    return tensor


def _small_view(cut, kept):
    return tuple(
        kept[cut.groups[axis]] if axis in cut.groups else n for axis, n in enumerate(cut.view)
    )


def _small(cut, kept):
    """The shape that the tensor has in the smaller model."""
    view = _small_view(cut, kept)
    if len(cut.view) == len(cut.shape):
        return view
    return (view[0] * view[1], *view[2:])


def _made_up_for(cut, sizes, kept):
    inside = [group for axis, group in cut.groups.items() if axis < len(cut.view) - 1]
    return math.prod(sizes[group] / kept[group] for group in inside)
