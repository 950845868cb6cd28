"""The noise of one round: a function of the secret seed and of all that the round computes on."""

import tensorflow as tf

from tffed import random


class RoundNoise:
    """Binds the noise of a round to the round, so that no two releases share it.

    The seed of the noise is drawn by a keyed hash from the state that the round begins with, from
    what the run is (`context`), from the examples of clients that are read on demand, and, for the
    server's noise, from the sum that it hides; as a signature's nonce is from the message (RFC
    6979). The same round of the same things has the same noise, and so the same result; anything
    else has noise that has nothing to do with it. A seed that is `random.known` is left alone:
    then noise follows from it and the round's number.

    Args:
        state: The `ServerState` that the round begins with.
        context: Bytes that say what else the round follows from.
    """

    def __init__(self, state, context=b""):
        self._secret = state.noise
        self._binds = tf.is_tensor(state.noise) and not random.known(state.noise)
        self._context = context
        self._drawn = set()

    @property
    def release(self):
        """Text that only a repetition of this release has; None without noise of its own."""
        if not self._drawn:
            return None
        return random.bound(self._secret, *sorted(self._drawn)).numpy().tobytes().hex()

    def begin(self, state):
        """The state with the seed of this round."""
        rest = state._replace(noise=())
        return state._replace(noise=self._bound(state.noise, self._context, rest))

    def of_clients(self, bc, *things):
        """The broadcast with the seed for the noise of clients that have such things."""
        return bc._replace(noise=self._bound(bc.noise, *things))

    def of_server(self, state, total):
        """The state, from `begin`, with the seed for the noise on what the clients sent."""
        return state._replace(noise=self._bound(state.noise, total))

    def end(self, state):
        """The state with the seed that the run goes on with."""
        return state._replace(noise=self._secret)

    def _bound(self, seed, *things):
        if not self._binds:
            return seed
        found = random.bound(seed, *things)
        self._drawn.add(found.numpy().tobytes())
        return found
