"""What a model's inputs take: shapes, dtypes, and the ids of embedding tables."""

import keras
import numpy as np
import tensorflow as tf

from tffed.data.dtypes import first_lost
from tffed.data.nest import leaves
from tffed.keras_model import layers

# Layers and operations of Keras that hand their input's values on, in another shape.
_SAME_VALUES = (
    *("Reshape", "Flatten", "Permute", "RepeatVector", "Identity"),
    *("ExpandDims", "Squeeze", "Transpose", "Cast"),
)
_TAKE_STRINGS = ("StringLookup", "TextVectorization", "Hashing", "HashedCrossing", "FeatureSpace")


def by_input(model, nest) -> list:
    """Pairs a model's inputs with the leaves of x (or of its spec), by name where there are names.

    Returns:
        Triples (`KerasTensor`, name of the leaf, leaf); none for a model without known inputs.

    Raises:
        ValueError: As many leaves as inputs are wanted.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return []
    named = leaves(nest, "x")
    if len(named) != len(inputs):
        raise ValueError(
            f"The model {model.name!r} has {len(inputs)} inputs. Received: clients whose x has "
            f"{len(named)} arrays. Give x as a tuple, list or dictionary with one array an input."
        )
    if isinstance(nest, dict) and len(nest) == len(inputs):
        inputs = _named(model, nest)
    return [(i, name, leaf) for i, (name, leaf) in zip(inputs, named, strict=True)]


def _named(model, nest):
    """A model's inputs in the order of the sorted names of x, which are Keras's names of them."""
    struct = getattr(getattr(model, "_functional", None) or model, "_inputs_struct", None)
    names = struct if isinstance(struct, dict) else {i.name: i for i in model.inputs}
    if set(nest) != set(names):
        raise ValueError(
            f"The model {model.name!r} takes x with the keys {sorted(names)}. Received: clients "
            f"whose x has the keys {sorted(nest)}. Rename them, e.g. with clients.map(...)."
        )
    return [names[name] for name in sorted(nest)]


def check_inputs(model, spec):
    """Checks that clients' features have the shapes that the model's inputs expect.

    Args:
        model: A `keras.Model`; a subclassed one without `inputs` is checked when it is traced.
        spec: `(x, y[, sample_weight])` of `tf.TensorSpec`, as `ClientData.spec` gives.

    Raises:
        ValueError: A shape differs, the number of inputs, or strings meet a model for numbers.
    """
    for tensor, _, leaf in by_input(model, spec[0]):
        if not leaf.shape[1:].is_compatible_with(tensor.shape[1:]):
            raise ValueError(
                f"The model's input {tensor.name!r} expects examples of shape "
                f"{tuple(tensor.shape[1:])}. Received: clients whose x has examples of shape "
                f"{tuple(leaf.shape[1:])}. Reshape the data, e.g. with clients.map(...)."
            )
    _check_strings(model, spec[0])


def _check_strings(model, x):
    pairs = by_input(model, x) or [(None, name, leaf) for name, leaf in leaves(x, "x")]
    takes = any(type(layer).__name__ in _TAKE_STRINGS for layer in layers(model))
    for tensor, name, leaf in pairs:
        wanted = takes if tensor is None else tensor.dtype == "string"
        if (leaf.dtype == tf.string) == wanted or tensor is None and leaf.dtype != tf.string:
            continue
        what = "the model" if tensor is None else f"its input {tensor.name!r} of {tensor.dtype}"
        raise ValueError(
            f"Expected {what} and {name} to be both strings or both numbers. Received: {name} of "
            f"{leaf.dtype.name}. Look strings up before training, clients.map(lambda x, y: "
            "(layer(x), y)), or in the model, behind keras.Input(shape, dtype='string')."
        )


def input_check(model):
    """A function `(x, where)` that checks values: exact in the inputs' dtypes, and ids in tables.

    TensorFlow changes the first silently, and takes the nearest row of a table under XLA.
    """
    tables = _embedded_inputs(model)

    def check(x, where):
        pairs = by_input(model, x)
        for tensor, name, leaf in pairs:
            _check_exact(tensor, name, leaf, where)
        places = {id(tensor): (name, leaf) for tensor, name, leaf in pairs}
        for i, path, layer in tables:
            _check_ids(*places[id(model.inputs[i])], path, layer, where)

    return check


def _check_exact(tensor, name, leaf, where):
    if tensor.dtype == "string" or leaf.dtype.kind == "O" or tensor.dtype == "bfloat16":
        return
    if lost := first_lost(leaf, np.dtype(tensor.dtype)):
        row, value = lost
        raise ValueError(
            f"The model's input {tensor.name!r} takes {tensor.dtype}, in which numbers of {name}"
            f"{where} would become others. Received: {value} at row {row}. Give the input a dtype "
            "that holds them, keras.Input(..., dtype='int64') for ids, or scale the data."
        )


def _check_ids(name, leaf, path, layer, where):
    for key in path:
        leaf = leaf[key]
    if not leaf.size:
        return
    low, high = np.trunc(leaf.min()), np.trunc(leaf.max())
    if low < 0 or high >= layer.input_dim:
        larger = "" if low < 0 else f"give it input_dim={int(high) + 1} or more, or "
        raise ValueError(
            f"The model's layer {layer.name!r} has {layer.input_dim} rows, so ids must be from 0 "
            f"to {layer.input_dim - 1}. Received: ids from {int(low)} to {int(high)} in {name}"
            f"{where}. To mend it, {larger}renumber the ids from 0."
        )


def _embedded_inputs(model):
    """Finds the inputs whose values an Embedding looks up, as far as the graph says so for sure.

    Returns:
        Triples (place among the model's inputs, keys to take of it one after the other, layer).
    """
    graph = getattr(model, "_functional", None) or model
    found = []
    for nodes in getattr(graph, "_nodes_by_depth", {}).values():
        for node in nodes:
            for place, path, layer in _looked_up(node):
                came = _came_from(node.input_tensors[place], graph)
                if came is not None:
                    found.append((came[0], came[1] + path, layer))
    return found


def _looked_up(node):
    operation = node.operation
    if isinstance(operation, keras.layers.Embedding):
        return [(0, [], operation)]
    if isinstance(operation, keras.Model) and not isinstance(
        getattr(operation, "_inputs_struct", None), dict
    ):
        return _embedded_inputs(operation)
    return []


def _came_from(tensor, graph):
    """`(place among the graph's inputs, keys)` of a tensor, or None if it was computed."""
    places = {id(t): k for k, t in enumerate(graph.inputs)}
    path, reshaped = [], False
    while id(tensor) not in places:
        operation, index, _ = tensor._keras_history
        node, name = operation._inbound_nodes[index], type(operation).__name__
        if not type(operation).__module__.startswith("keras.") or not node.input_tensors:
            return None
        if name == "GetItem":
            path, reshaped = [node.arguments.args[1], *path], False
        elif name in _SAME_VALUES:
            reshaped = True
        else:
            return None
        tensor = node.input_tensors[0]
    return None if path and reshaped else (places[id(tensor)], path)
