"""The noise of DP-FTRL: tensorflow-privacy's tree aggregation on a state of static shapes."""

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.privacy import queries, tf_privacy


class TreeNoise(NamedTuple):
    """What a tree of noise keeps between rounds, as secret as a seed. All shapes are static.

    Attributes:
        levels: int32 `[rows]`, the level of each node that is kept; -1 where there is none.
        nodes: For each variable, float32 `[rows, *shape]`.
        previous: For each variable, the noise of the last cumulative sum.
        rounds: int32 scalar, the rounds done.
        stddev: float32 scalar, that of the nodes; -1 before there is one.
    """

    levels: Any
    nodes: tuple
    previous: tuple
    rounds: Any
    stddev: Any

    def __repr__(self):
        return "TreeNoise(secret)"


def init(like, period):
    """The `TreeNoise` before the first round."""
    rows = (period + 1).bit_length() - 1  # as many left subtrees as bits in a number <= period
    return TreeNoise(
        tf.fill([rows], -1),
        tuple(tf.zeros([rows, *w.shape]) for w in like),
        tuple(tf.zeros(w.shape) for w in like),
        tf.constant(0),
        tf.constant(-1.0),
    )


def noised(total, state, clip, stddev, period, seed):
    """A sum of clipped records with the noise of its round, and the new `TreeNoise`.

    The tree is `TreeResidualSumQuery`'s (Honaker's estimator), begun again every `period` rounds,
    and where `stddev` is no longer that of the nodes so far. `seed` is the round's: a node is drawn
    in the round that it is first part of, not, as the query does, in the one before, and kept. So
    no state holds the noise of a round that is still to come.
    """
    module = tf_privacy.load("dp_query.tree_aggregation_query")
    specs = tuple(tf.TensorSpec(w.shape) for w in total)
    drawn = _nodes_class()(stddev, specs, seed)
    query = module.TreeResidualSumQuery(specs, drawn, None, clip)  # None: records come clipped

    def goes_on():
        rows = tf.reduce_sum(tf.cast(state.levels >= 0, tf.int32))
        nodes = tuple(n[:rows] for n in state.nodes)
        last = module.tree_aggregation.TreeState(nodes, state.levels[:rows], drawn.initialize())
        _, here = query._tree_aggregator.get_cumsum_and_update(last)
        return here, state.previous

    def begins():
        begun = query.initial_global_state()
        return begun.tree_state, begun.previous_tree_noise

    same = (state.stddev == stddev) & (state.rounds % period != 0)
    here, previous = tf.cond(same, goes_on, begins)
    begun = query.GlobalState(here, tf.constant(clip, tf.float32), previous)
    result, after, _ = query.get_noised_result(queries.float32(total), begun)
    new = TreeNoise(
        _padded(here.level_buffer_idx, state.levels, -1),
        tuple(_padded(n, k, 0.0) for n, k in zip(here.level_buffer, state.nodes, strict=True)),
        after.previous_tree_noise,
        state.rounds + 1,
        tf.constant(stddev, tf.float32),
    )
    new = tree.map(lambda leaf, old: tf.ensure_shape(leaf, old.shape), new, state)
    return queries.cast_like(total, result), new


def _padded(rows, like, value):
    """`rows` with as many more of `value` as `like` has."""
    more = like.shape[0] - tf.shape(rows)[0]
    return tf.concat([rows, tf.fill([more, *like.shape[1:]], tf.cast(value, like.dtype))], 0)


@functools.cache
def _nodes_class():
    module = tf_privacy.load("dp_query.tree_aggregation")

    class SecretNodes(module.ValueGenerator):
        """The nodes of a tree: number k of a round comes from its secret seed and k."""

        def __init__(self, stddev, specs, seed):
            self._stddev, self._specs, self._seed = stddev, specs, seed

        def initialize(self):
            return self._seed, tf.constant(0)

        def next(self, state):
            seed, number = state
            node = queries.noise(self._specs, self._stddev, random.fold_in(seed, number))
            return node, (seed, number + 1)

    return SecretNodes
