"""What tffed reads off a Keras model, and what it checks first."""

import keras
import numpy as np
import tensorflow as tf

from tffed import tree
from tffed.arguments import plain, real
from tffed.model_call import layers

BATCH_NORM_POLICIES = ("average", "local", "freeze")
_MEAN_REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
# What Keras's training loop calls, and this one does not.
_OWN_STEPS = ("train_step", "test_step", "make_train_function", "make_test_function", "fit")


def check(model, batch_norm):
    """Checks that a model can be trained federatedly; the errors are those of `from_keras`."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "tffed compiles its rounds with TensorFlow and needs Keras's TensorFlow backend. "
            f"Received: keras.backend.backend()={keras.backend.backend()!r}. Set "
            'KERAS_BACKEND="tensorflow" in the environment before Keras is first imported.'
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a keras.Model (Keras 3). Received: model={model!r}")
    if not model.built or not model.variables:
        raise ValueError(
            "Expected a built model: its weights must exist before the first round. Received: "
            f"model={model.name!r}, which is not built. Give it a keras.Input, or call "
            "`model.build(input_shape)` or the model itself on one batch."
        )
    _check_steps(model)
    _check_state(model)
    if batch_norm not in BATCH_NORM_POLICIES:
        raise ValueError(
            f"`batch_norm` must be one of {BATCH_NORM_POLICIES}. "
            f"Received: batch_norm={batch_norm!r}"
        )


def _check_steps(model):
    for name in _OWN_STEPS:
        if name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name):
            raise ValueError(
                f"Expected a model that is trained by Keras's own steps. Received: {model.name!r}, "
                f"whose {name} is overridden and would not be used. Write what differs in "
                "compute_loss (or in layers, with add_loss), which clients do use."
            )


def _check_state(model):
    for layer in layers(model):
        if getattr(layer, "stateful", False):
            raise ValueError(
                "Expected layers that begin each batch anew: clients' batches do not follow one "
                f"another. Received: {layer.name!r} with stateful=True. Build it without."
            )
    for tensor in getattr(model, "inputs", None) or []:
        if tensor.shape and tensor.shape[0] is not None:
            raise ValueError(
                "Expected inputs of any batch size, as the last batch of a client is smaller. "
                f"Received: the input {tensor.name!r} of shape {tuple(tensor.shape)}. Give "
                "keras.Input the shape of one example: keras.Input(shape=…)."
            )
    for variable in model.trainable_variables:
        if getattr(variable, "overwrite_with_gradient", False):
            raise ValueError(
                "Expected weights that an optimizer's step changes. Received: "
                f"{variable.path}, which float8 training overwrites with its gradient. Use "
                "another dtype policy, such as mixed_bfloat16."
            )


def compile_model(model, loss, metrics, loss_weights, weighted_metrics, optimizer):
    """Compiles the model with the loss and metrics, and checks that the loss averages."""
    if loss is not None:
        model.compile(
            optimizer=optimizer or getattr(model, "optimizer", None) or "sgd",
            loss=loss,
            metrics=metrics,
            loss_weights=loss_weights,
            weighted_metrics=weighted_metrics,
            auto_scale_loss=False,
        )
    elif not model.compiled:
        raise ValueError(
            "Expected a loss, or a model that is already compiled with one. Received: loss=None. "
            "Pass e.g. loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
    elif optimizer is not None:
        model.optimizer = optimizer
    for one in tf.nest.flatten(model.loss):
        reduction = getattr(one, "reduction", "sum_over_batch_size")
        if reduction not in _MEAN_REDUCTIONS:
            raise ValueError(
                "The loss must average over the examples of a batch, so that clients of different "
                f"sizes weigh as they should: reduction must be one of {_MEAN_REDUCTIONS}. "
                f"Received: reduction={reduction!r} in {type(one).__name__}. Build the loss with "
                'reduction="sum_over_batch_size".'
            )


def scales_loss(model):
    """Whether the gradients of a model vanish without a factor on the loss: it runs in float16."""
    return any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers(model))


def batch_parts(batch):
    """`(x, y, sample_weight)` of a batch, the last None if it has none."""
    return (*batch, None) if len(batch) == 2 else tuple(batch)


def class_weigher(class_weight):
    """A function from a batch to (x, y, sample_weight) with the class weights multiplied in.

    As in Keras, labels are rounded, may be negative, and those that are no key count as 1.

    Raises:
        ValueError: A key is no whole number, or a weight not finite.
    """
    if class_weight is None:
        return batch_parts
    classes, factors = _class_table(class_weight)

    def weigh(batch):
        x, y, sample_weight = batch_parts(batch)
        if tf.nest.is_nested(y) or y.shape.rank > 2:
            raise ValueError(
                "`class_weight` needs one class for each example: labels of shape [n], or one-hot "
                f"of shape [n, classes]. Received: y={tree.map(lambda a: a.shape, y)}. Give "
                "sample weights in the clients' data instead."
            )
        labels = tf.argmax(y, -1) if y.shape.rank > 1 and y.shape[-1] != 1 else y
        labels = tf.reshape(tf.cast(keras.ops.round(labels), tf.int32), [-1])
        matches = labels[:, None] == classes
        found = tf.reduce_sum(tf.where(matches, factors, 0.0), -1)
        weights = tf.where(tf.reduce_any(matches, -1), found, 1.0)
        if sample_weight is not None:  # of shape [n], [n, 1] or one an element
            shape = [-1, *[1] * (sample_weight.shape.rank - 1)]
            weights = tf.reshape(weights, shape) * tf.cast(sample_weight, weights.dtype)
        return x, y, weights

    return weigh


def _class_table(class_weight):
    """`(int32 [K] classes, float32 [K] weights)`."""
    for key, value in dict(class_weight).items():
        key = plain(key)
        if not isinstance(key, int | float) or key != round(key):
            raise ValueError(
                "The keys of `class_weight` must be classes, whole numbers. "
                f"Received: a key {key!r}. Give e.g. {{0: 1.0, 1: 3.0}}."
            )
        if not np.isfinite(real(value)):
            raise ValueError(
                "The values of `class_weight` must be finite numbers. "
                f"Received: class_weight[{key!r}]={value!r}"
            )
    classes = tf.constant([int(plain(key)) for key in class_weight], tf.int32)
    return classes, tf.constant([real(value) for value in class_weight.values()], tf.float32)
