"""Which models may be padded and masked: those whose examples do not see one another.

What a model is made of tells whether it may be so, and whether XLA serves it; a trial on the data
at hand, padded and not, decides.
"""

import keras
import tensorflow as tf

from tffed import random, tree
from tffed.model_call import layers
from tffed.recurrent import replaceable

_ROWS, _PADDING, _CLOSE, _ROUNDING = 5, 2, 1e-3, 1e-5

_LAYERS = (
    *("InputLayer", "Dense", "Flatten", "Reshape", "Permute", "RepeatVector", "Activation", "ReLU"),
    *("LeakyReLU", "PReLU", "ELU", "Softmax", "Dropout", "SpatialDropout1D", "Rescaling"),
    *("LayerNormalization", "RMSNormalization", "GroupNormalization", "UnitNormalization"),
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot"),
    *("Embedding", "Identity", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "EinsumDense"),
    *("LSTM", "LSTMCell", "GRU", "GRUCell", "SimpleRNN", "SimpleRNNCell", "Bidirectional"),
    *("MultiHeadAttention", "Sequential", "Functional"),
)
# Losses that look at a batch as a whole.
_WHOLE_BATCH = frozenset({"circle", "ctc", "dice", "tversky"})
# Operations of keras.ops between the layers of a functional model.
_ELEMENTWISE = (
    *("Add", "Subtract", "Multiply", "TrueDivide", "Divide", "Power", "Maximum", "Minimum", "Clip"),
    *("Negative", "Absolute", "Square", "Sqrt", "Exp", "Log", "Sin", "Cos", "Cast", "OnesLike"),
    *("Relu", "Gelu", "Silu", "Elu", "Softplus", "Sigmoid", "Tanh", "ZerosLike"),
)
_ALONG_AXES = (
    *("Sum", "Mean", "Max", "Min", "Cumsum", "Softmax", "LogSoftmax", "Concatenate", "Stack"),
    *("ExpandDims", "Squeeze"),
)


def padding_is_exact(model, batch, still):
    """Whether masked padding changes nothing, by trial: up to five examples with and without.

    Args:
        model: The functions of a `FunctionalModel`.
        batch: `(x, y[, sample_weight])` with at least one example.
        still: Whether to try the model in inference mode, as it draws random numbers in training.
    """
    rows = min(_ROWS, len(tf.nest.flatten(batch)[0]))
    batch = tree.map(lambda leaf: tf.convert_to_tensor(leaf[:rows]), batch)
    padded = tree.map(lambda leaf: tf.concat([leaf, leaf[:1], leaf[:1]], 0), batch)
    mask = tf.constant([1.0] * rows + [0.0] * _PADDING)
    seed = None if still else random.seed(0)
    try:
        found = _moved(model, batch, seed, None), _moved(model, padded, seed, mask)
    except Exception:  # noqa: BLE001 - the path without padding will say what is wrong
        return False
    largest = max(float(tf.norm(g)) for g in found[0][0])  # some are nothing but rounding
    return all(_close(a, b, largest) for a, b in zip(*map(tree.leaves, found), strict=True))


def _moved(model, batch, seed, mask):
    """What a step computes at weights near the present ones, at which nothing is zero by chance."""
    weights = model.init()
    trainable = tuple(
        w + tf.cast(0.1 * random.normal(w.shape, random.seed(k)), w.dtype)
        for k, w in enumerate(weights.trainable)
    )
    weights = model.begin(weights._replace(trainable=trainable))
    grads, after, sums = model.grad(weights, batch, seed, mask)
    # In inference the loss weighs by its own divisor, which knows no mask.
    sums = sums if seed is not None else sums[2:]
    return [tf.zeros(()) if g is None else tf.cast(g, tf.float32) for g in grads], after, sums


def _close(a, b, largest):
    a, b = tf.cast(a, tf.float64), tf.cast(b, tf.float64)
    return bool(tf.norm(a - b) <= _CLOSE * tf.norm(a) + _ROUNDING * largest)


def independent_examples(model):
    """Whether masked padding may leave loss, gradient and metrics exact, and XLA serves the model.

    True for Sequential and functional models of one output of two dimensions, of Keras's own dense,
    embedding, attention and elementwise layers, recurrent ones with a loop of ours, and elementwise
    operations and reductions within an example, without regularizers, Keras masks, weighted metrics
    or overridden methods. Losses and metrics must be Keras's own and give each example a value: one
    of the user's may take the mean of a batch before the mask. Not for convolutions: XLA's gradient
    of one inside a loop is an order of magnitude slower on a CPU. Nor for Keras's recurrent loop,
    whose gradient XLA may not compile.
    """
    known = all(
        type(layer).__module__.startswith("keras.")
        and type(layer).__name__ in _LAYERS
        and not getattr(layer, "mask_zero", False)
        and layer.activity_regularizer is None
        and _elementwise(layer)
        and (replaceable(layer) or not isinstance(layer, keras.layers.RNN))
        for layer in layers(model)
    )
    if not known or not all(_within_examples(node) for node in _nodes(model)):
        return False
    means = all(
        getattr(loss, "reduction", "sum_over_batch_size") in ("sum_over_batch_size", "mean")
        and getattr(loss, "ignore_class", None) is None
        for loss in tf.nest.flatten(model.loss)
    )
    compiled = getattr(model, "_compile_metrics", None)
    weighted = compiled is not None and compiled._user_weighted_metrics
    metrics = tf.nest.flatten(compiled._user_metrics) if compiled is not None else []
    by_example = all(gives_each_a_value(f) for f in (*tf.nest.flatten(model.loss), *metrics))
    plain = [len(output.shape) for output in model.outputs] == [2] and not model.losses
    return means and by_example and plain and not weighted


def gives_each_a_value(function):
    """Whether a loss or metric, or its name, is Keras's own and looks at one example at a time."""
    if function is None:
        return True
    if isinstance(function, str):
        return function.lower() not in _WHOLE_BATCH
    inner = getattr(function, "fn", None) or getattr(function, "_fn", None) or function
    name = getattr(inner, "__name__", type(inner).__name__)
    kinds = (inner, function) if hasattr(inner, "__name__") else (type(inner), type(function))
    own = all(getattr(kind, "__module__", "").startswith("keras.") for kind in kinds)
    return own and name.lower() not in _WHOLE_BATCH


def _elementwise(layer):
    """Whether the functions that a layer applies are Keras's activations."""
    found = (getattr(layer, name, None) for name in ("activation", "recurrent_activation"))
    return all(
        f is None or getattr(f, "__module__", "").startswith(("keras.src.activations", "keras.act"))
        for f in found
    )


def _nodes(model):
    """The calls of layers and operations that a model and the models in it are made of."""
    for layer in layers(model):
        graph = getattr(layer, "_functional", layer)  # that of a Sequential model
        for depth in getattr(graph, "_nodes_by_depth", {}).values():
            yield from depth


def _within_examples(node):
    """Whether a call leaves the first dimension alone, given that layers are among those above."""
    operation, name = node.operation, type(node.operation).__name__
    ranks = {len(tensor.shape) for tensor in (*node.input_tensors, *node.outputs)}
    axes = tf.nest.flatten(getattr(operation, "axis", ()))
    if not isinstance(operation, keras.layers.Layer):
        if not type(operation).__module__.startswith("keras."):
            return False
        if name == "GetItem":
            return _keeps_examples(*node.arguments.args[1:])
        # Of one rank, or the examples of one operand would meet the features of another.
        if not (name in _ELEMENTWISE and len(ranks) == 1 or name in _ALONG_AXES and axes):
            return False
    return all(axis is not None and axis % max(ranks) for axis in axes)


def _keeps_examples(key=None):
    """Whether `x[key]` takes all examples and the same part of each."""
    simple = isinstance(key, tuple) and all(
        part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in key
    )
    return simple and key[0] == slice(None)
