"""Noise on a gradient by tensorflow-privacy's optimizer, on Keras 3 and from a secret seed."""

import collections
import functools
import math

import tensorflow as tf

from tffed import optimizers, random
from tffed.privacy import tf_privacy

_State = collections.namedtuple("_State", ["l2_norm_clip", "stddev", "seed"])


def noised_by(keras_optimizer, clip, noise_multiplier):
    """A function that adds DP-SGD's noise, by tensorflow-privacy's class of a Keras optimizer.

    Args:
        keras_optimizer: A Keras optimizer or the name of one; None: SGD. It is left as it is.
        clip: C, a number.
        noise_multiplier: z, a number; with 0 there is no noise.

    Returns:
        `(total, parts, seed) -> gradients`: of a flat list of tensors, the sum over the parts of a
        batch of their clipped gradients divided by `parts`, the list with N(0, (zC / parts)² I)
        added, which is a pure function of the secret seed.

    Raises:
        ImportError: tensorflow-privacy is not installed.
    """
    query = _query_class()(clip, clip * noise_multiplier)
    optimizer = dp_optimizer(keras_optimizer or "sgd", query)

    def add_noise(total, parts, seed):
        stddev = query.stddev / tf.cast(parts, tf.float32)
        # What it keeps would be a tensor of this trace in the next one.
        kept, optimizer._global_state = optimizer._global_state, _State(clip, stddev, seed)
        try:
            pairs = optimizer._compute_gradients(tf.zeros([1]), list(total), tape=_Tape(total))
        finally:
            optimizer._global_state = kept
        return [gradient for gradient, _ in pairs]

    return add_noise


def dp_optimizer(keras_optimizer, query):
    """tensorflow-privacy's optimizer of the class of a Keras 3 optimizer.

    It only computes gradients: applying some to variables raises a RuntimeError, since nothing
    would say whether these are private.
    """
    keras_optimizer = optimizers.get(keras_optimizer)
    module = tf_privacy.load("optimizers.dp_optimizer_keras")
    kind = type(keras_optimizer)
    # The one thing of a Keras 2 optimizer that it reads and Keras 3 has under another name.
    named = type(kind.__name__, (kind,), {"_name": property(lambda self: self.name)})

    class DPOptimizer(module.make_keras_generic_optimizer_class(named)):
        def apply_gradients(self, *args, **kwargs):
            self._refuse()

        def apply(self, *args, **kwargs):
            self._refuse()

        def _refuse(self):
            raise RuntimeError(
                "Expected gradients to be applied by the client optimizer of an algorithm, which "
                "only sees noised ones. Received: a call of tensorflow-privacy's optimizer, which "
                "cannot tell. Use tffed.privacy.private_gradients."
            )

    config = keras_optimizer.get_config() | {"dp_sum_query": query, "num_microbatches": 1}
    made = DPOptimizer.from_config(config)
    made.gradient_accumulation_steps = None  # Keras 3 means another thing by it
    return made


class _Tape:
    """Stands in for a gradient tape: hands over the gradient of the one "microbatch" there is.

    The optimizer asks a tape for the gradients of all microbatches, clips and adds them. Handed
    their clipped sum as the only one, it has the noise left to do.
    """

    def __init__(self, total):
        self._total = total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def jacobian(self, target, sources, unconnected_gradients=None):
        del target, sources, unconnected_gradients
        return [part[None] for part in self._total]


@functools.cache
def _query_class():
    """The class of queries for one record that is a sum of clipped ones already.

    Made at first use: importing tensorflow-privacy takes seconds, and it may not be there.
    """
    module = tf_privacy.load("dp_query.gaussian_query")

    class ClippedSumQuery(module.GaussianSumQuery):
        """tensorflow-privacy's Gaussian sum query with noise from the seed in its state.

        Its own noise is stateful: with XLA it would be the same in every process.
        """

        @property
        def stddev(self):
            return self._stddev

        def initial_sample_state(self, template):
            return template  # never read: zeros would cost a pass over the weights

        def preprocess_record(self, params, record):
            return record

        def accumulate_preprocessed_record(self, sample_state, preprocessed_record):
            return preprocessed_record

        def get_noised_result(self, sample_state, global_state):
            event = module.dp_accounting.GaussianDpEvent(self._stddev / self._l2_norm_clip)
            if not self._stddev:
                return sample_state, global_state, event
            return _noised(sample_state, global_state), global_state, event

    return ClippedSumQuery


def _noised(tensors, state):
    """Tensors with noise added, all drawn at once: a draw costs some forty operations."""
    sizes = [math.prod(t.shape) for t in tensors]
    noise = random.normal([sum(sizes)], state.seed) * state.stddev
    parts = [tf.reshape(n, t.shape) for n, t in zip(tf.split(noise, sizes), tensors, strict=True)]
    return [t + tf.cast(n, t.dtype) for t, n in zip(tensors, parts, strict=True)]
