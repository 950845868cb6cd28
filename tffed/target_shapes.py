"""Whether targets have the keys and the shapes that a model's outputs and losses take."""

import keras
import tensorflow as tf

_SPARSE = "sparse_categorical_crossentropy"
# As Keras wraps a plain function: it brings targets to the rank of the predictions.
_WRAPPER = keras.losses.MeanSquaredError.__bases__[0]


def check_structure(model, y, where):
    """Checks that targets are nested and named as Keras takes them.

    Raises:
        ValueError: Names or numbers of the targets differ from those of the outputs.
    """
    names, by_key = named_outputs(model)
    received = y if tf.nest.is_nested(y) else [y]
    if names is None or by_key and len(names) > len(received) == _with_loss(model.loss):
        return  # in Keras, targets of those outputs alone that have a loss go by place
    right = len(received) == len(names)
    if isinstance(y, dict):
        right = set(y) == set(names) and tf.nest.is_nested(_struct(model))
    if not right:
        got = f"the keys {list(y)}" if isinstance(y, dict) else f"{len(received)} arrays"
        raise ValueError(
            f"The model has the outputs {names}, and takes y with one array an output, by these "
            f"names or in this order. Received: y with {got}{where}. Rename or reorder the "
            "targets, e.g. with clients.map(...)."
        )


def named_outputs(model):
    """`(names of a model's outputs, whether they are keys of a dictionary that it returns)`.

    The names are None where they cannot be told: of a subclass, or of outputs nested deeper.
    """
    struct = _struct(model)
    names = getattr(model, "output_names", None)
    if struct is None or any(map(tf.nest.is_nested, _values(struct))):
        return None, False
    by_key = isinstance(struct, dict)
    return sorted(struct) if by_key else list(names or range(len(_values(struct)))), by_key


def _struct(model):
    """The nest of a model's outputs; None for a subclass."""
    graph = getattr(model, "_functional", None) or model  # of a Sequential
    return getattr(graph, "_outputs_struct", None)


def _values(nest):
    if isinstance(nest, dict):
        return list(nest.values())
    return list(nest) if tf.nest.is_nested(nest) else [nest]


def _with_loss(loss):
    """How many outputs have a loss of their own."""
    return sum(one is not None for one in _values(loss)) if tf.nest.is_nested(loss) else None


def closed_sizes(labels, output):
    """The rank of targets, and their sizes where the output's is settled."""
    settled = (*output.shape, *labels.shape[len(output.shape) :])
    pairs = zip(labels.shape[1:], settled[1:], strict=False)
    return labels.ndim, *(size for size, other in pairs if other is not None)


def check_shape(labels, kind, loss, output, where):
    """Checks that one of Keras's losses takes targets of such a shape, by tracing it.

    Raises:
        ValueError: It does not.
    """
    given, predicted = tuple(labels.shape), tuple(output.shape)
    # Sizes that the output leaves open are those of the targets.
    sizes = [given[k] if s is None and k < len(given) else s for k, s in enumerate(predicted)]
    if None in sizes:
        return
    # A number of examples that no other size is equal to, so that nothing fits by chance.
    count = max(1, *given[1:], *sizes[1:]) + 1
    specs = [tf.TensorSpec((count, *shape[1:])) for shape in (given, sizes)]
    loss = keras.losses.get(loss)
    function = loss if isinstance(loss, keras.losses.Loss) else _WRAPPER(loss)
    try:
        tf.function(lambda y, p: function(y, p), autograph=False).get_concrete_function(*specs)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        remedy = "Reshape the targets, or give the last layer other units."
        if kind == _SPARSE and len(given) == len(predicted):
            remedy = (
                "If they are one-hot, use CategoricalCrossentropy, or np.argmax(y, -1) for integer "
                "labels."
            )
        raise ValueError(
            f"The loss {kind} takes targets of shape {_wanted(predicted, kind)} where the model's "
            f"output has shape {_shown(predicted)}. Received: targets of shape {_shown(given)}"
            f"{where}. {remedy}"
        ) from error


def _wanted(predicted, kind):
    if kind == _SPARSE:
        return f"{_shown(predicted[:-1])}, integer labels,"
    return _shown(predicted)


def _shown(shape):
    sizes = ["n", *("any" if size is None else str(size) for size in shape[1:])]
    return f"[{', '.join(sizes)}]"
