"""Whether a model ignores zeros behind its sequences, found by trying.

Clients whose sequences differ in length are padded with zeros. That changes nothing if the model
masks them (`mask_zero`, `Masking`) and every layer behind heeds the mask, which no look at layers
can tell for sure. So some of the clients' own examples are put through the model as they are and
padded further, under several weights, and the gradients, statistics and metrics are compared.
"""

import numpy as np
import tensorflow as tf

from tffed.data.lengths import padded
from tffed.data.nest import map_leaves

_ROWS = 4
_SAMPLES = 3  # clients whose examples are tried
_CLIENTS_LOOKED_AT = 64
_TRIALS = (0.1, 0.5)  # how far the weights are moved: at their first values much is zero
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4}  # of the largest entry; else half precision
_ERRORS = (tf.errors.InvalidArgumentError, ValueError)
_NAN = "longer sequences make a NaN, as of a table of positions that ends"


def padding_is_seen(model, clients, opened):
    """Returns None if the model ignores padding, else what of it changes, in words.

    Args:
        model: A `FunctionalModel`.
        clients: A `ClientData`.
        opened: Its nest of `LeafSpec`, with None for the lengths that are padded.
    """
    samples = _samples(clients)
    for parts in samples:
        told = _padding_changes(model, parts, opened)
        if told is not None:
            return told
    for parts in _others(samples[0]):
        if _is_defined(model, parts):
            told = _padding_changes(model, parts, opened)
            if told is not None:
                return told
    return None


def _padding_changes(model, parts, opened):
    told = "layers that take no longer sequences"
    for factor in (2, 1):  # a table of positions may be too short for twice the length
        try:
            further = map_leaves(lambda a, spec, f=factor: _longer(a, spec, f), parts, opened)
            told = _first_difference(model, parts, further)
            if told != _NAN:
                return told
        except _ERRORS as error:
            told = f"longer sequences make an error ({str(error).splitlines()[0]})"
    return told


def _first_difference(model, parts, further):
    plain, more = (map_leaves(tf.convert_to_tensor, nest) for nest in (parts, further))
    weights = model.init()
    random = np.random.default_rng(0)
    for scale in _TRIALS:
        moved = tf.nest.map_structure(lambda w, s=scale: _moved(w, s, random), weights)
        told = _difference(model, moved, plain, more)
        if told is not None:
            return told
    return None


def _samples(clients):
    """Some examples of each of a few clients; of one that has only zeros, if all have."""
    found, zeros = [], []
    for client_id in list(clients.ids[:_CLIENTS_LOOKED_AT]):
        if not clients.sizes([client_id])[0]:
            continue
        parts = map_leaves(lambda leaf: leaf[:_ROWS], clients[client_id])
        full = np.count_nonzero(tf.nest.flatten(parts[0])[0])
        (found if full else zeros).append(parts)
        if len(found) == _SAMPLES:
            break
    return found or zeros[:1]


def _others(parts):
    """The examples with inputs of both signs: a maximum over positive ones ignores zeros."""
    random = np.random.default_rng(1)
    tripled = map_leaves(lambda leaf: np.concatenate([leaf] * 3), parts)

    def drawn(leaf):
        if leaf.dtype.kind != "f":
            return leaf
        size = np.abs(leaf).mean() or 1.0
        values = size * random.normal(size=leaf.shape)
        third = len(leaf) // 3
        values[:third] = np.abs(values[:third])
        values[third : 2 * third] = -np.abs(values[third : 2 * third])
        return values.astype(leaf.dtype)

    def negative(leaf):
        return -leaf if leaf.dtype.kind == "i" else leaf

    inputs = map_leaves(drawn, tripled[0])
    yield (inputs, *tripled[1:])
    if any(leaf.dtype.kind == "i" for leaf in tf.nest.flatten(inputs)):
        yield (map_leaves(negative, inputs), *tripled[1:])


def _is_defined(model, parts):
    """Whether the model takes such inputs at all, which are not the clients' own."""
    try:
        sums = model.evaluate(model.init(), map_leaves(tf.convert_to_tensor, parts))
    except _ERRORS:
        return False
    return bool(np.isfinite(float(sums[0])))


def _longer(leaf, spec, factor):
    sizes = zip(leaf.shape[1:], spec.shape, strict=True)
    return padded(leaf, tuple(factor * size + 1 if want is None else size for size, want in sizes))


def _moved(value, scale, random):
    if not value.dtype.is_floating:
        return value
    return value + tf.cast(scale * random.normal(size=value.shape), value.dtype)


def _difference(model, weights, plain, more):
    begun = model.begin(weights)
    if _is_random(model, begun, plain):
        if weights.non_trainable:
            return (
                "layers with random numbers beside others with statistics, so that it cannot be "
                "found out whether padding changes those"
            )
        runs = [model.evaluate(weights, batch) for batch in (plain, more)]
        pairs = [("loss and metrics", *runs)]
    else:
        one, other = (model.grad(begun, batch, _seed(1)) for batch in (plain, more))
        names = [variable.path for variable in model.variables]
        grads = zip(names, _dense(one[0]), _dense(other[0]), strict=True)
        pairs = [(f"the gradient of {name}", [a], [b]) for name, a, b in grads]
        left = [tf.nest.flatten(run[1]) for run in (one, other)]
        pairs += [("weights and statistics", *left), ("loss and metrics", one[2], other[2])]
    largest = max(_size(values) for _, values, _ in pairs)
    for name, first, second in pairs:
        for a, b in zip(first, second, strict=True):
            allowed = _TOLERANCE.get(a.dtype.name, 2e-2) * (_size([a]) + 1e-3 * largest)
            worst = _size([tf.cast(a, tf.float64) - tf.cast(b, tf.float64)])
            if np.isnan(worst):
                return _NAN
            if not worst <= allowed:
                return f"padding changes {name} by {worst:.2g} (largest entry {_size([a]):.2g})"
    return None


def _dense(gradients):
    """The gradients as tensors; of a weight on which the loss does not depend, zero."""
    return [tf.zeros(()) if g is None else tf.convert_to_tensor(g) for g in gradients]


def _is_random(model, weights, batch):
    runs = [_dense(model.grad(weights, batch, _seed(k))[0]) for k in (1, 2)]
    return any(np.any(a.numpy() != b.numpy()) for a, b in zip(*runs, strict=True))


def _seed(number):
    return tf.constant([number, 7], tf.int32)


def _size(values):
    return max((float(np.abs(v.numpy()).max(initial=0)) for v in values), default=0.0)
