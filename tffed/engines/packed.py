"""The packed engine: every message really becomes bytes, and is read from them again."""

import tensorflow as tf

from tffed import random, tree
from tffed.engines.embedded import Embedded
from tffed.engines.round_noise import RoundNoise
from tffed.local import LocalData
from tffed.wire import WireError


class Packed(Embedded):
    """Runs rounds on this machine through real payloads, one client at a time.

    A client gets the bytes of the broadcast and gives the bytes of its message; between them and
    the server lies `carry`, by default nothing. Results are those of `Embedded` without XLA, and so
    are the bytes that are counted; it takes longer. Bytes that are no message of the round are an
    error that leaves out this one client, like values that are not finite.

    Args:
        algorithm: An `Algorithm`.
        check: As in `Embedded`.
        carry: `(client id, bytes) -> bytes`, on the way up; e.g. through a socket. A `WireError`,
            as `tffed.wire.verify` raises it, leaves out the client.

    Attributes:
        bytes_up: Bytes of all payloads that the clients of the last round sent.
        bytes_down: Bytes that they received.
        errors: `{client id: WireError}` of the last round.
    """

    def __init__(self, algorithm, *, check=None, carry=lambda cid, payload: payload):
        super().__init__(
            algorithm, lanes=1, check=check, jit_compile=False, processes=False, batched=False
        )
        self.errors = {}
        self._carry = carry
        self._client = tf.function(self._train, autograph=False, reduce_retracing=True)
        self._report = tf.function(algorithm.report, autograph=False)
        self._send = algorithm.send and tf.function(self._sent, autograph=False)

    def run_round(self, state, clients, ids, *, seed, store, then=(), context=b""):
        """Runs one round, as `Embedded.run_round` does."""
        del then
        noise = RoundNoise(state, context)
        state = noise.begin(state)
        bc, fresh = self._start(state)
        number = int(state.round)
        program, *_ = self._prepare(clients, [])
        common = None if self._send else self._packed(program, bc, number)
        self.bytes_up, self.bytes_down, self.errors = 0, 0, {}
        total, states = program.nothing, {}
        for cid in ids:
            down = common or self._packed(program, self._send(bc, _key(cid), seed), number)
            self.bytes_down += len(down)
            received = _tensors(program.down.unpack(down, number))
            _, arrays, rows, _ = self._prepare(clients, [cid])
            read = () if clients.resident else (arrays, rows)
            own = self._own_state(store, cid, fresh)
            received = received._replace(noise=noise.of_clients(bc, read, own).noise)
            message, new = self._client(
                received, arrays, tf.constant(rows, tf.int32), _key(cid), own, seed
            )
            payload = program.up.pack(_numpy(message), number)
            self.bytes_up += len(payload)
            report = self._report(bc, self._read(program, cid, payload, number))
            total = self._added(total, report)
            states[cid] = [leaf.numpy() for leaf in tf.nest.flatten(new)]
        state, metrics = program.finish(noise.of_server(state, total), total, seed)
        self.release = noise.release
        if any(states.values()):
            store.put_all(int(state.round), states)
        return noise.end(state), metrics

    def _sent(self, bc, key, seed):
        return self.algorithm.send(bc, random.client_seed(seed, bc.round, key))

    def _train(self, bc, arrays, rows, key, state, seed):
        seed, bc = random.client_seed(seed, bc.round, key), self.algorithm.receive(bc)
        message, state = self.algorithm.client(bc, state, LocalData(arrays, rows), seed)
        return self.algorithm.sent_up(message)[0], state

    def _packed(self, program, bc, number):
        return program.down.pack(_numpy(self.algorithm.sent_down(bc)[0]), number)

    def _read(self, program, cid, payload, number):
        """The message in the bytes carried; if there is none, one that the server leaves out."""
        try:
            return _tensors(program.up.unpack(self._carry(cid, payload), number))
        except WireError as error:
            self.errors[cid] = error
            return tree.map(_unusable, program.up.spec)

    def _own_state(self, store, cid, fresh):
        return tree.map(lambda leaf: leaf[0], self._states(store, [cid], fresh, 1))

    def _added(self, total, report):
        if not self.algorithm.collect:
            return tree.add(total, tree.pack(report))
        row = tree.pack(tree.map(lambda leaf: leaf[None], report), batched=True)
        return tree.map(lambda a, b: tf.concat([a, b], 0), total, row)


def _key(cid):
    return tf.constant(random.client_key(cid))


def _numpy(nest):
    return tree.map(lambda leaf: leaf.numpy(), nest)


def _tensors(nest):
    return tree.map(tf.constant, nest)


def _unusable(spec):
    """NaN where there can be one, else zeros."""
    missing = tf.zeros(spec.shape, spec.dtype)
    return missing + float("nan") if spec.dtype.is_floating else missing
