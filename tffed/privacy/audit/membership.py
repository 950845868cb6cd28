"""Membership inference: was an example among those that a model was trained on?

Every attack gives each example a score; the higher, the more it looks like a member. A threshold on
the scores is a test, and all thresholds together are the ROC curve.
"""

import operator
from typing import NamedTuple

import keras
import numpy as np

from tffed.extras import require

_BATCH = 512
_SMALLEST_LOSS, _LARGEST_LOSS = 1e-15, 500.0  # beyond them float64 cannot tell the logit


class MembershipResult(NamedTuple):
    """How well scores tell members.

    Attributes:
        fpr: False positive rates of the ROC curve, ascending from 0 to 1.
        tpr: True positive rates likewise.
        auc: Area under the curve; 0.5 is guessing.
        advantage: The largest TPR - FPR of any threshold (Yeom et al. 2018).
        name: Of the attack.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    auc: float
    advantage: float
    name: str = "attack"

    def tpr_at(self, fpr):
        """The largest true positive rate whose false positive rate is at most `fpr`."""
        return float(self.tpr[self.fpr <= fpr].max())

    def __str__(self):
        low = ", ".join(f"TPR {self.tpr_at(rate):.3f} at FPR {rate:g}" for rate in (0.001, 0.01))
        return f"{self.name}: AUC {self.auc:.3f}, advantage {self.advantage:.3f}, {low}"

    def plot(self, path=None, axes=None):
        """Draws the ROC curve on two logarithmic axes, where low false positive rates show.

        Args:
            path: File to write, its format by its ending, or None.
            axes: `matplotlib.axes.Axes` to draw into, those of a new figure if None.

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        first = axes is None
        if first:
            figure = require("matplotlib.figure", "plot").Figure((5.2, 5), layout="constrained")
            axes = figure.add_subplot()
        if first or not axes.get_xlabel():
            _dress(axes)
        axes.plot(self.fpr, self.tpr, lw=1.8, label=f"{self.name} (AUC {self.auc:.2f})")
        axes.legend(frameon=False, loc="lower right", fontsize="small")
        if path is not None:
            axes.figure.savefig(path, dpi=120)
        return axes.figure


def loss_threshold(model, members, non_members, *, loss=None) -> MembershipResult:
    """Calls those examples members on which the model's loss is low (Yeom et al. 2018).

    Args:
        model: A `keras.Model`.
        members: `(x, y)` that it was trained on.
        non_members: `(x, y)` from the same distribution that it was not.
        loss: A Keras loss; by default the one that the model was compiled with.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: The model has no loss and none was given.
    """
    inside, outside = (example_losses(model, *data, loss=loss) for data in (members, non_members))
    return from_scores(-inside, -outside, name="loss threshold")


def lira(target, examples, members, shadows, *, online=True, loss=None) -> MembershipResult:
    """The likelihood-ratio attack (Carlini et al. 2022), against a classifier.

    Each example's cross-entropy ℓ is turned into the logit φ = log(p / (1 - p)), p = e^-ℓ. Over the
    shadow models that had the example and those that had not, φ is taken as normal, with a mean for
    each example and one variance for all. The score is the log likelihood ratio of the target's φ;
    offline, without use of the models that had it, the distance (φ - mean_out) / deviation_out.

    Args:
        target: The attacked `keras.Model`, or its losses `[N]`.
        examples: `(x, y)` of N examples, some of which the target was trained on.
        members: Boolean `[N]`: which.
        shadows: Pairs of a model, or its losses `[N]`, and the Boolean mask `[N]` of the examples
            that it was trained on.
        online: Whether shadow models that had the example are used.
        loss: A Keras cross-entropy; by default that of each model.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: An example was in no shadow model's training data, or in every one's.
    """
    members = np.asarray(members, bool)
    logits = np.stack([_logits(model, examples, loss) for model, _ in shadows])
    trained = np.stack([np.asarray(mask, bool) for _, mask in shadows])
    wanted = _logits(target, examples, loss)
    if trained.shape != logits.shape or members.shape != wanted.shape:
        raise ValueError(
            f"Expected a mask for each of {len(wanted)} examples. Received: members of shape "
            f"{members.shape}, masks of the shadow models of shape {trained.shape[1:]}."
        )
    mean_out, deviation_out = _normal(logits, ~trained, "without")
    score = (wanted - mean_out) / deviation_out
    if online:
        mean_in, deviation_in = _normal(logits, trained, "with")
        score = score**2 / 2 - ((wanted - mean_in) / deviation_in) ** 2 / 2
    name = "LiRA, online" if online else "LiRA, offline"
    return from_scores(score[members], score[~members], name=name)


def from_scores(members, non_members, name="attack") -> MembershipResult:
    """The ROC curve of any attack's scores; members should have the higher ones.

    Args:
        members: Scores of the examples that the model was trained on.
        non_members: Scores of the others.
        name: Of the attack.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: There are none of either.
    """
    if not len(members) or not len(non_members):
        raise ValueError(
            f"Expected members and non-members. Received: {len(members)} and {len(non_members)}."
        )
    metrics = require("sklearn.metrics", "data")
    truth = np.repeat([1, 0], [len(members), len(non_members)])
    fpr, tpr, _ = metrics.roc_curve(truth, np.concatenate([members, non_members]))
    return MembershipResult(
        fpr, tpr, float(metrics.auc(fpr, tpr)), float((tpr - fpr).max()), name
    )


def example_losses(model, x, y, *, loss=None):
    """The loss of each example, float64 `[N]`; where it has more axes, their mean.

    Args:
        model: A `keras.Model`.
        x: Inputs.
        y: Targets.
        loss: A Keras loss; by default the one that the model was compiled with.

    Raises:
        ValueError: The model has no loss and none was given.
    """
    loss = loss if loss is not None else getattr(model, "loss", None)
    if loss is None or isinstance(loss, list | dict):
        raise ValueError(
            "Expected one Keras loss. Received: "
            f"loss={loss!r}. Compile the model with one, or pass loss=…"
        )
    loss = keras.losses.get(loss)
    found = []
    for start in range(0, len(y), _BATCH):
        rows = slice(start, start + _BATCH)
        batch = keras.tree.map_structure(operator.itemgetter(rows), x)
        predicted = model(batch, training=False)
        values = np.asarray(getattr(loss, "call", loss)(y[rows], predicted), np.float64)
        found.append(values.reshape(len(values), -1).mean(1))
    return np.concatenate(found)


def _logits(model, examples, loss):
    is_model = isinstance(model, keras.Model)
    losses = example_losses(model, *examples, loss=loss) if is_model else np.asarray(model, float)
    return -np.log(np.expm1(np.clip(losses, _SMALLEST_LOSS, _LARGEST_LOSS)))


def _normal(logits, chosen, word):
    """Means `[N]` over the chosen models, and one standard deviation."""
    count = chosen.sum(0)
    if not count.all():
        raise ValueError(
            f"Expected shadow models {word} each example in their training data. Received: none "
            f"for {np.sum(count == 0)} of {len(count)} examples. Train more, each on a random half."
        )
    mean = np.where(chosen, logits, 0).sum(0) / count
    squares = np.where(chosen, (logits - mean) ** 2, 0).sum()
    freedom = max(1, np.sum(np.maximum(count - 1, 0)))
    return mean, max(np.sqrt(squares / freedom), 1e-6)


def _dress(axes):
    ends = (1e-3, 1)
    axes.plot(ends, ends, "--", color="#888888", lw=1, label="guessing")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xlabel("False positive rate")
    axes.set_ylabel("True positive rate")
    axes.set_title("Membership inference")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
