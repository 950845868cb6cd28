"""The audit against formulas, linear programs, statistical tests, scikit-learn and Keras."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, optimize, stats
from sklearn import metrics

import tffed
from tffed import random, tree
from tffed.aggregation import Stage, chain, clip, mean, median
from tffed.data import digits
from tffed.privacy import audit

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def expit(epsilon):
    return 1 / (1 + math.exp(-epsilon))


# Bounds


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("guesses, correct", [(1, 1), (20, 0), (20, 13), (300, 280), (300, 300)])
def test_p_value_of_pure_dp_is_the_papers_binomial_tail(epsilon, guesses, correct):
    expected = stats.binomtest(correct, guesses, expit(epsilon), "greater").pvalue
    found = audit.p_value(1000, guesses, correct, epsilon, 0.0)
    assert found == pytest.approx(expected, rel=1e-10)


def test_p_value_with_delta_is_theorem_5_2_summed_by_hand():
    m, r, v, epsilon, delta = 40, 20, 17, 0.7, 1e-3
    masses = [math.comb(r, k) * expit(epsilon) ** k * expit(-epsilon) ** (r - k) for k in range(21)]
    steps = [sum(masses[v - i : v]) / i for i in range(1, v + 1)]
    expected = sum(masses[v:]) + 2 * m * delta * max(steps)
    assert audit.p_value(m, r, v, epsilon, delta) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("test", ["steinke", "tradeoff"])
def test_all_right_is_the_closed_form(test):
    # P[all of r right] = q^r = 5 %, so that q = 0.05^(1/r): 3.49 for a hundred.
    q = 0.05 ** (1 / 100)
    assert audit.one_run(100, 100, 100, test=test) == pytest.approx(math.log(q / (1 - q)))
    assert audit.one_run(100, 100, 100, test=test) == pytest.approx(3.493, abs=5e-4)
    assert audit.one_run(100, 100, 50, test=test) == 0
    assert audit.one_run(100, 0, 0, test=test) == 0


def most_probable(m, r, v, epsilon, delta):
    """The largest P[at least v right] that the constraints of f-DP leave, as a linear program."""
    growth = math.exp(epsilon)
    right, wrong = np.arange(r + 1) / m, (r - np.arange(r + 1)) / m
    rows, limits = [], []
    for c in range(r):
        gained, lost = right * (np.arange(r + 1) > c), wrong * (np.arange(r + 1) >= c)
        # gained <= δ + e^ε lost, and gained <= 1 - e^-ε (1 - δ - lost).
        rows += [gained - growth * lost, gained - lost / growth]
        limits += [delta, 1 - (1 - delta) / growth]
    done = optimize.linprog(
        -(np.arange(r + 1) >= v).astype(float),
        rows, limits, np.ones((1, r + 1)), [1.0], method="highs",
    )
    return -done.fun


@pytest.mark.parametrize(
    "m, r, v, epsilon, delta",
    [(8, 8, 7, 1.0, 0.0), (30, 20, 17, 0.8, 1e-3), (30, 20, 14, 0.1, 1e-4), (25, 6, 6, 2.0, 1e-3)],
)
def test_tradeoff_test_is_the_linear_program(m, r, v, epsilon, delta):
    from tffed.privacy.audit.bounds import _TESTS

    most = most_probable(m, r, v, epsilon, delta)
    assert 1e-4 < most < 1
    assert _TESTS["tradeoff"](m, r, v, epsilon, delta, most * 1.001)
    assert not _TESTS["tradeoff"](m, r, v, epsilon, delta, most * 0.999)


@pytest.mark.parametrize("test", ["steinke", "tradeoff"])
@pytest.mark.parametrize("delta", [0.0, 1e-4])
def test_bound_holds_for_randomized_response_of_known_epsilon(test, delta):
    # Randomized response is the worst mechanism that is (ε, 0)-DP, so 5 % of the runs may be wrong;
    # in 400, more than 38 are with a probability of 1e-4.
    epsilon, m, r = 1.5, 600, 300
    rng = np.random.default_rng(3)
    correct, number = np.unique(rng.binomial(r, expit(epsilon), 400), return_counts=True)
    found = np.array([audit.one_run(m, r, int(v), delta, 0.95, test) for v in correct])
    assert number[found > epsilon].sum() <= 38
    assert np.average(found, weights=number) > 0.8 * epsilon


@pytest.mark.parametrize("test", ["steinke", "tradeoff"])
def test_bound_holds_where_delta_shows_everything(test):
    # (0, δ)-DP at its worst: all coins are shown with probability δ, which may not refute it.
    assert audit.one_run(200, 200, 200, 0.051, 0.95, test) == 0
    assert audit.one_run(200, 200, 200, 1e-6, 0.95, test) > 4


def test_rates_are_clopper_pearson():
    tp, positives, fp, negatives, delta = 180, 200, 12, 250, 1e-3
    interval = {"confidence_level": 0.95, "method": "exact"}
    low = stats.binomtest(tp, positives).proportion_ci(**interval).low
    high = stats.binomtest(fp, negatives).proportion_ci(**interval).high
    expected = math.log(max((low - delta) / high, (1 - high - delta) / (1 - low)))
    found = audit.from_rates(tp, positives, fp, negatives, delta)
    assert found == pytest.approx(expected, rel=1e-9) and found > 2
    mirrored = audit.from_rates(negatives - fp, negatives, positives - tp, positives, delta)
    assert mirrored == pytest.approx(found, rel=1e-9)
    assert audit.from_rates(0, 5, 5, 5) == audit.from_rates(3, 5, 3, 5) == 0


def test_normals_of_one_deviation_are_the_gaussian_mechanism():
    for mu, delta in ((1.0, 1e-5), (0.3, 1e-3), (4.0, 1e-8)):
        epsilon = audit.normals((mu, 1.0), (0.0, 1.0), delta)
        cdf = stats.norm.cdf
        found = cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)
        assert found == pytest.approx(delta, rel=1e-6)
    assert audit.normals((2.0, 0.1), (2.0, 0.1), 1e-6) == 0


@pytest.mark.parametrize("first, second", [((1.0, 1.3), (0.0, 1.0)), ((0.2, 0.7), (0.0, 1.0))])
def test_normals_of_two_deviations_are_the_integral(first, second):
    epsilon = audit.normals(first, second, 1e-2)

    def delta(p, q):
        def excess(x):
            return max(0.0, stats.norm.pdf(x, *p) - math.exp(epsilon) * stats.norm.pdf(x, *q))

        return integrate.quad(excess, -12, 12, limit=400, points=np.linspace(-6, 6, 25))[0]

    assert max(delta(first, second), delta(second, first)) == pytest.approx(1e-2, rel=1e-3)


def test_one_shot_estimates_the_gaussian_mechanism():
    # Canaries on the sphere and noise of multiplier z: ε of N(1, z²) against N(0, z²). The
    # cosines give 1/z with a deviation of 0.04.
    rng, d, k, z, delta = np.random.default_rng(0), 10_000, 800, 1.0, 1e-5
    released, canaries = z * rng.standard_normal(d), rng.standard_normal((k, d), np.float32)
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    released += canaries.sum(0)
    cosines = canaries @ released / np.linalg.norm(released)
    expected = audit.normals((1 / z, 1.0), (0.0, 1.0), delta)
    assert audit.one_shot(cosines, d, delta) == pytest.approx(expected, rel=0.15)
    apart = rng.standard_normal((200, d)) @ released / np.linalg.norm(released) / math.sqrt(d)
    assert audit.one_shot(apart, d, delta) < 1.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: audit.one_run(10, 12, 3), "0 <= correct <= guesses <= canaries"),
        (lambda: audit.one_run(10, 5, 6), "0 <= correct <= guesses <= canaries"),
        (lambda: audit.one_run(10, 5, 5, test="binomial"), "`test` must be one of"),
        (lambda: audit.one_run(10, 5, 5, confidence=1.0), "`confidence` in"),
        (lambda: audit.one_run(10, 5, 5, delta=1.0), "`delta` in"),
        (lambda: audit.from_rates(6, 5, 0, 5), "Expected `tp`"),
        (lambda: audit.normals((0.0, 0.0), (0.0, 1.0), 0.1), "positive standard deviations"),
        (lambda: audit.one_shot([0.1], 10, 0.1), "at least two canaries"),
        (lambda: audit.audit_clients(chain(mean())), "bounds updates"),
        (lambda: audit.audit_clients(chain(clip(1.0), median())), "adds up"),
        (lambda: audit.audit_examples(sum, norm=0), "`norm` must be positive"),
        (lambda: audit.audit_examples(sum, norm=1, takes_part=2), "`takes_part` must be"),
        (lambda: audit.audit_examples(sum, norm=1, directions="y"), "`directions` must be"),
        (lambda: audit.audit_examples(sum, norm=1, dimension=3), "a dimension for each"),
        (lambda: audit.audit_examples(lambda v, s: v, norm=1, canaries=80), "a finite vector of 2"),
        (lambda: audit.from_scores([], [1.0]), "members and non-members"),
        (lambda: audit.infer_labels([np.zeros((3, 3, 1, 2))], 1), "dense last layer"),
        (lambda: audit.dense_input(np.zeros((3, 2)), np.zeros(2)), "that is not zero"),
        (lambda: audit.figure(None, np.zeros((2, 4, 4)), {"a": np.zeros((1, 4, 4))}), "like the"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "Received: " in str(error.value)


# Canaries


def noise(multiplier, norm=1.0):
    """Gaussian noise on the clients' sum."""

    def finish(state, total, stats, clients, seed):
        del stats, clients
        seeds = (random.fold_in(seed, i) for i in range(len(total)))
        drawn = (
            multiplier * norm * tf.random.stateless_normal(leaf.shape, here)
            for leaf, here in zip(total, seeds, strict=True)
        )
        return tree.add(total, tuple(drawn)), state, {}

    return Stage(finish=finish, bound=lambda bound: bound)


def sums(multiplier, norm=1.0):
    """A release of clipped examples' noised sum."""

    @tf.function(reduce_retracing=True)
    def release(vectors, seed):
        clipped = tf.clip_by_norm(vectors, norm, axes=1)
        total = tf.reduce_sum(clipped, 0)
        return total + multiplier * norm * tf.random.stateless_normal(tf.shape(total), seed)

    return release


def claim(multiplier, delta):
    return audit.normals((1 / multiplier, 1.0), (0.0, 1.0), delta)


def test_canaries_tell_halved_noise_from_what_is_claimed():
    # The bound has passed 5.0 in 20 of 20 runs of the halved noise, and 3.1 in none of the other.
    z, delta = 1.0, 1e-5
    epsilon = claim(z, delta)
    assert epsilon == pytest.approx(4.377, abs=1e-3)
    options = {"norm": 2.0, "delta": delta, "claimed_epsilon": epsilon, "seed": 0}
    right = audit.audit_examples(sums(z, 2.0), **options)
    halved = audit.audit_examples(sums(z / 2, 2.0), **options)
    assert 2 < right.epsilon_lower < epsilon and not right.refuted
    assert halved.epsilon_lower > epsilon and halved.refuted
    assert right.epsilon_estimate == pytest.approx(epsilon, rel=0.05)
    assert halved.epsilon_estimate == pytest.approx(claim(z / 2, delta), rel=0.05)
    assert str(halved).endswith("claimed 4.38: REFUTED") and "95% confidence" in str(right)


def test_only_an_audit_with_a_seed_can_be_repeated():
    options = {"norm": 1.0, "canaries": 900, "rounds": 3}
    one, same = (audit.audit_examples(sums(1.0), seed=6, **options) for _ in range(2))
    assert one == same
    assert len({audit.audit_examples(sums(1.0), **options) for _ in range(3)}) == 3


@pytest.mark.parametrize("multiplier, refuted", [(1.0, False), (0.5, True)])
def test_canary_clients_go_through_the_whole_chain(multiplier, refuted):
    aggregator = chain(clip(0.5), noise(multiplier, 0.5), mean("uniform"))
    like = (tf.zeros([50, 20]), tf.zeros([100]))
    others = [(tf.ones([50, 20]), tf.ones([100]))] * 3
    found = audit.audit_clients(
        aggregator, like, others=others, canaries=40_000, rounds=40, delta=1e-4,
        claimed_epsilon=claim(1.0, 1e-4), seed=1,
    )
    assert found.refuted == refuted
    assert found.epsilon_estimate == pytest.approx(claim(multiplier, 1e-4), rel=0.05)


def test_noise_that_comes_again_is_noticed():
    # A seed that is used twice: what two rounds have in common is then all of the noise.
    release = sums(1.0)
    options = {"norm": 1.0, "canaries": 4000, "seed": 2, "claimed_epsilon": claim(1.0, 1e-5)}
    assert not audit.audit_examples(release, **options).refuted
    again = audit.audit_examples(lambda vectors, seed: release(vectors, seed * 0), **options)
    assert again.correct == again.guesses and again.refuted


def test_canaries_in_all_rounds_cost_what_all_rounds_cost():
    options = {"norm": 1.0, "canaries": 800, "rounds": 16, "takes_part": "always", "seed": 2}
    found = audit.audit_examples(sums(4.0), **options)
    assert found.epsilon_estimate == pytest.approx(claim(1.0, 1e-5), rel=0.12)
    assert 0 < found.epsilon_lower < claim(1.0, 1e-5)


def test_random_directions_and_one_number_of_guesses():
    found = audit.audit_examples(
        sums(0.5), norm=1.0, dimension=20_000, canaries=300, rounds=1, directions="random",
        guesses=100, seed=4,
    )
    assert found.guesses == 100 and found.correct >= 95
    expected = audit.one_run(300, 100, found.correct, 1e-5)
    assert found.epsilon_lower == expected > 1


def test_a_mechanism_without_the_canaries_gives_no_bound():
    # P[some bound above 0] is at most 5 % by the bound's own claim; the seed is fixed.
    def release(vectors, seed):
        return tf.random.stateless_normal(vectors.shape[1:], seed)

    found = audit.audit_examples(release, norm=1.0, canaries=8000, seed=5)
    assert found.epsilon_lower == 0 and found.claimed_epsilon is None and not found.refuted


# Membership inference


def network(hidden=32):
    layers = [keras.layers.Dense(hidden, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
    return model


def pool(size):
    """Digits of which two in five have a random label: what can only be learnt by heart."""
    rng = np.random.default_rng(0)
    x, y = digits().train
    wrong = rng.random(size) < 0.4
    return x[:size], np.where(wrong, rng.integers(0, 10, size), y[:size])


def rows(data, mask):
    return data[0][mask], data[1][mask]


def softmax_regression(x, y, steps=300):
    """Weights that fit the examples by gradient descent, in NumPy."""
    x, weights = np.c_[x, np.ones(len(x))], np.zeros((65, 10))
    for _ in range(steps):
        scores = np.exp(x @ weights)
        weights -= 2.0 * x.T @ (scores / scores.sum(1, keepdims=True) - np.eye(10)[y]) / len(x)
    return weights


def test_membership_of_an_overfit_model_shows_and_of_another_does_not():
    data = pool(300)
    member = np.arange(300) % 2 == 0
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile(loss=CROSS_ENTROPY)
    weights = softmax_regression(*rows(data, member), steps=1500)
    model.set_weights([weights[:-1], weights[-1]])
    found = audit.loss_threshold(model, rows(data, member), rows(data, ~member))
    # Witness: scikit-learn on Keras's own losses.
    losses = CROSS_ENTROPY.call(data[1], model(data[0])).numpy()
    assert found.auc == pytest.approx(metrics.roc_auc_score(member, -losses))
    fpr, tpr, _ = metrics.roc_curve(member, -losses)
    assert found.advantage == pytest.approx((tpr - fpr).max())
    assert found.tpr_at(0.05) == tpr[fpr <= 0.05].max()
    assert found.auc > 0.7 and found.advantage > 0.4
    # A model of neither: the AUC of n = 150 against 150 has a deviation of 1 / √(6n) = 0.033; four.
    unseen = audit.loss_threshold(network(), rows(data, member), rows(data, ~member))
    assert unseen.auc == pytest.approx(0.5, abs=0.133)
    assert "AUC" in str(found)


def test_lira_finds_more_than_the_loss_does():
    data, rng = pool(300), np.random.default_rng(1)
    masks = np.stack([rng.permutation(300) < 150 for _ in range(33)])
    models = [softmax_regression(*rows(data, mask)) for mask in masks]
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    losses = []
    for weights in reversed(models):
        model.set_weights([weights[:-1], weights[-1]])
        losses.insert(0, CROSS_ENTROPY.call(data[1], model(data[0])).numpy())
    model.compile(loss=CROSS_ENTROPY)
    shadows = list(zip(losses[1:], masks[1:], strict=True))
    online = audit.lira(model, data, masks[0], shadows)
    offline = audit.lira(losses[0], data, masks[0], shadows, online=False)
    plain = audit.loss_threshold(model, rows(data, masks[0]), rows(data, ~masks[0]))
    assert online.auc > plain.auc + 0.05 and offline.auc > plain.auc
    # Guessing has TPR 0.05 there, and 24 of 150 or more with a probability of 1e-6.
    assert online.tpr_at(0.05) > 0.16
    # Membership at random: the AUC has a deviation of 1 / √(6 · 150) = 0.033; four.
    shuffled = audit.lira(losses[0], data, rng.permutation(masks[0]), shadows)
    assert shuffled.auc == pytest.approx(0.5, abs=0.133)


def test_lira_is_the_likelihood_ratio():
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.1, 3, (7, 60))
    half = np.arange(60) % 2 == 0
    masks = np.stack([half, half, ~half, ~half, rng.permutation(half), rng.permutation(half)])
    shadows = list(zip(losses[:6], masks, strict=True))
    logits = np.log(np.exp(-losses) / (1 - np.exp(-losses)))
    scores = []
    pooled = {}
    for which, chosen in (("in", masks), ("out", ~masks)):
        parts = [logits[:6][chosen[:, k], k] for k in range(60)]
        means = [part.mean() for part in parts]
        squares = sum(((part - part.mean()) ** 2).sum() for part in parts)
        pooled[which] = means, math.sqrt(squares / sum(len(part) - 1 for part in parts))
    for k in range(60):
        (a, s), (b, t) = ((pooled[w][0][k], pooled[w][1]) for w in ("in", "out"))
        scores.append(stats.norm.logpdf(logits[6, k], a, s) - stats.norm.logpdf(logits[6, k], b, t))
    members = rng.permutation(half)
    found = audit.lira(losses[6], None, members, shadows)
    assert found.auc == metrics.roc_auc_score(members, scores)
    with pytest.raises(ValueError, match="Received: none for 30 of 60"):
        audit.lira(losses[6], None, members, shadows[:2])


def test_roc_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    found = audit.from_scores(rng.normal(1, 1, 500), rng.normal(0, 1, 500), name="scores")
    found.plot(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 5000


# Gradient inversion


def gradient_of(model, x, y):
    """By Keras's own loss and TensorFlow's tape."""
    with tf.GradientTape() as tape:
        loss = CROSS_ENTROPY(y, model(x))
    return [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]


def test_the_input_of_a_dense_layer_is_in_its_gradient():
    x, y = digits().train
    gradient = gradient_of(network(), x[:1], y[:1])
    np.testing.assert_allclose(audit.dense_input(*gradient[:2]), x[0], atol=1e-5)
    assert audit.infer_labels(gradient, 1).tolist() == [y[0]]
    no_bias = [*gradient[:-1]]
    assert audit.infer_labels(no_bias, 1).tolist() == [y[0]]


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_examples_are_recovered_from_a_gradient(distance):
    x, y = digits().train
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(48, "sigmoid"), keras.layers.Dense(10)]
    )
    gradient = gradient_of(model, x[:3], y[:3])
    assert audit.infer_labels(gradient, 3).tolist() == sorted(y[:3])
    clipped = gradient if distance == "squared" else [0.01 * g for g in gradient]
    found, history = audit.invert(
        model, clipped, (3, 64), loss=CROSS_ENTROPY, distance=distance
    )
    assert history[-1] < 1e-5 < history[0]
    for original in x[:3]:
        assert min(np.abs(one - original).max() for one in found) < 0.02
    rng = np.random.default_rng(0)
    size = math.sqrt(sum(np.square(g).sum() for g in gradient))
    noised = [g + rng.normal(0, size / 10, g.shape).astype(np.float32) for g in gradient]
    blurred, _ = audit.invert(model, noised, (3, 64), y[:3], loss=CROSS_ENTROPY, distance=distance)
    for original in x[:3]:
        assert min(np.sqrt(np.mean((one - original) ** 2)) for one in blurred) > 0.2


def test_an_update_of_fed_sgd_is_inverted():
    x, y = digits(image=True).train
    flat = [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    model = keras.Sequential([*flat, keras.layers.Dense(32, "tanh"), keras.layers.Dense(10)])
    fed = tffed.Federated(model, tffed.fed_sgd())
    fed.compile(server_optimizer=keras.optimizers.SGD(1.0), loss=CROSS_ENTROPY)
    before = model.get_weights()
    fed.fit({0: (x[:1], y[:1])}, rounds=1, verbose=0)
    gradient = [a - b for a, b in zip(before, model.get_weights(), strict=True)]
    model.set_weights(before)
    found, _ = audit.invert(model, gradient, (1, 8, 8, 1))
    np.testing.assert_allclose(found, x[:1], atol=0.02)
    with pytest.raises(ValueError, match="a gradient of the shapes of the trainable weights"):
        audit.invert(model, gradient[:2], (1, 8, 8, 1))
    with pytest.raises(ValueError, match="`distance` must be one of"):
        audit.invert(model, gradient, (1, 8, 8, 1), distance="l1")


def test_what_the_server_sees_is_drawn(tmp_path):
    images = np.random.default_rng(0).uniform(-1, 2, (3, 8, 8))
    audit.figure(tmp_path / "seen.png", images, {"no protection": images, "noise": -images})
    assert (tmp_path / "seen.png").stat().st_size > 3000
