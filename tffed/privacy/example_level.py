"""Example-level DP-SGD: clipped, noised gradients in the clients' own steps."""

from typing import NamedTuple

import tensorflow as tf

from tffed import tree
from tffed.arguments import integer, not_negative, positive
from tffed.mechanism import CLIENT_STEPS, Mechanism
from tffed.model import FunctionalModel
from tffed.privacy import per_example
from tffed.privacy.dp_optimizer import noised_by

METHODS = ("auto", "ghost", "vectorized", "map")
SAMPLINGS = ("epochs", "poisson")


class ExampleLevel(NamedTuple):
    """What `dp_sgd` was asked for.

    Attributes:
        clip: The norm C that an example's gradient is clipped to.
        noise_multiplier: z: the noise on the sum has the standard deviation z·C; None: a budget
            will say.
        microbatches: How many microbatches a batch is split into; None: one for each example.
        method: How gradients of single examples are computed.
        sampling: How the examples of a step are chosen.
    """

    clip: float
    noise_multiplier: float | None = None
    microbatches: int | None = None
    method: str = "auto"
    sampling: str = "epochs"

    def calibrate(self, noise_multiplier):
        """The same with another noise multiplier."""
        return self._replace(noise_multiplier=noise_multiplier)

    @property
    def mechanism(self):
        """The `tffed.privacy.Mechanism` of one step, for accounting."""
        return Mechanism(
            CLIENT_STEPS,
            "example",
            self.clip,
            self.noise_multiplier,
            sensitivity=1.0 if self.microbatches is None else 2.0,
            sampled=self.sampling == "poisson",
            name="DP-SGD in the clients' steps",
        )


def dp_sgd(
    clip, noise_multiplier=None, *, microbatches=None, method="auto", sampling="epochs"
) -> ExampleLevel:
    """DP-SGD (Abadi et al. 2016) in each local step, by tensorflow-privacy's DP optimizer.

    For a batch of B examples with gradients g_i the client steps with

        g = (1 / B) [ Σ_i g_i · min(1, C / ‖g_i‖) + N(0, (zC)² I) ]

    g_i is the gradient of the loss of the batch that holds example i alone, with its sample and
    class weights. One that is not finite, or whose norm cannot be computed in float32, counts as
    zero: it stays in B. ‖·‖ is over all trainable weights.

    With m microbatches, a batch is split into groups of ceil(B / m) consecutive examples (if m
    divides B, just as tensorflow-privacy does; the last group of a partial batch may be smaller),
    the *mean* gradients of the groups are clipped, and the sum of these and the noise is divided by
    the number of groups. The noise is greater then: z·C / m instead of z·C / B. And so is what one
    example can change: two means of norm C may lie 2C apart, so the mechanism's sensitivity is 2.

    Metrics and the loss are computed as without noise, and are not private.

    Args:
        clip: C, a positive number.
        noise_multiplier: z, zero or more. 0 clips without noise, which protects nobody. None: a
            privacy budget will say.
        microbatches: m, or None for one microbatch an example.
        method: `"ghost"`: norms from activations and backpropagated errors, without the gradients
            of single examples (Goodfellow 2015; Li et al. 2022): about the time of a plain step,
            for models of Keras's dense, convolutional, embedding, recurrent, attention and
            normalization layers, each used once. `"vectorized"`: `tf.vectorized_map` of single
            examples. `"map"`: one example after the other. `"auto"`: the first of these that gives
            the gradients of single examples when it is tried on random ones. They differ only in
            speed, memory, and in which random numbers dropout draws.
        sampling: `"epochs"`: a client goes through its examples in shuffled batches; each example
            is used once a pass, and nothing is claimed for the shuffling. `"poisson"`: each step
            draws each example by a secret coin, with probability B / n_k, and divides by B. The
            same noise then costs much less (Abadi et al. 2016), the more so the smaller B / n_k.

    Raises:
        ValueError: An argument is out of its range.
    """
    clip = positive("clip", clip)
    if noise_multiplier is not None:
        noise_multiplier = not_negative("noise_multiplier", noise_multiplier)
    given, microbatches = microbatches, integer(microbatches)
    if given is not None and (microbatches or 0) < 1:
        raise ValueError(
            "`microbatches` must be a positive integer: how many a batch is split into; or None, "
            f"for one an example. Received: microbatches={given!r}"
        )
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: method={method!r}")
    if sampling not in SAMPLINGS or sampling == "poisson" and microbatches is not None:
        raise ValueError(
            f"`sampling` must be one of {SAMPLINGS}, 'poisson' without microbatches. Received: "
            f"sampling={sampling!r}, microbatches={microbatches}"
        )
    return ExampleLevel(clip, noise_multiplier, microbatches, method, sampling)


def private_gradients(model, keras_model, example_level, keras_optimizer=None) -> FunctionalModel:
    """A model whose gradients are clipped by example and noised; all else is as it was.

    Args:
        model: A `FunctionalModel`, from `tffed.from_keras`.
        keras_model: The Keras model it was made from.
        example_level: What `dp_sgd` returned.
        keras_optimizer: The Keras optimizer whose tensorflow-privacy class noises the gradients, by
            default SGD. It takes no step: that is the client optimizer's.

    Returns:
        The `FunctionalModel` with another `grad`, which needs the secret seed `noise` (unless the
        noise multiplier is 0), and the `mechanism`. Gradients are dense.

    Raises:
        ValueError: The model couples the examples of a batch (BatchNormalization that is not
            frozen, or other statistics that training updates), has a loss that is not that of
            single examples (regularizers, `add_loss`), the loss does not divide by the number of
            examples, or there is no noise multiplier yet.
        ImportError: tensorflow-privacy is not installed.
    """
    clip, z, microbatches, method, sampling = example_level
    sampled = sampling == "poisson"
    if z is None:
        raise ValueError(
            "Expected the noise multiplier of DP-SGD. Received: noise_multiplier=None. Give it to "
            "`dp_sgd`, or call `.calibrate(noise_multiplier)` on what that returned."
        )
    per_example.check(keras_model)
    clipped_sum = per_example.clipped_sum(model, keras_model, clip, microbatches, method)
    add_noise = noised_by(keras_optimizer, clip, z)

    def compute(weights, batch, seed, mask):
        if not sampled:
            return clipped_sum(weights, batch, seed, mask)
        # A sample may be empty, which convolutions cannot be given.
        nothing = tree.zeros_like(list(weights.trainable)), tf.constant(1), model.zeros(batch)
        return tf.cond(
            tf.shape(tf.nest.flatten(batch)[0])[0] > 0,
            lambda: clipped_sum(weights, batch, seed, mask),
            lambda: nothing,
        )

    def grad(weights, batch, seed, mask=None, sparse=False, noise=()):
        del sparse  # which rows a batch touches is not to be seen
        if z and not tf.is_tensor(noise):
            raise ValueError(
                "Expected a secret seed for the noise of DP-SGD. Received: noise=(). Build the "
                "algorithm from this model, so that its state has one."
            )
        total, parts, sums = compute(weights, batch, seed, mask)
        grads = add_noise(total, parts, noise)
        return tuple(grads), weights, sums

    return model._replace(
        grad=grad,
        mechanism=example_level.mechanism,
        sampled=sampled,
        # A sample has no largest size to pad to.
        maskable=(lambda batch: False) if sampled else model.maskable,
        scaled=False,
    )


