"""Partition schemes that skew the clients' sizes or their inputs."""

import dataclasses

import numpy as np

from tffed.data.nest import leaves
from tffed.data.schemes import Scheme, cut, num_rows, plain_fields, require_number


@dataclasses.dataclass(frozen=True)
class LogNormalQuantity(Scheme):
    """Quantity skew: sizes in proportion to `exp(sigma z)`, z standard normal; content IID.

    Every client has one example, and the rest is shared out in proportion.

    Args:
        sigma: Standard deviation of the logarithm of the sizes; 0 gives equal sizes.

    References:
        Li et al. 2020, Federated Optimization in Heterogeneous Networks (the synthetic data).
    """

    sigma: float

    def __post_init__(self):
        plain_fields(self)
        require_number("sigma", self.sigma, 0, np.inf, "Give for example 1.")

    def split(self, x, y, clients, rng):
        logs = self.sigma * rng.standard_normal(clients)
        weights = np.exp(logs - logs.max())
        return cut(rng.permutation(num_rows(x)), proportional_sizes(num_rows(x), weights))


@dataclasses.dataclass(frozen=True)
class PowerLawQuantity(Scheme):
    """Quantity skew: the r-th largest client's size goes as `r ** -exponent`; content IID.

    Every client has one example, and the rest is shared out in proportion. Which client has
    which rank is random.

    Args:
        exponent: Exponent of the power law; 0 gives equal sizes, 1 is Zipf's law.

    References:
        Li et al. 2020, Federated Optimization in Heterogeneous Networks, section 5.1.
    """

    exponent: float

    def __post_init__(self):
        plain_fields(self)
        require_number("exponent", self.exponent, 0, np.inf, "Give for example 1.")

    def split(self, x, y, clients, rng):
        weights = np.arange(1.0, clients + 1) ** -self.exponent
        sizes = proportional_sizes(num_rows(x), rng.permutation(weights))
        return cut(rng.permutation(num_rows(x)), sizes)


def proportional_sizes(total: int, weights: np.ndarray) -> np.ndarray:
    """Returns int64 sizes that sum to `total`: one each, the rest in proportion to `weights`.

    Fractions are settled by largest remainders, the first of equal ones.
    """
    exact = (total - len(weights)) * weights / weights.sum()
    sizes = np.floor(exact).astype(np.int64)
    short = total - len(weights) - sizes.sum()
    sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    return sizes + 1


@dataclasses.dataclass(frozen=True)
class FeatureSkew(Scheme):
    """Feature skew: each client holds a slice of the first principal component of the inputs.

    The examples are ordered by `strength * r + (1 - strength) * u`, with r their rank along the
    component scaled to [0, 1] and u uniform on [0, 1], and cut into clients of equal size. The
    examples stay as they are, so `p(x)` differs between clients and `p(y | x)` does not. The
    component is that of the standardised features, estimated on at most 2,000 examples.

    Args:
        strength: From 0 (IID) to 1 (clients hold disjoint slices).

    References:
        Li et al. 2022, Federated Learning on Non-IID Data Silos: An Experimental Study, for
        feature skew as a kind; their noise changes the examples, which a partition may not. Huang
        et al. 2006, Correcting Sample Selection Bias by Unlabeled Data, for the shift along the
        first principal component.
    """

    strength: float = 1.0

    def __post_init__(self):
        plain_fields(self)
        require_number(
            "strength", self.strength, 0, 1, "Give 1 for disjoint slices, less for a mixture."
        )

    def split(self, x, y, clients, rng):
        scores = principal_scores(x, rng)
        rank = np.argsort(np.argsort(scores, kind="stable"), kind="stable") / len(scores)
        key = self.strength * rank + (1 - self.strength) * rng.random(len(scores))
        slices = np.array_split(np.argsort(key, kind="stable"), clients)
        return [slices[k] for k in rng.permutation(clients)]


def principal_scores(x, rng: np.random.Generator, fit_on: int = 2000) -> np.ndarray:
    """Projects inputs on the first principal component of their standardised features.

    Args:
        x: Nest of arrays with leading dimension N; all leaves are flattened to features.
        rng: Chooses the examples that the component is fitted on, and the start vector.
        fit_on: Largest number of examples to fit on.

    Returns:
        float64 `[N]`. The sign is arbitrary.
    """
    # einsum rather than a BLAS product: its sums do not depend on the number of threads, which
    # could otherwise swap examples of nearly equal score from one machine to the next.
    features = np.concatenate(
        [leaf.reshape(len(leaf), -1).astype(np.float32) for _, leaf in leaves(x)], axis=1
    )
    size = min(fit_on, len(features))
    sample = features[rng.choice(len(features), size, replace=False)].astype(np.float64)
    mean, scale = sample.mean(axis=0), sample.std(axis=0)
    sample -= mean
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    sample *= inverse
    direction = rng.standard_normal(sample.shape[1])
    for _ in range(50):  # power iteration; slow convergence only tilts the direction slightly
        direction = np.einsum("nd,n->d", sample, np.einsum("nd,d->n", sample, direction))
        norm = np.sqrt(np.square(direction).sum())
        direction /= norm if norm > 0 else 1.0
    return np.einsum("nd,d->n", features, direction * inverse) - (mean * direction * inverse).sum()
