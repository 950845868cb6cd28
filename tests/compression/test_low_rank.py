"""PowerSGD against power iteration and singular values in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tests.compression.stages import SEED, decoded, flat, normal, whole
from tffed import Stage, chain, clip, mean, random, tree
from tffed.compression import (
    error_feedback,
    lazy,
    power_sgd,
    prune,
    quantize,
    random_k,
    rotate,
    top_k,
)

MATRICES = (tf.zeros((24, 10)), tf.zeros((10,)), tf.zeros((3, 3, 2, 12)), tf.zeros((12, 2)))


def rounds(stage, updates):
    """What is decoded of each, the client's state going on; and that state."""
    stage, like = whole(stage), tree.spec(updates[0])
    shared, state, found = stage.shared(stage.init(updates[0])), stage.client_init(like), []

    @tf.function(autograph=False)
    def step(state, update, seed):
        payload, state, _ = stage.encode(shared, state, update, seed)
        return stage.decode(shared, payload, like), state

    for k, update in enumerate(updates):
        got, state = step(state, update, random.fold_in(SEED, k))
        found.append(got)
    return found, state


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_it_is_power_iteration_from_the_last_q(rank):
    updates = [normal(k, like=MATRICES) for k in range(4)]
    found, _ = rounds(power_sgd(rank, min_size=1), updates)
    for index in (0, 2):
        shape = MATRICES[index].shape
        columns = shape[-1]
        start = power_sgd(rank, min_size=1).client_init(MATRICES)
        q = start[0 if index == 0 else 1].numpy().astype(np.float64)
        for update, result in zip(updates, found, strict=True):
            matrix = update[index].numpy().reshape(-1, columns).astype(np.float64)
            p, _ = np.linalg.qr(matrix @ q)  # the span is what counts: P Qᵀ = P Pᵀ M
            q = matrix.T @ p
            got = result[index].numpy().reshape(-1, columns)
            np.testing.assert_allclose(got, p @ q.T, atol=2e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_on_a_fixed_matrix_the_error_becomes_that_of_the_singular_vectors(rank):
    rng = np.random.default_rng(rank)
    left, _ = np.linalg.qr(rng.normal(size=(40, 15)))
    right, _ = np.linalg.qr(rng.normal(size=(15, 15)))
    singular = 2.0 ** -np.arange(15)
    update = (tf.constant((left * singular) @ right.T, tf.float32),)
    found, _ = rounds(power_sgd(rank, min_size=1), [update] * 12)
    errors = [np.linalg.norm(flat(f) - flat(update)) for f in found]
    best = np.linalg.norm(singular[rank:])
    assert errors[-1] == pytest.approx(best, rel=1e-4)
    assert errors[0] > 1.05 * best
    assert all(b <= a * (1 + 1e-5) for a, b in zip(errors, errors[1:], strict=False))


def test_it_is_a_contraction_and_feedback_sends_the_rest():
    stage = error_feedback(power_sgd(2, min_size=1))
    update = normal(1, like=MATRICES)
    assert np.linalg.norm(flat(decoded(stage, update)) - flat(update)) < np.linalg.norm(
        flat(update)
    )
    found, state = rounds(stage, [update] * 30)
    sent = np.sum([flat(f) for f in found], axis=0)
    residual, _ = state[0]
    np.testing.assert_allclose(sent, 30 * flat(update) - flat(residual), atol=1e-3)
    assert np.linalg.norm(flat(residual)) < 10 * np.linalg.norm(flat(update))


def test_what_would_not_shrink_is_handed_on_as_it_is():
    left, right, rest = power_sgd(2, min_size=1).passes(MATRICES)
    assert [p.shape for p in left] == [[24, 2], [18, 2]]
    assert [q.shape for q in right] == [[10, 2], [12, 2]]
    assert [r.shape for r in rest] == [[10], [12, 2]]  # (12 + 2) · 2 is not less than 24
    left, right, rest = power_sgd(2).passes(MATRICES)
    assert left == right == () and len(rest) == 4
    for stage in (power_sgd(2), power_sgd(2, min_size=1)):
        update = normal(2, like=MATRICES)
        found = decoded(stage, update)
        np.testing.assert_array_equal(found[1], update[1])
        np.testing.assert_array_equal(found[3], update[3])


def test_a_stage_after_it_works_on_the_factors():
    half = Stage(
        encode=lambda sh, st, v, s: (tree.scale(v, 0.5), st, {}),
        decode=lambda sh, p, like: tree.scale(p, 2.0),
    )
    update, stage = normal(3, like=MATRICES), power_sgd(1, min_size=1)
    np.testing.assert_array_equal(
        flat(decoded(stage, update)), flat(decoded((stage, half), update))
    )


@pytest.mark.parametrize("true_rank", [0, 1, 2])
def test_matrices_of_lower_rank_are_exact_and_do_not_spoil_later_rounds(true_rank):
    rng = np.random.default_rng(0)
    thin = rng.normal(size=(24, true_rank)) @ rng.normal(size=(true_rank, 10))
    low = (tf.constant(thin, tf.float32),)
    full = (tf.constant(rng.normal(size=(24, 10)), tf.float32),)
    found, state = rounds(power_sgd(3, min_size=1), [low, low, *[full] * 40])
    for k in range(2):
        np.testing.assert_allclose(found[k][0], low[0], atol=1e-5)
    values = np.linalg.svd(full[0].numpy(), compute_uv=False)
    assert np.linalg.norm(found[-1][0] - full[0]) == pytest.approx(
        np.linalg.norm(values[3:]), rel=0.01
    )


def pattern(i):
    matrix = np.zeros((30, 20), np.float32)
    matrix[i, i] = 1
    return matrix


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("before", [[0, 1], [0, 1, 2, 3], [None, None]], ids=str)
def test_a_direction_orthogonal_to_those_before_is_sent(rank, before):
    """Disjoint rows and columns, or zeros, and then something else, 40 times."""
    given = [np.zeros((30, 20)) if i is None else pattern(i) for i in before] + [pattern(7)] * 40
    given = [(tf.constant(m, tf.float32),) for m in given]
    found, state = rounds(error_feedback(power_sgd(rank, min_size=1)), given)
    sent, (residual, _) = np.sum([f[0] for f in found], axis=0), state[0]
    np.testing.assert_allclose(sent, np.sum([g[0] for g in given], 0) - residual[0], atol=1e-4)
    assert sent[7, 7] > 38
    assert np.linalg.norm(residual[0]) < 2


@pytest.mark.parametrize("rank", [1, 2])
def test_what_is_small_does_not_keep_what_is_large_from_being_sent(rank):
    """The Q that stays takes a ten thousandth of the matrix, and nothing of what is left out."""
    small = [0.01 * sum(pattern(i) for i in range(rank))] * 2
    given = small + [small[0] + sum(pattern(i) for i in (7, 9, 12))] * 100
    given = [(tf.constant(m, tf.float32),) for m in given]
    _, state = rounds(error_feedback(power_sgd(rank, min_size=1)), given)
    assert np.linalg.norm(state[0][0][0]) < 20


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e-36])
def test_small_updates_are_not_lost(size):
    update = (tf.constant(size * np.outer(np.arange(1, 25), np.arange(1, 11)), tf.float32),)
    for found in rounds(power_sgd(2, min_size=1), [update] * 3)[0]:
        np.testing.assert_allclose(found[0], update[0], rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_is_not_hidden(bad):
    matrix = np.ones((24, 10), np.float32)
    matrix[3, 4] = bad
    assert not np.isfinite(decoded(power_sgd(2, min_size=1), (tf.constant(matrix),))[0]).all()


def test_wrong_arguments_are_refused():
    for arguments in ({"rank": 0}, {"rank": 1.5}, {"rank": 1, "min_size": 0}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            power_sgd(**arguments)
    assert chain(power_sgd(2), mean()).bound is None


def test_what_changes_coordinates_must_not_stand_before_it():
    for stage in (rotate(8), top_k(0.5), random_k(0.5)):
        with pytest.raises(ValueError, match="something else in every round") as error:
            chain(stage, power_sgd(1), mean())
        assert f"Received: {stage.name} before it" in str(error.value)
    with pytest.raises(ValueError, match="after prune.*Received: power_sgd"):
        chain(prune(0.5, 0, 0), power_sgd(1), mean())
    for stage in (clip(1.0), lazy(1.0)):
        chain(stage, power_sgd(1), mean())


def test_factors_are_alike_so_that_one_scale_does_for_both():
    """M of a thousand: P alone would be some thousandths of Q, and lost in its codes."""
    update = (tf.constant(1000 * np.random.default_rng(0).normal(size=(30, 20)), tf.float32),)
    stages = power_sgd(2, min_size=1), quantize(8, block=4096)
    exact, found = flat(decoded(stages[0], update)), flat(decoded(stages, update))
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)
