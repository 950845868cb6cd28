"""A Keras model as pure functions of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from tffed.keras_functions import KerasFunctions, ModelWeights
from tffed.keras_model import check, compile_model
from tffed.model_call import layers

__all__ = ["FunctionalModel", "ModelWeights", "from_keras"]


class FunctionalModel(NamedTuple):
    """A model, its loss and its metrics as pure functions.

    A batch is `(x, y)` or `(x, y, sample_weight)`. Sums are a flat tuple: the loss times the number
    of examples, that number, then the states of the Keras metrics. They add up over batches and
    clients.

    Attributes:
        init: `() -> ModelWeights`: the Keras model's present values.
        grad: `(weights, batch, seed, mask=None, sparse=False, noise=(), scale=None) -> (gradients,
            weights, sums)`.
            The gradient is that of the loss as Keras computes it for this batch; or, with a float32
            mask of ones and zeros by row, for the batch of the rows that count (only if
            `maskable`). It is None for a weight on which the loss does not depend. With `sparse`,
            an embedding's may come as `tf.IndexedSlices`. `noise`: the secret seed of a model with
            a `mechanism`, else `()`. `scale`: the factor on the loss of a `scaled` model; 1024 by
            default. The weights are those that the call leaves, at which the gradient was taken:
            layers may assign trainable ones, too.
        evaluate: `(weights, batch) -> sums`, in inference mode.
        zeros: `(batch) -> sums` of no examples; `batch` gives only shapes.
        report: `(sums) -> {metric name: float32 scalar}`.
        assign: `(weights) -> None`: writes the values into the Keras model.
        variables: The Keras variables behind `ModelWeights.trainable`.
        local_statistics: Whether `non_trainable` stays on each client.
        maskable: `(batch) -> bool`: whether padding such a batch and masking it gives what the
            batch itself gives, tried on it.
        mechanism: The `tffed.privacy.Mechanism` by which gradients are noised, or None.
        sampled: Whether local steps are to draw each example by a coin of its own.
        forward: `(weights, batch, seed, mask=None) -> (loss, non_trainable, sums)`, of which `grad`
            takes the gradient; in inference mode if `seed` is None.
        begin: `(weights) -> weights` with which a client begins: statistics and then counters are
            its `non_trainable`.
        end: `(weights) -> weights` that a client ends with, without the counters.
        scaled: Whether the loss is multiplied by a factor before its gradient is taken (float16).
        connected: `() -> [bool]`: which weights the loss of the traced steps depends on; the others
            no step touches.
    """

    init: Callable
    grad: Callable
    evaluate: Callable
    zeros: Callable
    report: Callable
    assign: Callable
    variables: list[Any]
    local_statistics: bool
    maskable: Callable
    mechanism: Any = None
    forward: Callable | None = None
    sampled: bool = False
    begin: Callable = lambda weights: weights
    end: Callable = lambda weights: weights
    scaled: bool = False
    connected: Callable | None = None


def from_keras(
    model,
    loss=None,
    metrics=None,
    *,
    loss_weights=None,
    weighted_metrics=None,
    class_weight=None,
    batch_norm="average",
    optimizer=None,
) -> FunctionalModel:
    """Reads a built Keras model as pure functions of its weights.

    The loss and the metrics are Keras's own: `model.compile` is called with them, so several
    outputs, `loss_weights`, regularizers and an overridden `compute_loss` or `compute_metrics`
    work. An overridden `train_step` or `test_step` is refused. A float16 model's loss is multiplied
    by a factor before its gradient is taken, and the gradient divided by it.

    BatchNorm's moving statistics follow `batch_norm`:

    - `"average"`: each client updates them, the server averages the changes like the weights.
    - `"local"`: each client keeps its own in its client state (SiloBN, Andreux et al. 2020). They
      never travel; the global model keeps those it began with.
    - `"freeze"`: every BatchNormalization layer is set to `trainable = False`, which in Keras also
      makes it use its moving statistics in training: nothing of it changes or travels.

    A partial batch keeps its true size, so statistics never see padding.

    Args:
        model: A built `keras.Model`: Sequential, functional or subclassed.
        loss: Anything `keras.Model.compile` takes. None: the model is already compiled.
        metrics: Keras metrics whose state adds up over batches, as that of Keras's own does.
        loss_weights: As in `keras.Model.compile`.
        weighted_metrics: As in `keras.Model.compile`.
        class_weight: `{class: weight}`, as in `keras.Model.fit`.
        batch_norm: One of `"average"`, `"local"`, `"freeze"`.
        optimizer: What `model.optimizer` becomes; by default it stays.

    Returns:
        A `FunctionalModel`.

    Raises:
        ValueError: The model is not built, has nothing to train, has no loss or one that does not
            average over the examples, trains in a way of its own (`train_step`), keeps state
            between batches or where it cannot be followed, or an argument is not one of its
            choices.
        RuntimeError: Keras runs on another backend than TensorFlow.
    """
    check(model, batch_norm)
    if batch_norm == "freeze":
        for layer in layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    if not model.trainable_variables:
        raise ValueError(
            "Expected a model with trainable weights; all its layers are frozen. Received: "
            f"model={model.name!r}. Set `layer.trainable = True` on what is to be trained."
        )
    compile_model(model, loss, metrics, loss_weights, weighted_metrics, optimizer)
    parts = KerasFunctions(model, class_weight)
    return FunctionalModel(
        init=parts.init,
        grad=parts.grad,
        evaluate=parts.evaluate,
        zeros=parts.zeros,
        report=parts.report,
        assign=parts.assign,
        variables=parts.variables,
        local_statistics=batch_norm == "local",
        maskable=parts.maskable,
        forward=parts.forward,
        begin=parts.begin,
        end=parts.end,
        scaled=parts.scaled,
        connected=parts.connected,
    )
