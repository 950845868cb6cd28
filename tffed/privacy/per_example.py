"""Sums of clipped gradients of single examples, and the choice of how to compute them."""

import functools
import logging
from concurrent.futures import ThreadPoolExecutor

import keras
import tensorflow as tf

from tffed import random, tree
from tffed.local import dense
from tffed.model_call import CallScope, call, example, layers, state_of
from tffed.privacy import ghost

# Examples that a method is tried on: as many as a batch has, where that is known, up to the latter.
_TRIED, _MOST_TRIED, _CLOSE = 3, 64, 1e-3
# Kernels of oneDNN give wrong products for the shapes that vectorized_map makes of the former.
_PRODUCTS, _LOOPS = "batched products go wrong", "loops are slow, and take long to trace"
_NOT_VECTORIZED = dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "Einsum"), _PRODUCTS)
_NOT_VECTORIZED |= dict.fromkeys(("While", "StatelessWhile"), _LOOPS)
_SEED = tf.TensorSpec([2], tf.int32)
_log = logging.getLogger(__name__)


def check(model):
    """Checks that a compiled Keras model's loss is a mean of those of single examples.

    Raises:
        ValueError: It has a layer that couples examples, terms that belong to none, or a mean over
            something else than the examples.
    """
    for layer in layers(model):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise ValueError(
                "Expected a model in which no example sees another. Received: the "
                f'BatchNormalization layer {layer.name!r}. Freeze it (batch_norm="freeze") or use '
                "GroupNormalization."
            )
    _check_no_terms(model.losses)
    for loss in tf.nest.flatten(model.loss):
        if getattr(loss, "reduction", None) == "mean_with_sample_weight":
            raise ValueError(
                "Expected a loss that divides by the number of examples. Received: reduction="
                f'"mean_with_sample_weight" in {type(loss).__name__}, which divides by their '
                'weights, so that one changes what the others give. Use "sum_over_batch_size".'
            )


def _check_no_terms(terms):
    if terms:
        raise ValueError(
            "Expected a loss that is a mean over examples. Received: a model with regularizers or "
            f"add_loss: {len(terms)} terms that belong to no example. Use the optimizer's "
            "weight_decay instead, which needs no data."
        )


class Clipping:
    """Which share of each example's gradient enters the sum.

    Args:
        clip: C.
        microbatches: m, or None for one an example.
        batch: The batch, for its number of rows.
        mask: float32 of ones and zeros by row, or None.

    Attributes:
        parts: The number of microbatches that hold examples, an int32 scalar.
        pairs: Whether `shares` takes inner products.
    """

    def __init__(self, clip, microbatches, batch, mask):
        first = tf.nest.flatten(batch)[0]
        rows = first.shape[0] or tf.shape(first)[0]
        self._clip, self.pairs = clip, microbatches is not None
        self._counts = tf.ones([rows], tf.bool) if mask is None else mask > 0
        count = rows if mask is None else tf.reduce_sum(tf.cast(mask, tf.int32))
        self.parts = tf.maximum(count, 1)
        if self.pairs:
            width = -(-self.parts // microbatches)
            self.parts = -(-self.parts // width)
            group = tf.range(rows)[None] // width == tf.range(microbatches)[:, None]
            self._groups = tf.cast(group & self._counts, tf.float32)

    def shares(self, products):
        """The factor of each example's gradient in the sum over parts, divided by their number.

        Args:
            products: The squared norms of the gradients `[rows]`; if `pairs`, their inner products
                `[rows, rows]`.

        Returns:
            float32 `[rows]`; 0 for what is masked, not finite, or too large to be squared.
        """
        parts = tf.cast(self.parts, tf.float32)
        if not self.pairs:
            fine = self._counts & tf.math.is_finite(products)
            return tf.where(fine, self._factor(products) / parts, 0.0)
        fine = tf.math.is_finite(tf.linalg.diag_part(products))
        products = tf.where(fine[:, None] & fine, products, 0.0)
        sizes = tf.maximum(tf.reduce_sum(self._groups, 1), 1.0)
        members = tf.where(fine, self._groups, 0.0) / sizes[:, None]
        squares = tf.reduce_sum(tf.matmul(members, products) * members, 1)
        return tf.linalg.matvec(members, self._factor(squares) / parts, transpose_a=True)

    def _factor(self, squares):
        return tf.minimum(1.0, self._clip * tf.math.rsqrt(tf.maximum(squares, 1e-30)))


def clipped_sum(model, keras_model, clip, microbatches, method):
    """Builds `(weights, batch, seed, mask) -> (total, parts, sums)`.

    `total` is a flat list of gradients: the sum over a batch's microbatches (its examples, if
    `microbatches` is None) of their clipped gradients, divided by their number `parts`. `sums` are
    those of `FunctionalModel.grad`.
    """
    chosen = {}

    def compute(weights, batch, seed, mask):
        key = tuple((leaf.dtype, tuple(leaf.shape[1:])) for leaf in tf.nest.flatten(batch))
        if key not in chosen:  # `method` is tried at the first trace
            chosen[key] = _choose(model, keras_model, method, batch)
        clipping = Clipping(clip, microbatches, batch, mask)
        total, sums = chosen[key](model, keras_model, weights, batch, seed, mask, clipping)
        return total, clipping.parts, sums

    return compute


def _one_by_one(over_rows, model, keras_model, weights, batch, seed, mask, clipping):
    """Computes the gradients of batches of one example and clips them."""
    del keras_model
    rows = tf.shape(tf.nest.flatten(batch)[0])[0]

    def one(element):
        own, row = element
        grads, _, sums = model.grad(weights, tree.map(lambda leaf: leaf[None], row), own)
        return dense(grads, weights.trainable), sums

    # Dropout's; where there is none, nothing is drawn.
    seeds = tf.map_fn(lambda k: random.fold_in(seed, k), tf.range(rows), fn_output_signature=_SEED)
    grads, sums = over_rows(one, (seeds, batch))
    flat = [tf.reshape(g, [rows, g.shape[1:].num_elements()]) for g in grads]
    if clipping.pairs:
        products = tf.add_n([tf.matmul(g, g, transpose_b=True) for g in flat])
    else:
        products = tf.add_n([tf.reduce_sum(g * g, 1) for g in flat])
    shares = clipping.shares(products)
    # A pass over all gradients, which is seldom needed.
    clean = tf.cond(
        tf.reduce_all(shares > 0),
        lambda: flat,
        lambda: [tf.where(shares[:, None] > 0, g, 0.0) for g in flat],
    )
    summed = [tf.linalg.matvec(g, shares, transpose_a=True) for g in clean]
    total = [tf.reshape(g, w.shape) for g, w in zip(summed, weights.trainable, strict=True)]
    return total, tree.map(lambda s: tf.reduce_sum(_counted(s, mask), 0), sums)


def _counted(values, mask):
    if mask is None:
        return values
    shape = [-1] + [1] * (values.shape.rank - 1)
    return tf.where(tf.reshape(mask > 0, shape), values, tf.zeros([], values.dtype))


def _vectorized(one, elements):
    graph = _traced(one, elements).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    for node in nodes:
        if node.op in _NOT_VECTORIZED:
            raise ValueError(f"{node.op}: {_NOT_VECTORIZED[node.op]}")
    return tf.vectorized_map(one, elements)


def _map(one, elements):
    like = tree.spec(_traced(one, elements).structured_outputs)
    return tf.map_fn(one, elements, fn_output_signature=like, parallel_iterations=1)


def _traced(one, elements):
    row = tree.map(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), elements)
    return tf.function(one, autograph=False).get_concrete_function(row)


_METHODS = {
    "ghost": ghost.clipped_sum,
    "vectorized": functools.partial(_one_by_one, _vectorized),
    "map": functools.partial(_one_by_one, _map),
}


def _choose(model, keras_model, method, batch):
    """The first method that gives, on a few random examples, what single examples do.

    A method is not chosen by what layers a model has: code of the user's may do anything with them.

    Raises:
        ValueError: There is none.
    """
    spec = tree.map(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), batch)

    def choose():
        model.zeros(tree.map(functools.partial(example, rows=1), spec))  # builds the metrics
        _check_training(keras_model, spec)
        failed = []
        for name in _METHODS if method == "auto" else [method]:
            try:
                if name == "ghost":
                    ghost.check(keras_model)
                _try(_METHODS[name], name, model, keras_model, spec)
            except Exception as error:  # noqa: BLE001 - whatever it is, the method does not work
                failed.append(f"{name}: {str(error).strip() or type(error).__name__}")
            else:
                _log.info("gradients of single examples: %s", "; ".join([*failed, name]))
                return _METHODS[name]
        raise ValueError(
            "Expected a method that gives the gradients of single examples of this model. "
            f"Received: method={method!r}, which does not ({'; '.join(failed)}). Use "
            "method='auto', or Keras's own layers."
        )

    # The graph being traced is this thread's. (tf.init_scope would stop all its gradient tapes.)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(choose).result()


def _check_training(keras_model, spec):
    """Checks what a model adds to its loss or changes in training, which only a call shows."""
    x = tree.map(functools.partial(example, rows=2), spec[0])
    state = state_of(keras_model)
    with CallScope(generator=state.generator) as scope:
        call(keras_model, x, training=True)
    _check_no_terms(scope.losses)
    free = {id(v) for v in (*state.seeds, *keras_model.metrics_variables)}
    changed = [v.path for k, v in scope.assigned.items() if k not in free]
    if changed:
        raise ValueError(
            "Expected a model of which training changes the trained weights only, by its "
            f"gradients. Received: {', '.join(changed)}, which a call changes by the examples it "
            "sees, and which noise on the gradients does not hide. Freeze its layer."
        )


def _try(method, name, model, keras_model, spec):
    """Checks a method on random weights and examples; the errors are only for `_choose`."""
    # Dropout draws other numbers for a batch than for single examples.
    still = name == "ghost" and state_of(keras_model).draws
    seed = None if still else random.seed(0)
    tried = _TRIED
    if name == "ghost":  # others see one example at a time
        tried = max(tried, min(tf.nest.flatten(spec)[0].shape[0] or tried, _MOST_TRIED))
    batch = tree.map(functools.partial(example, rows=tried), spec)
    weights = model.init()
    weights = weights._replace(
        trainable=tuple(
            w + tf.cast(0.1 * random.normal(w.shape, random.seed(k)), w.dtype)
            for k, w in enumerate(weights.trainable)
        )
    )
    clip = 1e-3  # so small that all are clipped, each by another factor
    clipping = Clipping(clip, None, batch, None)
    total, _ = method(model, keras_model, weights, batch, seed, None, clipping)
    expected = tree.zeros_like(list(weights.trainable))
    for k in range(tried):
        row = tree.map(lambda leaf, k=k: leaf[k : k + 1], batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights.trainable)
            here = seed if seed is None else random.fold_in(seed, k)
            loss = model.forward(weights, row, here)[0]
        grads = tape.gradient(loss, weights.trainable, unconnected_gradients="zero")
        grads = [tf.convert_to_tensor(g) for g in grads]
        factor = clip / tf.maximum(tree.global_norm(grads), 1e-30) / tried
        expected = tree.add(expected, tree.scale(grads, tf.minimum(factor, 1 / tried)))
    error, size = tree.global_norm(tree.subtract(list(total), expected)), tree.global_norm(expected)
    if not (error <= _CLOSE * size and size > 0):
        raise ValueError("its gradients are not those of single examples")
