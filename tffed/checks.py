"""Checks of data against a model, made before any training time is spent."""

import keras
import numpy as np
import tensorflow as tf

from tffed.arguments import integer_from
from tffed.data import ClientData, from_dict
from tffed.data.checks import as_examples


def check_inputs(model, spec):
    """Checks that clients' features have the shapes that the model's inputs expect.

    Args:
        model: A `keras.Model`; a subclassed one without `inputs` is checked when it is traced.
        spec: `(x, y[, sample_weight])` of `tf.TensorSpec`, as `ClientData.spec` gives.

    Raises:
        ValueError: A shape differs, or the number of inputs.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return
    leaves = tf.nest.flatten(spec[0])
    if len(leaves) != len(inputs):
        raise ValueError(
            f"The model {model.name!r} has {len(inputs)} inputs. Received: clients whose x has "
            f"{len(leaves)} arrays. Give x as a tuple, list or dictionary with one array an input."
        )
    if isinstance(spec[0], dict):
        by_name = {i.name: i for i in inputs}
        inputs = [by_name.get(name, i) for name, i in zip(sorted(spec[0]), inputs, strict=True)]
    for tensor, leaf in zip(inputs, leaves, strict=True):
        if not leaf.shape[1:].is_compatible_with(tensor.shape[1:]):
            raise ValueError(
                f"The model's input {tensor.name!r} expects examples of shape "
                f"{tuple(tensor.shape[1:])}. Received: clients whose x has examples of shape "
                f"{tuple(leaf.shape[1:])}. Reshape the data, e.g. with clients.map(...)."
            )


def label_check(model):
    """A function of `(x, y[, sample_weight])` that checks integer labels against the outputs.

    Applies to outputs trained with sparse categorical cross-entropy: labels must be integers from 0
    to the number of units - 1. TensorFlow itself gives NaN or wrong losses for others.
    """
    sizes = [
        output.shape[-1] if _is_sparse(loss) else None
        for output, loss in zip(_outputs(model), _losses(model), strict=False)
    ]

    def check(arrays):
        for labels, classes in zip(tf.nest.flatten(arrays[1]), sizes, strict=False):
            labels = np.asarray(labels)
            if classes is None or not labels.size:
                continue
            low, high = labels.min(), labels.max()
            if low < 0 or high >= classes or np.any(labels != np.floor(labels)):
                raise ValueError(
                    f"The model has {classes} output units, so labels must be integers from 0 to "
                    f"{classes - 1}. Received: labels from {low} to {high}. Renumber the labels, "
                    "or give the last layer one unit for each class."
                )

    return check


def _outputs(model):
    return tf.nest.flatten(getattr(model, "outputs", None) or [])


def _losses(model):
    losses = tf.nest.flatten(model.loss)
    return losses * len(_outputs(model)) if len(losses) == 1 else losses


def _is_sparse(loss):
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or name in (
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
    )


def check_rounds(rounds, initial_round, validation_freq, checkpoint_freq):
    """The counts that `Federated.fit` takes, as ints, checked."""
    given = (
        ("rounds", rounds, 1),
        ("initial_round", initial_round, 0),
        ("validation_freq", validation_freq, 1),
        ("checkpoint_freq", checkpoint_freq, 1),
    )
    rounds, initial_round, *others = (integer_from(least, *pair) for *pair, least in given)
    if initial_round >= rounds:
        raise ValueError(
            "`initial_round` must be less than `rounds`, which counts from the run's start. "
            f"Received: initial_round={initial_round}, rounds={rounds}"
        )
    return rounds, initial_round, *others


def as_clients(clients):
    """The population that `fit` is given, as a `ClientData`."""
    if isinstance(clients, ClientData):
        return clients
    if isinstance(clients, dict):
        return from_dict(clients)
    raise ValueError(
        "Expected a ClientData (tffed.data.partition, from_dict, from_folder, …) or a dictionary "
        f"{{client id: (x, y)}}. Received: clients of type {type(clients).__name__}"
    )


def as_arrays(data, check):
    """`(x, y[, sample_weight])` as arrays, checked."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ValueError(
            "Expected validation data as (x, y) or (x, y, sample_weight), or a ClientData. "
            f"Received: {type(data).__name__}"
        )
    arrays = as_examples(tuple(part for part in data if part is not None), "the validation data")
    check(arrays)
    return arrays
