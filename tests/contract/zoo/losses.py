"""Losses and metrics: Keras's own, and the user's."""

import keras
from keras import layers as L
from keras import losses as of
from keras import ops

from tests.contract.case import case, chain, clients, either, one_hot, real, share, whole
from tests.contract.witness import Trial

UNITS = 3
# name -> (loss, targets, last activation)
LOSSES = {
    "mse": ("mse", real(UNITS), None),
    "mae": ("mae", real(UNITS), None),
    "mape": ("mape", real(UNITS, scale=0.1, shift=2.0), None),
    "msle": ("msle", share(UNITS), "softplus"),
    "huber": (lambda: of.Huber(0.5), real(UNITS), None),
    "log_cosh": ("log_cosh", real(UNITS), None),
    "poisson": ("poisson", whole(5, UNITS), "softplus"),
    "kl_divergence": ("kl_divergence", share(UNITS), "sigmoid"),
    "hinge": ("hinge", either(-1, 1, UNITS), None),
    "hinge_of_zeros_and_ones": ("hinge", either(0, 1, UNITS), None),
    "squared_hinge": ("squared_hinge", either(-1, 1, UNITS), "tanh"),
    "categorical_hinge": ("categorical_hinge", one_hot(UNITS), None),
    "cosine_similarity": ("cosine_similarity", real(UNITS), None),
    "binary_crossentropy": ("binary_crossentropy", share(UNITS), "sigmoid"),
    "binary_smoothed": (
        lambda: of.BinaryCrossentropy(label_smoothing=0.2),
        either(0, 1, UNITS),
        "sigmoid",
    ),
    "binary_focal": (
        lambda: of.BinaryFocalCrossentropy(True, from_logits=True),
        either(0, 1, UNITS),
        None,
    ),
    "categorical_smoothed": (
        lambda: of.CategoricalCrossentropy(label_smoothing=0.1, from_logits=True),
        one_hot(UNITS),
        None,
    ),
    "categorical_focal": ("categorical_focal_crossentropy", one_hot(UNITS), "softmax"),
    "sparse": ("sparse_categorical_crossentropy", whole(UNITS), "softmax"),
    "dice": ("dice", share(UNITS), "sigmoid"),
    "tversky": ("tversky", share(UNITS), "sigmoid"),
    "by_example": (lambda: lambda y, p: ops.max(ops.square(y - p), -1), real(UNITS), None),
    "by_entry": (lambda: lambda y, p: ops.abs(y - p) ** 3, real(UNITS), None),
    "mean_of_the_batch": (lambda: lambda y, p: ops.mean(ops.square(y - p)), real(UNITS), None),
    "sum_of_the_batch": (lambda: lambda y, p: ops.sum(ops.square(y - p)) / 10, real(UNITS), None),
    "across_the_batch": (
        lambda: lambda y, p: ops.square(y - p - ops.mean(y - p, 0, keepdims=True)),
        real(UNITS),
        None,
    ),
    "of_an_object": (lambda: Quartic(), real(UNITS), None),
}
SOME = ("huber", "poisson", "squared_hinge", "cosine_similarity", "categorical_focal", "tversky")


class Quartic(keras.losses.Loss):
    """The user's own, with an average that does not know the weights."""

    def call(self, y_true, y_pred):
        errors = ops.mean((y_true - y_pred) ** 4, -1)
        return errors / (1.0 + ops.stop_gradient(ops.mean(errors)))


def _loss(loss):
    return loss() if callable(loss) else loss


def _one(loss, targets, activation):
    def make():
        model = chain((4,), L.Dense(5, "tanh"), L.Dense(UNITS, activation))
        return Trial(model, clients(real(4), targets), _loss(loss))

    return make


def _together(losses):
    def make():
        x = keras.Input((4,))
        hidden = L.Dense(5, "tanh")(x)
        outputs = {k: L.Dense(UNITS, end, name=k)(hidden) for k, (_, _, end) in losses.items()}
        data = clients(real(4), {k: targets for k, (_, targets, _) in losses.items()})
        several = {k: _loss(loss) for k, (loss, _, _) in losses.items()}
        rate = lambda: keras.optimizers.SGD(0.05)  # noqa: E731
        return Trial(keras.Model(x, outputs), data, several, optimizer=rate)

    return make


for key, parts in LOSSES.items():
    case(name=f"loss_{key}")(_one(*parts))
case(name="losses_together")(_together(LOSSES))
case(name="losses_of_several_kinds")(_together({k: LOSSES[k] for k in SOME}))


@case
def loss_ctc():
    model = chain((6, 4), L.GRU(5, return_sequences=True), L.Dense(5))
    return Trial(model, clients(real(6, 4), whole(5, 3, low=1)), "ctc")


@case
def loss_circle():
    model = chain((6,), L.Dense(4), L.UnitNormalization())
    loss = keras.losses.Circle(gamma=2)
    return Trial(model, clients(real(6), whole(2)), loss, tolerance=5e-6)


@case
def loss_and_metrics_chosen_by_shape():
    model = chain((6,), L.Dense(5, "tanh"), L.Dense(3, "softmax"))
    compiled = {"metrics": ["acc", "ce"], "weighted_metrics": ["accuracy"]}
    return Trial(model, clients(real(6), whole(3, 1), share()), "crossentropy", compiled=compiled)


@case
def loss_between_pairs():
    def contrast(y, p):
        same = ops.cast(ops.equal(y, ops.transpose(y)), p.dtype)
        apart = ops.sum((p[:, None] - p[None]) ** 2, -1)
        return ops.mean(same * apart + (1 - same) * ops.relu(1 - apart), -1)

    return Trial(chain((6,), L.Dense(4)), clients(real(6), whole(2, 1)), contrast)


@case
def loss_with_weights_by_example_and_an_average():
    def loss(y, p):
        errors = ops.mean((y - p) ** 2, -1)
        return errors / ops.mean(ops.abs(y))

    return Trial(chain((6,), L.Dense(1)), clients(real(6), real(1), share()), loss)


# Metrics.

M = keras.metrics


class LargestError(keras.metrics.Metric):
    """The user's own, whose state is a maximum."""

    def __init__(self):
        super().__init__(name="largest")
        self.most = self.add_weight(shape=(), initializer="zeros")

    def update_state(self, y, p, sample_weight=None):
        self.most.assign(ops.maximum(self.most, ops.max(ops.abs(y - p))))

    def result(self):
        return self.most + 0.0


class Extremes(keras.metrics.Metric):
    """The user's own, whose result is a dictionary and whose state is a sum."""

    def __init__(self):
        super().__init__(name="extremes")
        self.total = self.add_weight(shape=(2,), initializer="zeros")

    def update_state(self, y, p, sample_weight=None):
        self.total.assign_add(ops.stack([ops.sum(ops.abs(y - p)), ops.cast(ops.size(y), p.dtype)]))

    def result(self):
        return {"sum_of_errors": self.total[0], "entries": self.total[1]}


def metrics(model_end, data, loss, *of_it, weighted=()):
    compiled = {"metrics": list(of_it)}
    if weighted:
        compiled["weighted_metrics"] = list(weighted)
    return Trial(chain((6,), L.Dense(5, "tanh"), *model_end), data, loss, compiled=compiled)


@case
def metrics_of_two_classes():
    return metrics(
        [L.Dense(1, "sigmoid")],
        clients(real(6), either(0, 1, 1)),
        "binary_crossentropy",
        "accuracy",
        M.AUC(num_thresholds=20),
        M.AUC(num_thresholds=20, curve="PR", name="pr"),
        M.Precision(),
        M.Recall(thresholds=0.4),
        M.F1Score(threshold=0.5, average="micro"),
        M.BinaryIoU(),
        M.SpecificityAtSensitivity(0.5),
        M.TruePositives(),
        M.FalseNegatives(),
        M.BinaryCrossentropy(name="ce"),
    )


@case
def metrics_of_numbers():
    return metrics(
        [L.Dense(2)],
        clients(real(6), real(2)),
        "mse",
        "mae",
        M.RootMeanSquaredError(),
        M.R2Score(),
        M.R2Score(class_aggregation=None, name="r2_by_output"),
        M.CosineSimilarity(),
        M.MeanAbsolutePercentageError(),
        M.LogCoshError(),
        M.Huber() if hasattr(M, "Huber") else "mse",
    )


@case
def metrics_of_correlation():
    kinds = (M.PearsonCorrelation(axis=-1), M.ConcordanceCorrelation(axis=-1))
    return metrics([L.Dense(4)], clients(real(6), real(4)), "mse", *kinds)


@case
def metrics_of_correlation_over_the_batch():
    return metrics([L.Dense(2)], clients(real(6), real(2)), "mse", M.PearsonCorrelation(axis=0))


@case
def metrics_of_classes():
    return metrics(
        [L.Dense(3, "softmax")],
        clients(real(6), one_hot(3), share()),
        "categorical_crossentropy",
        "accuracy",
        M.TopKCategoricalAccuracy(2),
        M.Precision(class_id=1),
        M.F1Score(),
        M.OneHotMeanIoU(3),
        M.KLDivergence(),
        M.CategoricalHinge(),
        weighted=(M.CategoricalCrossentropy(name="weighted_ce"), M.Recall(top_k=2)),
    )


@case
def metric_that_is_a_function():
    def worst(y, p):
        return ops.max(ops.abs(y - p), -1)

    def mean_of_the_batch(y, p):
        return ops.mean(ops.abs(y - p))

    return metrics([L.Dense(2)], clients(real(6), real(2)), "mse", worst, mean_of_the_batch)


@case
def metric_with_a_dictionary():
    return metrics([L.Dense(2)], clients(real(6), real(2)), "mse", Extremes())


@case(refused="add up")
def metric_that_is_a_maximum():
    return metrics([L.Dense(2)], clients(real(6), real(2)), "mse", LargestError())


@case
def metric_of_a_layer():
    class Recording(L.Layer):
        def __init__(self):
            super().__init__()
            self.seen = keras.metrics.Mean(name="seen")

        def call(self, x):
            self.seen.update_state(x)
            return x

    return metrics([Recording(), L.Dense(2)], clients(real(6), real(2)), "mse", "mae")
