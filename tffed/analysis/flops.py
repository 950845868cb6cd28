"""Floating-point operations and memory of a local step, from its traced graph."""

from typing import Any, NamedTuple

import tensorflow as tf

from tffed import tree
from tffed.aggregation.submodel import WHOLE
from tffed.analysis import graphs
from tffed.analysis.op_flops import op_flops
from tffed.analysis.saved import saved_bytes


class Flops(NamedTuple):
    """Floating-point operations of a graph or a part of it.

    Attributes:
        total: The number, a lower bound unless `exact`; a multiplication and an addition are two.
        by_type: `{type of operation: number}`.
        unknown: Names of the operations of which only a lower bound is known: loops whose length
            depends on data, taken as one trip, and sizes that are not static.
        assumed: Types of operations without a formula, taken as one for each value they give.
    """

    total: int
    by_type: dict
    unknown: tuple = ()
    assumed: tuple = ()

    @property
    def exact(self):
        """Whether nothing was assumed and nothing is unknown."""
        return not (self.unknown or self.assumed)


class StepCost(NamedTuple):
    """What one step of local training costs on a client.

    Attributes:
        batch_size: Examples in the step.
        forward: `Flops` of the loss and the metrics.
        backward: `Flops` of the gradient, without those of `forward`.
        optimizer: `Flops` of the optimizer's step; 0 where the client takes none.
        activation_bytes: Of the values of the forward pass that the backward pass reads, other than
            the weights and the batch.
        batch_bytes: Of the examples.
        weight_bytes: Of the model, trainable or not.
        gradient_bytes: Of the gradient.
        slot_bytes: Of the optimizer's moments.
    """

    batch_size: int
    forward: Flops
    backward: Flops
    optimizer: Flops
    activation_bytes: int
    batch_bytes: int
    weight_bytes: int
    gradient_bytes: int
    slot_bytes: int

    @property
    def flops(self):
        """Of the whole step."""
        return self.forward.total + self.backward.total + self.optimizer.total

    @property
    def exact(self):
        """Whether the numbers of operations are exact."""
        return all(part.exact for part in (self.forward, self.backward, self.optimizer))


def graph_flops(function, *specs) -> Flops:
    """Floating-point operations of a function of tensors, traced for these `tf.TensorSpec`s.

    Operations that no result needs do not count. Those of a loop count once a trip, those of a
    conditional are the dearest branch's.
    """
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return _count(graphs.ancestors(graph.outputs), graphs.Values(graph))


def step_cost(model, spec, batch_size, optimizer=None, part=WHOLE) -> StepCost:
    """What a local step costs: its graph is traced and walked, nothing is run.

    The forward pass is what the loss and the metrics are computed from, the backward pass what the
    gradient needs beside that, the optimizer what the new weights need beside both.

    Args:
        model: A `FunctionalModel`.
        spec: `(x, y[, sample_weight])` of `tf.TensorSpec` with a leading dimension of any size, as
            `ClientData.spec` gives.
        batch_size: Examples in the step.
        optimizer: The client's `tffed.optimizers.Optimizer`; None: the client takes no step.
        part: The `Submodel` that is trained.
    """
    weights = tree.spec(model.init())
    part = part.trained_by(model, optimizer)
    weights = weights._replace(trainable=part.trained(weights.trainable))
    batch = tree.map(lambda s: tf.TensorSpec([batch_size, *s.shape[1:]], s.dtype), spec)
    seed = tf.TensorSpec([2], tf.int32)
    noise = () if model.mechanism is None else seed
    sizes = []

    def step(weights, batch, seed, noise):
        sparse = optimizer is not None and optimizer.plain_sgd
        found = model.grad(weights, batch, seed, sparse=sparse, noise=noise)
        grads, forward = found[0], tf.nest.flatten((found[1].non_trainable, found[2]))
        state = optimizer and optimizer.init(weights.trainable)
        slots = state.slots if state else ()
        slots = tree.map(lambda s: tf.compat.v1.placeholder(s.dtype, s.shape), slots)
        stepped = []
        if optimizer:
            stepped = optimizer.step(state._replace(slots=slots), weights.trainable, grads)
        leaves = tf.nest.flatten([g for g in grads if g is not None], expand_composites=True)
        stepped = tf.nest.flatten(stepped)
        sizes.append((len(forward), len(leaves), tree.nbytes(slots)))
        return forward, leaves, stepped

    traced = tf.function(step, autograph=False)
    graph = traced.get_concrete_function(weights, batch, seed, noise).graph
    return _step_cost(graph, *sizes[-1], weights, batch, batch_size)


def _step_cost(graph, forwards, gradients, slot_bytes, weights, batch, batch_size):
    values, outputs = graphs.Values(graph), graph.outputs
    forward = graphs.ancestors(outputs[:forwards])
    backward = graphs.ancestors(outputs[forwards : forwards + gradients], forward)
    stepping = graphs.ancestors(outputs[forwards + gradients :], forward | backward)
    return StepCost(
        batch_size=batch_size,
        forward=_count(forward, values),
        backward=_count(backward, values),
        optimizer=_count(stepping, values),
        activation_bytes=saved_bytes(forward, backward, values),
        batch_bytes=tree.nbytes(batch),
        weight_bytes=tree.nbytes(weights),
        gradient_bytes=tree.nbytes(weights.trainable),
        slot_bytes=slot_bytes,
    )


def _count(ops, values) -> Flops:
    """The `Flops` of some operations of a graph, with the functions that they call."""
    by_type, unknown, assumed = {}, [], set()
    for op in ops:
        call = graphs.called(op, values)
        if call is None:
            found = op_flops(op)
            part = Flops(
                found.flops,
                {op.type: found.flops} if found.flops else {},
                () if found.known else (op.name,),
                (op.type,) if found.assumed else (),
            )
        else:
            part = _count_call(op, call, values)
        for kind, number in part.by_type.items():
            by_type[kind] = by_type.get(kind, 0) + number
        unknown += part.unknown
        assumed |= set(part.assumed)
    return Flops(sum(by_type.values()), by_type, tuple(sorted(unknown)), tuple(sorted(assumed)))


def _count_function(op, graph, values):
    outputs = graphs.results(op, graph, values)
    return _count(graphs.ancestors(outputs), values.inside(op, graph, outputs))


def _count_call(op, call, values):
    branches = [_count_function(op, graph, values) for graph in call.graphs]
    dearest = max(branches, key=lambda part: part.total)
    times = 1 if call.times is None else call.times
    unknown = dearest.unknown if call.times is not None else (*dearest.unknown, op.name)
    by_type: dict[str, Any] = {kind: times * n for kind, n in dearest.by_type.items()}
    return Flops(times * dearest.total, by_type, unknown, dearest.assumed)
