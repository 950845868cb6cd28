"""Which targets a loss can take: checks of labels against losses, output by output."""

import keras
import numpy as np

from tffed.data.dtypes import first_lost
from tffed.target_shapes import check_shape, check_structure, closed_sizes

_SPARSE = "sparse_categorical_crossentropy"
# The least and the greatest target of losses that take no others.
_RANGES = {
    **dict.fromkeys(("binary_crossentropy", "binary_focal_crossentropy"), (0, 1)),
    **dict.fromkeys(("categorical_crossentropy", "categorical_focal_crossentropy"), (0, 1)),
    **dict.fromkeys(("kl_divergence", "categorical_hinge", "dice", "tversky"), (0, 1)),
    **dict.fromkeys(("hinge", "squared_hinge"), (-1, 1)),
    **dict.fromkeys(("poisson", "mean_squared_logarithmic_error"), (0, np.inf)),
}


def by_output(model, nest, shared=False):
    """The parts of a nest of losses or targets in the order of the model's outputs, as Keras does.

    By name where the nest is a dictionary, by place otherwise.

    Args:
        model: The model.
        nest: Losses or targets.
        shared: Whether one leaf stands for every output.

    Returns:
        A list with one part an output, or None if the parts cannot be told.
    """
    outputs = getattr(model, "outputs", None) or []
    struct = getattr(model, "_outputs_struct", None)
    if isinstance(nest, dict):
        own = getattr(model, "output_names", None) or ()
        for names in (sorted(struct) if isinstance(struct, dict) else (), own):
            if set(names) == set(nest) and len(names) == len(outputs):
                return [nest[name] for name in names]
        return None
    if isinstance(nest, (list, tuple)):
        return list(nest) if len(nest) == len(outputs) else None
    if shared or len(outputs) == 1:
        return [nest] * len(outputs)
    return None


def loss_name(loss) -> str | None:
    """The name of Keras's own function behind a loss; None for any other loss."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    function = getattr(loss, "fn", loss)
    if not getattr(function, "__module__", "").startswith("keras."):
        return None
    own = function is loss or type(loss).call is keras.losses.MeanSquaredError.call
    return getattr(function, "__name__", None) if own else None


def losses_by_output(model):
    """`[(loss, its name, output)]`, one an output; empty if they cannot be told."""
    outputs = getattr(model, "outputs", None) or []
    losses = by_output(model, model.loss, shared=True)
    if losses is None:
        return []
    return [(loss, loss_name(loss), o) for loss, o in zip(losses, outputs, strict=True)]


def target_check(model):
    """A function `(y, where)` that checks targets against the losses.

    What a loss cannot take would give NaN or a wrong loss without a word, or an error of
    TensorFlow's in the midst of training.
    """
    losses = losses_by_output(model)
    own = type(model).compute_loss is not keras.Model.compute_loss
    fitting = set()  # the shapes that losses were seen to take

    def check(y, where):
        if not own:
            check_structure(model, y, where)
        targets = by_output(model, y) if losses else None
        if targets is None:
            return
        for labels, (loss, kind, output) in zip(targets, losses, strict=True):
            if isinstance(labels, np.ndarray) and labels.size and loss is not None:
                known = (id(output), *closed_sizes(labels, output))
                if kind is not None and not own and known not in fitting:
                    check_shape(labels, kind, loss, output, where)
                    fitting.add(known)
                _check_one(labels, kind, loss, output, where)
                _check_exact(labels, kind, where)

    return check


def _check_one(labels, kind, loss, output, where):
    if kind == _SPARSE:
        return _check_classes(labels, loss, output, where)
    low, high = _RANGES.get(kind, (-np.inf, np.inf))
    if labels.min() < low or labels.max() > high:
        most = "" if high == np.inf else f" to {high}"
        raise ValueError(
            f"The loss {kind} takes targets from {low}{most}. Received: targets from "
            f"{labels.min()} to {labels.max()}{where}. Rescale or renumber the targets, or use "
            "another loss (sparse_categorical_crossentropy for numbered classes)."
        )
    if kind in ("hinge", "squared_hinge") and not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(
            f"The loss {kind} takes targets -1 and 1, or 0 and 1. Received: "
            f"{labels[~np.isin(labels, (-1, 0, 1))][0]}{where}. Renumber the targets."
        )
    return None


def _check_classes(labels, loss, output, where):
    classes = output.shape[getattr(loss, "axis", -1)]
    ignored = getattr(loss, "ignore_class", None)
    labels = labels if ignored is None else labels[labels != ignored]
    if classes is None or not labels.size:
        return
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes or np.any(labels != np.floor(labels)):
        also = "" if ignored is None else f" (or {ignored}, which is ignored)"
        raise ValueError(
            f"The model has {classes} output units, so labels must be integers from 0 to "
            f"{classes - 1}{also}. Received: labels from {low} to {high}{where}. Renumber the "
            "labels, or give the last layer one unit for each class."
        )


def _check_exact(labels, kind, where):
    if kind != _SPARSE and (lost := first_lost(labels, np.float32)):
        raise ValueError(
            f"The loss computes in float32, in which targets{where} would become others. "
            f"Received: {lost[1]} at row {lost[0]}. Divide the targets, or subtract an offset."
        )
