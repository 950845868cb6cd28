"""Updates of chosen layers alone, and of low-rank adapters."""

import tensorflow as tf

from tffed import tree
from tffed.aggregation.stage import Coded, Stage
from tffed.arguments import plain, positive_integer
from tffed.model_call import layers as layers_of


def send_only(model, layers) -> Stage:
    """Clients train all layers but send the updates of some; the others stay as they are.

    The zero update of the others is the mean, and the server's step leaves them out, whatever its
    optimizer does, so all clients begin every round with the same ones. What is not to be trained
    either is better frozen (`layer.trainable = False`): the weights of a frozen layer never travel,
    down or up.

    Args:
        model: The Keras model, with the layers frozen that are to be.
        layers: Names of layers, or the layers themselves.

    Returns:
        A `Stage` for `chain`.

    Raises:
        ValueError: A layer is none of the model's, or none of them has trainable weights.
    """
    chosen = _chosen(model, layers)
    wanted = {id(v) for layer in chosen for v in layer.trainable_variables}
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    sent = [k for k, v in enumerate(model.trainable_variables) if id(v) in wanted]
    if not sent:
        raise ValueError(
            "Expected layers with trainable weights, or nothing would travel. Received: "
            f"layers={[layer.name for layer in chosen]}."
        )

    def passes(like):
        leaves = tree.leaves(like)
        given = [tuple(w.shape) for w in leaves]
        # A stage before may hand on one tensor, or a nest of them.
        whole = isinstance(like, tuple) and [*map(id, like)] == [*map(id, leaves)]
        if not whole or given != shapes:
            raise ValueError(
                "Expected the updates of the model that send_only was given, with the same layers "
                f"frozen. Received: tensors of the shapes {given}. Put send_only first in the "
                "chain, and freeze before."
            )
        return tuple(like[k] for k in sent)

    def encode(shared, client_state, value, seed):
        del shared, seed
        return Coded(passes(value), {}), client_state, {}

    def decode(shared, payload, like):
        del shared
        found = dict(zip(sent, payload, strict=True))
        return tuple(
            found[k] if k in found else tf.zeros(s.shape, s.dtype) for k, s in enumerate(like)
        )

    def settle(before, after):
        pairs = zip(before, after, strict=True)
        return tuple(new if k in sent else old for k, (old, new) in enumerate(pairs))

    return Stage(
        encode=encode,
        decode=decode,
        passes=passes,
        settle=settle,
        bound=lambda bound: bound,
        fixed=True,
        partial=True,
        name=f"send_only({', '.join(layer.name for layer in chosen)})",
    )


def lora(model, rank, layers=None, *, alpha=None):
    """Puts low-rank adapters into a model and freezes all else (Hu et al. 2021, arXiv:2106.09685).

    Kernels become W + (alpha / rank) A B, by Keras's own `layer.enable_lora(rank)`; only A and B
    are trained and travel, up and down. `model.save` writes the merged kernels, so the file holds
    the trained model. To be called before `Federated`.

    Args:
        model: A built Keras model, trained before.
        rank: The rank of A B.
        layers: Names of layers, or the layers themselves; by default all that can have adapters
            (Dense, EinsumDense, Embedding, convolutions).
        alpha: As in Keras; by default `rank`.

    Returns:
        The model.

    Raises:
        ValueError: `rank` is not a positive integer, the model is not built, or a layer cannot have
            adapters or has them already.
    """
    rank, alpha = positive_integer("rank", rank), plain(alpha)
    if not model.built:
        raise ValueError(f"Expected a built model. Received: model={model.name!r}. Build it.")
    every = layers_of(model)
    chosen = [c for c in every if _adaptable(c)] if layers is None else _chosen(model, layers)
    for layer in chosen:
        if not _adaptable(layer):
            raise ValueError(
                "Expected layers that can have adapters and have none. Received: layer "
                f"{layer.name!r} of type {type(layer).__name__}. Leave it out."
            )
    if not chosen:
        raise ValueError(
            f"Expected a layer that can have adapters. Received: model={model.name!r}, with none."
        )
    for layer in every:
        if not list(layer._flatten_layers(include_self=False)):
            layer.trainable = layer in chosen
        for variable in layer._trainable_variables:  # also those of a layer that has layers
            variable.trainable = layer in chosen
    for layer in chosen:
        layer.enable_lora(rank, lora_alpha=alpha)
        for variable in layer.trainable_variables:
            variable.trainable = "lora" in variable.name
    return model


def _adaptable(layer):
    return hasattr(layer, "enable_lora") and layer.built and not layer.lora_enabled


def _chosen(model, layers):
    """The layers of those names, or themselves."""
    every = layers_of(model)
    names = {layer.name: layer for layer in every}
    found = [names.get(layer) if isinstance(layer, str) else layer for layer in layers]
    known = {id(layer) for layer in every}
    if unknown := [w for w, f in zip(layers, found, strict=True) if id(f) not in known]:
        raise ValueError(
            f"Expected layers of the model {model.name!r}, or their names. "
            f"Received: {unknown[0]!r}. It has {sorted(names)}."
        )
    return found
