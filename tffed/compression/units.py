"""Which rows and columns of a model's weights belong to which hidden unit."""

from typing import NamedTuple

import keras
import numpy as np

_DENSE = (keras.layers.Dense,)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Layers that leave each unit, or channel, to itself.
_BY_UNIT = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Dropout", "Flatten", "Identity", "Rescaling"),
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout"),
    *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)),
)
# Settings of such layers that may have an entry for each unit: of a smaller layer they are another.
_BY_ENTRY = ("scale", "offset", "noise_shape")
_ACTIVATIONS = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "sigmoid"),
    *("hard_sigmoid", "hard_silu", "log_sigmoid", "tanh", "hard_tanh", "tanh_shrink", "softplus"),
    *("softsign", "exponential", "mish", "hard_shrink", "soft_shrink", "threshold", "squareplus"),
)


class Cut(NamedTuple):
    """How one tensor is cut into units.

    Attributes:
        shape: The tensor's shape.
        view: The shape to see it in: that of a kernel after Flatten has an axis of positions and
            one of units in place of its first.
        groups: `{axis of view: group}`.
    """

    shape: tuple
    view: tuple
    groups: dict


def units(model):
    """The units of each hidden layer, a `Cut` for each trainable variable, and what else has units.

    Returns:
        `(sizes, cuts, frozen)`; `frozen`: whether a layer between has values by unit, which are
        not trained.

    A group are the units of a Dense layer, or the filters of a convolution, that is trainable like
    the next such layer, which reads them. The last one's units are no group.

    Raises:
        ValueError: The model is no chain of layers, a layer mixes the units of another, or there
            is no group.
    """
    layers = _chain(model)
    kernels = [layer for layer in layers if type(layer) in _DENSE + _CONVOLUTIONS]
    hidden = {
        layer
        for layer, following in zip(kernels, kernels[1:], strict=False)
        if layer.trainable and following.trainable
    }
    sizes, cuts, group, frozen = [], {}, None, False
    for layer in layers:
        if layer not in kernels:
            if group is not None:
                _check_by_unit(layer)
                frozen |= bool(layer.weights)
            continue
        weights = _weights_of(layer)
        inside = group
        group = len(sizes) if layer in hidden else None
        if group is not None:
            sizes.append(weights[0].shape[-1])
            _check_activation(layer, layer.activation)
        for variable in weights:
            cuts[id(variable)] = _cut(tuple(variable.shape), sizes, inside, group)
    if not sizes:
        raise ValueError(
            "Expected a model with a hidden Dense or convolutional layer to drop units of. "
            f"Received: model={model.name!r}, in which no two such layers that are trainable "
            "follow each other. Leave federated_dropout out."
        )
    whole = (_whole(tuple(v.shape)) for v in model.trainable_variables)
    trained = zip(model.trainable_variables, whole, strict=True)
    return sizes, [cuts.get(id(v), cut) for v, cut in trained], frozen


def _whole(shape):
    return Cut(shape, shape, {})


def _cut(shape, sizes, inside, group):
    """The cut of a kernel `[…, in, out]` or bias `[out]`."""
    if len(shape) == 1:
        return Cut(shape, shape, {} if group is None else {0: group})
    view, axis = shape, len(shape) - 2
    if inside is not None and shape[axis] != sizes[inside]:
        # Flatten lays out channels last: unit c of position p is row p · channels + c.
        view, axis = (shape[0] // sizes[inside], sizes[inside], shape[1]), 1
    groups = {} if inside is None else {axis: inside}
    return Cut(shape, view, groups if group is None else groups | {len(view) - 1: group})


def _chain(model):
    """The layers of a model in which each reads the one before and nothing else."""
    found = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    alone = len({id(layer) for layer in found}) == len(found)
    if not isinstance(model, keras.Sequential):
        tensors = [
            *(getattr(model, "inputs", None) or ()),
            *(getattr(model, "outputs", None) or ()),
        ]
        alone = alone and len(tensors) == 2 and _follow(found, *tensors)
    if not alone:
        raise ValueError(
            "Expected a Sequential model, or a functional one in which each layer reads the one "
            f"before alone: else it is unknown what belongs to a unit. Received: "
            f"model={model.name!r}. Leave federated_dropout out."
        )
    return found


def _follow(layers, first, last):
    for layer in layers:
        if len(layer._inbound_nodes) != 1 or layer._inbound_nodes[0].input_tensors != [first]:
            return False
        (first,) = layer._inbound_nodes[0].outputs
    return first is last


def _weights_of(layer):
    """A layer's kernel and bias, if units are what its last axis counts."""
    plain = layer.get_config().get("lora_rank") is None and len(layer.variables) <= 2
    if type(layer) in _CONVOLUTIONS:
        plain = plain and layer.groups == 1 and layer.data_format == "channels_last"
    if not plain:
        raise _refusal(layer, "which is grouped, channels first, quantized or has adapters")
    return layer.variables


def _check_by_unit(layer):
    """Checks that a layer, which some units will be missing from, leaves each to itself."""
    name = type(layer).__name__
    if name == "BatchNormalization" and not layer.trainable and layer.axis in (-1, 3):
        return
    own = type(layer).__module__.startswith("keras.")
    if not own or name not in _BY_UNIT:
        hint = "; set trainable=False on it" if name == "BatchNormalization" else ""
        raise _refusal(layer, f"which may mix them{hint}")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _refusal(layer, "with channels first")
    if name == "Activation":
        _check_activation(layer, layer.activation)
    for setting in _BY_ENTRY:  # a configuration has other forms of arrays
        value = getattr(layer, setting, None)
        if value is not None and not _same_for_all(setting, value):
            raise _refusal(layer, f"whose {setting}={value} has an entry for each")


def _same_for_all(setting, value):
    if setting == "noise_shape":
        return value[-1] in (None, 1)
    return np.size(value) == 1


def _check_activation(layer, activation):
    name = getattr(activation, "__name__", type(activation).__name__)
    module = getattr(activation, "__module__", "")
    if name not in _ACTIVATIONS or not module.startswith("keras."):
        raise _refusal(layer, f"with the activation {name}, which may mix them")


def _refusal(layer, reason):
    return ValueError(
        "Units can be left out between Dense and convolutional layers only where all that comes "
        f"between leaves each unit to itself. Received: layer {layer.name!r} of type "
        f"{type(layer).__name__}, {reason}. Leave federated_dropout out, or the layer."
    )
