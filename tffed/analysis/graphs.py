"""Traced graphs: which operations a result needs, what functions they call, how often loops run."""

from typing import NamedTuple

import tensorflow as tf

_WHILE = ("While", "StatelessWhile")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_IFS = {"If": ("then_branch", "else_branch"), "StatelessIf": ("then_branch", "else_branch")}
_CASES = ("Case", "StatelessCase")


class Called(NamedTuple):
    """The functions that an operation runs.

    Attributes:
        graphs: Their `tf.Graph`s, of which one is chosen if there are several.
        times: How often, or None where it cannot be told before the graph runs.
    """

    graphs: list
    times: int | None


def ancestors(tensors, inside=()) -> set:
    """The operations that tensors of one graph are computed from, their own included.

    Args:
        tensors: The tensors.
        inside: Operations at which to stop, which are left out.
    """
    found, waiting = set(), [t.op for t in tensors]
    while waiting:
        op = waiting.pop()
        if op not in found and op not in inside:
            found.add(op)
            waiting.extend(t.op for t in op.inputs)
    return found


def called(op, at) -> Called | None:
    """What an operation calls; None for one that calls nothing.

    Args:
        op: A `tf.Operation`.
        at: The `Values` of its graph.
    """
    if op.type in _WHILE:
        return Called([_function(op, "body")], at.trips(op))
    if op.type in _CALLS:
        return Called([_function(op, "f")], 1)
    if op.type in _IFS:
        return Called([_function(op, name) for name in _IFS[op.type]], 1)
    if op.type in _CASES:
        return Called([_graph(op, f.name) for f in op.get_attr("branches")], 1)
    return None


def results(op, graph, at) -> list:
    """The outputs of a function's graph that are needed where `op` calls it.

    Args:
        op: What calls the function.
        graph: The function's graph.
        at: The `Values` of the graph of `op`.
    """
    if op.type not in _CALLS:
        return graph.outputs
    pairs = zip(op.outputs, graph.outputs, strict=True)
    return [inner for outer, inner in pairs if at.needs(outer)]


def _function(op, attribute):
    return _graph(op, op.get_attr(attribute).name)


def _graph(op, name):
    graph = op.graph
    while graph is not None:
        found = graph._get_function(name)
        if found is not None:
            return found.graph
        graph = getattr(graph, "outer_graph", None)
    raise KeyError(f"The graph of {op.name} has no function {name!r}.")


class Values:
    """The numbers in a graph that are known before it runs, as far as loops' lengths need them.

    Args:
        graph: A `tf.Graph`.
        arguments: For the graph of a function, `(tensor of the caller, its Values)` by the name of
            the argument that has its value.
        outputs: Those of the graph that are needed; None: all.
    """

    def __init__(self, graph, arguments=None, outputs=None):
        self._graph = graph
        self._arguments = arguments or {}
        self._outputs = graph.outputs if outputs is None else outputs
        self._read = None
        self._session = None

    def needs(self, tensor):
        """Whether something that is needed reads the tensor, or it is needed itself."""
        if self._read is None:
            read = [t for op in ancestors(self._outputs) for t in op.inputs]
            self._read = {t.ref() for t in (*read, *self._outputs)}
        return tensor.ref() in self._read

    def inside(self, op, graph, outputs=None):
        """The `Values` of a function that `op` calls: its arguments, but for those of a loop that
        change."""
        inputs = list(op.inputs)
        if op.type in (*_IFS, *_CASES):
            inputs = inputs[1:]
        loop = op.type in _WHILE
        body = _function(op, "body") if loop else graph
        arguments = {
            argument.op.name: (given, self)
            for k, (argument, given) in enumerate(zip(graph.inputs, inputs, strict=True))
            if not loop or _invariant(body, k)
        }
        return Values(graph, arguments, outputs)

    def trips(self, op) -> int | None:
        """How often a loop's body runs, if the loop counts up to a known limit; else None."""
        condition, body = _function(op, "cond"), _function(op, "body")
        inner = self.inside(op, condition)
        found = [
            self._until(op, body, *pair, inner) for pair in _comparisons(condition.outputs[0])
        ]
        known = [trips for trips in found if trips is not None]
        return min(known) if found and len(known) == len(found) else None

    def _until(self, op, body, left, right, inner):
        """In how many trips `left < right` holds, `left` being counted up by the body."""
        index = _position(inner._graph, left)
        limit = inner.value(right)
        if index is None or limit is None:
            return None
        start, stride = self.value(op.inputs[index]), self._stride(op, body, index)
        if start is None or not stride or stride < 0:
            return None
        return max(0, -(-(limit - start) // stride))

    def _stride(self, op, body, index):
        """What a loop's body adds to one of its variables in each trip, or None."""
        new, old = _source(body.outputs[index]), body.inputs[index]
        if new.op.type not in ("AddV2", "Add"):
            return None
        terms = [_source(t) for t in new.op.inputs]
        if not any(term is old for term in terms):
            return None
        (other,) = [term for term in terms if term is not old] or [old]
        return self.inside(op, body).value(other)

    def value(self, tensor):
        """The integer that a scalar tensor is going to be, or None."""
        tensor = _source(tensor)
        if tensor.op.name in self._arguments:
            given, values = self._arguments[tensor.op.name]
            return values.value(given)
        if tensor.op.type in _WHILE:
            return self._after(tensor.op, tensor.value_index)
        needs = ancestors([tensor])
        if not tensor.dtype.is_integer or any(_unknown(op) for op in needs):
            return None
        if self._session is None:
            self._session = tf.compat.v1.Session(graph=self._graph)
        value = self._session.run(tensor)
        return int(value) if value.ndim == 0 else None

    def _after(self, op, index):
        """The value of a loop's variable at its end."""
        start, body = self.value(op.inputs[index]), _function(op, "body")
        if start is None or _invariant(body, index):
            return start
        trips, stride = self.trips(op), self._stride(op, body, index)
        return None if trips is None or stride is None else start + trips * stride


def _unknown(op):
    return op.type == "Placeholder" or op.type in (*_WHILE, *_CALLS, *_IFS, *_CASES)


def _comparisons(tensor):
    """`(left, right)` of each `left < right` that must hold, or a pair that is not known."""
    tensor = _source(tensor)
    if tensor.op.type == "LogicalAnd":
        return [pair for part in tensor.op.inputs for pair in _comparisons(part)]
    return [tuple(tensor.op.inputs)] if tensor.op.type == "Less" else [(tensor, tensor)]


def _position(graph, tensor):
    tensor = _source(tensor)
    return next((k for k, argument in enumerate(graph.inputs) if argument is tensor), None)


def _invariant(body, index):
    return _source(body.outputs[index]) is body.inputs[index]


def _source(tensor):
    """The tensor of which another is a copy."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor
