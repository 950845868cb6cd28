"""Checks of what `compile` is given that Keras would make only when the first data come."""

from collections.abc import Mapping

import keras

from tffed.target_shapes import named_outputs


def check_compiled(model, loss, metrics, weighted_metrics, class_weight):
    """Checks names of losses, of metrics and of outputs, and that class weights are a dictionary.

    Raises:
        ValueError: One is wrong; the message names it.
    """
    # Keras chooses these by the shapes of the data.
    _check_names("loss", loss, keras.losses.get, ("crossentropy", "ce"))
    for argument, given in (("metrics", metrics), ("weighted_metrics", weighted_metrics)):
        _check_names(argument, given, keras.metrics.get, ("accuracy", "acc"))
    names, by_key = named_outputs(model)
    if isinstance(loss, Mapping) and (by_key or getattr(model, "output_names", None)):
        asked = {key for key, one in loss.items() if one is not None or not by_key}
        if not (asked <= set(names) if by_key else asked == set(names)):
            raise ValueError(
                f"Expected losses by the names of the model's outputs, {names}. Received: loss "
                f"with the keys {list(loss)}. Rename the keys; an output without a loss has None."
            )
    if class_weight is not None and not isinstance(class_weight, Mapping):
        raise ValueError(
            "Expected class_weight as a dictionary {class: weight}. Received: "
            f"class_weight={class_weight!r}. Compute the weights from the counts of the classes, "
            "e.g. {c: sum(counts) / (len(counts) * n) for c, n in enumerate(counts)}."
        )


def _check_names(argument, given, get, chosen_later):
    for one in keras.tree.flatten(given):
        if not isinstance(one, str) or one.lower() in chosen_later:
            continue
        try:
            get(one)
        except ValueError as error:
            raise ValueError(
                f"Expected `{argument}` to hold objects of Keras's, functions, or names that Keras "
                f"knows. Received: {argument}={one!r}. Look for a misspelling."
            ) from error
