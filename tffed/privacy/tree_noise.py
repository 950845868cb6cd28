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

    The tree is `TreeResidualSumQuery`'s (Honaker's estimator), begun again by `RestartQuery` every
    `period` rounds, and where `stddev` is no longer that of the nodes so far. `seed` is the
    round's: a node is drawn in one round and kept.
    """
    trees, restart = _tree_modules()
    specs = tuple(tf.TensorSpec(w.shape) for w in total)
    drawn = _nodes_class()(stddev, specs, seed)
    inner = trees.TreeResidualSumQuery(specs, drawn, None, clip)  # None: records come clipped
    query = restart.RestartQuery(inner, restart.PeriodicRoundRestartIndicator(period))

    def kept():
        rows = tf.reduce_sum(tf.cast(state.levels >= 0, tf.int32))
        nodes = tuple(n[:rows] for n in state.nodes)
        tree_state = trees.tree_aggregation.TreeState(
            nodes, state.levels[:rows], drawn.initialize()
        )
        begun = inner.GlobalState(tree_state, tf.constant(clip, tf.float32), state.previous)
        return query._GlobalState(begun, state.rounds)

    def fresh():
        return query.initial_global_state()._replace(indicator_state=state.rounds)

    # A fresh tree holds its first leaf, which needs a seed: so it is made in its first round.
    begun = tf.cond(state.stddev == stddev, kept, fresh)
    result, new, _ = query.get_noised_result(queries.float32(total), begun)
    found = new.inner_query_state
    levels, nodes = found.tree_state.level_buffer_idx, found.tree_state.level_buffer
    new = TreeNoise(
        _padded(levels, state.levels, -1),
        tuple(_padded(n, k, 0.0) for n, k in zip(nodes, state.nodes, strict=True)),
        found.previous_tree_noise,
        new.indicator_state,
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


def _tree_modules():
    return (
        tf_privacy.load("dp_query.tree_aggregation_query"),
        tf_privacy.load("dp_query.restart_query"),
    )
