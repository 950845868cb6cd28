"""The identity of a run: all that its numbers follow from, JSON-able, for its checkpoints."""

import hashlib
import json

import keras
import numpy as np
import tensorflow as tf

from tffed.describe import auto_name, describe, digest
from tffed.model_call import layers, state_of


def compiled(model):
    """What a model was compiled with, as `fingerprint` takes it."""
    config = getattr(getattr(model, "_compile_config", None), "config", {"loss": model.loss})
    return {
        name: describe(config.get(name))
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics")
    }


def fingerprint(recipe, settings, clients, sampler, rates, model, validation=None):
    """What makes a run the run it is.

    Where the model's weights begin is no part of it: they are in the checkpoint, but for those that
    are frozen. Nor are the callbacks, whose changes of rates and weights are in the state.

    Args:
        recipe: The `Recipe`.
        settings: What `Federated.compile` was given, and `compiled(model)`.
        clients: The `ClientData`.
        sampler: The sampler.
        rates: The `LearningRates`.
        model: The Keras model.
        validation: The validation data.
    """
    found = {
        "algorithm": {"name": recipe.name, **recipe.config},
        **settings,
        "clients": len(clients),
        "client_ids": population(clients),
        "examples": repr(clients.spec),
        "data": data(clients),
        "validation_data": data(validation),
        "sampler": describe(sampler),
        "client_optimizer": _optimizer(rates.client, rates.asked[0], model),
        "server_optimizer": _optimizer(rates.server, rates.asked[1], model),
        "model": _model(model),
        "frozen_weights": _frozen(model),
    }
    return json.loads(json.dumps(found, default=str))


def data(given):
    """A digest of data that are in memory; what else is known of others."""
    if given is None:
        return None
    if not hasattr(given, "resident"):
        return digest([leaf for leaf in tf.nest.flatten(given) if leaf is not None])
    if not given.resident:
        return "read on demand"
    examples = given.examples(given.ids)
    return digest([*tf.nest.flatten(examples.arrays), examples.rows, examples.sizes])


def population(clients):
    """A digest of the clients' ids."""
    ids = clients.ids
    if isinstance(ids, range):
        return repr(ids)
    found = hashlib.blake2b(digest_size=12)
    for one in ids:
        found.update(repr(one).encode() + b"\0")
    return found.hexdigest()


def _optimizer(optimizer, rate, model):
    """An optimizer's configuration, with the constant rate that it began with.

    And the places of the weights that `exclude_from_weight_decay` named, which Keras leaves out.
    """
    if optimizer is None:
        return None
    found = describe(optimizer)
    found.pop("name", None)
    if rate is not None:
        found["learning_rate"] = float(str(np.float32(rate)))  # 0.1, not 0.10000000149
    trained = enumerate(model.trainable_variables)
    if excluded := [k for k, v in trained if not optimizer._use_weight_decay(v)]:
        found["not_decayed"] = excluded
    return found


def _model(model):
    """The layers one by one, for messages that can name one, and how they are connected."""
    every = layers(model)
    found = [_layer(one) for one in every]
    found[[one is model for one in every].index(True)].pop("name", None)
    return {"layers": found, "graph": [_nodes(one) for one in every]}


def _layer(layer):
    found = describe(layer)
    for nested in ("layers", "input_layers", "output_layers", "build_config", "build_input_shape"):
        found.pop(nested, None)
    own = layer._trainable_variables + layer._non_trainable_variables
    found["weights"] = [list(weight.shape) for weight in own]
    if auto_name(layer.name, type(layer).__name__):
        found.pop("name", None)
    return found


def _nodes(model):
    """Of a functional model, which call reads which outputs, and its other arguments."""
    operations = getattr(model, "operations", None)
    if operations is None:
        return None
    places = {id(operation): k for k, operation in enumerate(operations)}
    found = []
    for place, operation in enumerate(operations):
        for node in operation._inbound_nodes:
            history = [tensor._keras_history for tensor in node.input_tensors]
            if all(id(h.operation) in places for h in history):
                read = [(places[id(h.operation)], h.node_index, h.tensor_index) for h in history]
                given = describe([node.arguments.args, node.arguments.kwargs])
                found.append([_operation(operation), place, read, given])
    return found


def _operation(operation):
    """What is called: a layer, which is described by itself, or an operation like `x + 1`."""
    layer = isinstance(operation, keras.layers.Layer)
    return type(operation).__name__ if layer else describe(operation)


def _frozen(model):
    """A digest of the weights that no checkpoint holds, as training does not change them."""
    held = {id(v) for v in [*model.trainable_variables, *state_of(model).statistics]}
    rest = [np.asarray(v.value) for v in model.weights if id(v) not in held]
    return digest(rest) if rest else None
