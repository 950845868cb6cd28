"""One call of a Keras model, whose variables are tensors: what it reads, draws and changes."""

import contextlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from tffed import random, tree

_RAW_WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatter")
_SEED_NAME = "seed_generator_state"


class CallState(NamedTuple):
    """The variables besides the trainable ones that a training call changes.

    Attributes:
        statistics: Floating ones, such as BatchNorm's moving mean: they travel and are averaged.
        counters: Others. A client counts on within its steps; each round begins with the model's
            values, which no round changes.
        seeds: The states of random number generators.
        generator: What stands in for Keras's global generator, which draws where a layer names
            none; its state is among the seeds if the model draws from it.
        draws: Whether a training call draws random numbers, as far as is known.
    """

    statistics: list
    counters: list
    seeds: list
    generator: Any
    draws: bool


class CallScope(keras.StatelessScope):
    """Within it, variables stand for given tensors of any shape, and are never written.

    As with variables that are really written, no gradient flows through an assignment, and what is
    read after it is a source of gradients of its own.

    Args:
        values: Pairs of a variable and a tensor.
        watch: Called with the new value of each assigned variable; `tf.GradientTape.watch`.
        generator: What stands in for Keras's global random number generator, or None.

    Attributes:
        assigned: `{id: variable}` of those that were assigned.
        sources: `{id: list of the values assigned}`.
        read: `{id: variable}` of those that were read and stand for nothing given.
    """

    def __init__(self, values=(), watch=lambda value: None, generator=None):
        super().__init__(collect_losses=True)
        self.state_mapping.update((id(variable), value) for variable, value in values)
        self.assigned, self.sources, self.read, self._watch = {}, {}, {}, watch
        self._graph, self._refused, self._generator = _graph(), [], generator

    def __enter__(self):
        self._drawing = drawing_from(self._generator)
        self._drawing.__enter__()
        return super().__enter__()

    def __exit__(self, *arguments):
        super().__exit__(*arguments)
        self._drawing.__exit__(None, None, None)

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None:
            self.read[id(variable)] = variable
        return value

    def add_update(self, update):
        variable, value = update
        inner = _graph() is not self._graph
        if inner and not (_is_seed(variable) and _in_branch(self._graph)):
            self._refused.append(variable.path)
            return
        if inner:  # the value of a branch is not known outside of it
            with self._graph.as_default():
                value = _next_seed(self.get_current_value(variable), variable)
        value = tf.stop_gradient(value)
        if value.dtype.is_floating:
            self._watch(value)
        self.assigned[id(variable)] = variable
        self.sources.setdefault(id(variable), []).append(value)
        super().add_update((variable, value))

    def check(self):
        """Raises a ValueError if something was changed where it cannot be followed."""
        if self._refused:
            raise ValueError(
                "Expected a model that changes variables and draws random numbers outside of "
                "TensorFlow's loops and branches, where their new values can be followed. "
                f"Received: {', '.join(sorted(set(self._refused)))}, changed inside of one. Draw "
                "or change before the loop, or choose values with keras.ops.where."
            )


@contextlib.contextmanager
def drawing_from(generator):
    """While it lasts, Keras's global random number generator of this thread is another one."""
    before = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if generator is not None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    try:
        yield
    finally:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, before)


def call(model, x, training):
    """The model's output, called as Keras's own training and test steps do."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def layers(model):
    """All layers of a model, nested ones and itself included."""
    return model._flatten_layers(include_self=True, recursive=True)


def state_of(model) -> CallState:
    """Finds by a trial call what training a model changes.

    Where a model cannot be tried without data (one whose inputs are not known), every non-trainable
    weight of a layer that is not frozen counts as changed.

    Raises:
        ValueError: The model changes what cannot be followed: a raw `tf.Variable`, a variable that
            Keras does not see, or one inside of a loop of TensorFlow.
    """
    generator = keras.random.SeedGenerator(0)
    changed = _tried(model, generator)
    seeds = {id(g.state) for layer in layers(model) for g in layer._seed_generators}
    seeds = [v for v in model.non_trainable_variables if id(v) in seeds]
    if changed is None:
        changed = [*_may_change(model), generator.state]
    apart = {id(v) for v in (*seeds, *model.metrics_variables, *model.trainable_variables)}
    draws = any(_is_seed(v) for v in changed)
    changed = [v for v in changed if id(v) not in apart]
    seeds += [v for v in changed if _is_seed(v)]
    changed = [v for v in changed if not _is_seed(v)]
    order = {id(v): k for k, v in enumerate(model.non_trainable_variables)}
    hidden = [v.path for v in changed if id(v) not in order]
    if hidden:
        raise ValueError(
            f"Expected a model whose variables Keras knows. Received: {', '.join(hidden)}, changed "
            "in a training call but kept where Keras does not look (in an object that is no "
            "layer), so that it is neither saved nor sent. Make it a weight of a layer "
            "(add_weight), or the object a layer."
        )
    changed.sort(key=lambda v: order[id(v)])
    floating = [tf.as_dtype(v.dtype).is_floating for v in changed]
    return CallState(
        [v for v, f in zip(changed, floating, strict=True) if f],
        [v for v, f in zip(changed, floating, strict=True) if not f],
        seeds,
        generator,
        draws,
    )


def seed_values(seeds, seed):
    """Pairs of the generators' states and values from one seed."""
    return [(v, tf.cast(random.fold_in(seed, k), v.dtype)) for k, v in enumerate(seeds)]


def first_rows(leaf, rows):
    """That many rows of a tensor that has values, the first ones over again if it has fewer."""
    return tf.gather(leaf, tf.range(rows) % tf.maximum(tf.shape(leaf)[0], 1))


def has_values(nest):
    """Whether all leaves are tensors with values, and rows, rather than those of a graph."""
    leaves = tree.leaves(nest)
    return all(hasattr(leaf, "numpy") and leaf.shape[0] for leaf in leaves)


def example(spec, rows):
    """Random values of a shape and dtype: valid as indices, and as labels of two classes."""
    shape = [rows, *(size or 4 for size in spec.shape[1:])]
    if spec.dtype.is_floating:
        return tf.random.stateless_uniform(shape, (2, 3), dtype=spec.dtype)
    bits = tf.random.stateless_uniform(shape, (2, 4), 0, 2, tf.int32)
    return tf.strings.as_string(bits) if spec.dtype == tf.string else tf.cast(bits, spec.dtype)


def _may_change(model):
    frozen = {id(v) for layer in layers(model) if not layer.trainable for v in layer.variables}
    frozen |= {id(v) for layer in layers(model) for v in layer._trainable_variables}
    return [v for v in model.non_trainable_weights if id(v) not in frozen]


def _tried(model, generator):
    """The variables that a training call assigns; None if the model cannot be called so."""
    for spec in _input_specs(model):
        try:
            scope, graph = _traced(model, spec, generator)
        except Exception:  # noqa: BLE001 - with these inputs it cannot be tried
            continue
        scope.check()
        _check_raw_variables(model, graph.as_graph_def())
        return list(scope.assigned.values())
    return None


def _traced(model, spec, generator):
    scopes = []

    def trial(x):
        with CallScope(generator=generator) as scope:
            call(model, x, training=True)
        scopes.append(scope)

    graph = tf.function(trial, autograph=False).get_concrete_function(spec).graph
    return scopes[-1], graph


def _input_specs(model):
    """Specs that the model's inputs may have, likely ones first."""
    inputs = getattr(model, "_inputs_struct", getattr(model, "inputs", None))
    if inputs is not None:
        inputs = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs
        yield tree.map(lambda t: tf.TensorSpec(t.shape, t.dtype), inputs)
        return
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if len(shapes) == 1:
        for dtype in (keras.config.floatx(), "int32"):
            yield keras.tree.map_shape_structure(
                lambda s, dtype=dtype: tf.TensorSpec([None, *s[1:]], dtype), shapes[0]
            )


def _check_raw_variables(model, graph):
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    written = sorted({n.name for n in nodes if n.op.startswith(_RAW_WRITES)})
    if written:
        raise ValueError(
            f"Expected the layers of {model.name!r} to keep what training changes in Keras "
            f"variables. Received: a training call that writes a tf.Variable ({written[0]}), which "
            "clients would share. Use add_weight(…, trainable=False)."
        )


def _is_seed(variable):
    return not variable.trainable and variable.name == _SEED_NAME and tuple(variable.shape) == (2,)


def _next_seed(value, variable):
    value = variable.value if value is None else value
    return value + tf.constant([0, 1], value.dtype)


def _graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _in_branch(outer):
    """Whether the present graph lies in `outer`, in branches or functions but in no loop."""
    graph = _graph()
    while graph is not None and graph is not outer:
        if "While" in type(graph).__name__ or "while" in getattr(graph, "name", ""):
            return False
        graph = getattr(graph, "outer_graph", None)
    return outer is not None
