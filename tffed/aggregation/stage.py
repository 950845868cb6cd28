"""`Stage`, one part of an aggregator, and `sequence`, which makes one of several."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from tffed import random, tree
from tffed.mechanism import SERVER_SUM
from tffed.wire import Gate, Gated, Raw

# With errors of this share of a value, E‖e'‖² = ω (‖e‖² + ‖u‖²), residuals are 2.4 updates long.
_TOLERABLE = 0.85


class Coded(NamedTuple):
    """What a stage that compresses makes of a value.

    Attributes:
        value: What the stages after it work on, such as the entries that were kept; `()` if it
            leaves nothing to them.
        side: A dictionary of what travels as it is, such as indices, codes and scales.
    """

    value: Any
    side: Any


def _alike(nest, codec):
    return tree.map(lambda leaf: codec, nest)


def _raw(nest):
    return _alike(nest, Raw())


class Stage(NamedTuple):
    """One part of an aggregator. Every function is pure; the defaults change nothing.

    Attributes:
        init: `(like) -> state`, the stage's server state; `like` is the trainable weights.
        shared: `(state) -> shared`, the part of the state that clients may see.
        client_init: `(like) -> client_state`, e.g. the residual of error feedback; `like` has the
            specs of the values that the stage receives.
        encode: `(shared, client_state, value, seed) -> (payload, client_state, stats)`, on the
            client. The payload is a new value for the next stage, or `Coded`, always the same one
            of the two. `stats` is a dictionary of scalars that are added over clients.
        decode: `(shared, payload, like) -> value`, on the server, for each client; `like` as above.
        decode_stats: `(stats) -> stats`, on the server, for each client, before they are added.
        finish: `(state, total, stats, clients, seed) -> (total, state, metrics)`, on the server,
            once: `total` is the weighted sum, `clients` how many it holds. A stage before noise on
            the sum is shown zeros, and what it makes of them counts for nothing.
        bound: `(bound) -> bound`: from the largest L2 norm an update can have before the stage
            (None: unbounded) to that after it.
        passes: `(like) -> like`: the specs of the values for the next stage.
        wire: `(side) -> codecs`: how what is beside the value becomes bytes, a `tffed.wire.Codec`
            for each leaf.
        ends: Whether nothing is left to the next stage.
        weights: Whether it may encode the weights themselves, on their way to the clients.
        name: For messages, reports and checkpoints, with the parameters.
        mechanism: The `tffed.privacy.Mechanism` by which the stage protects someone, or None. Then
            all stages of the chain receive secret seeds. If it is one on the server's sum, `decode`
            and `decode_stats` clip: whatever a client sends, what is added is within the bound.
        calibrate: `(noise_multiplier) -> Stage`: the same stage with other noise.
        release: `(state, weights, seed) -> weights`, on the server, after the optimizer's step; or
            None.
        leaks: Whether clients see state that was learnt from other clients without noise.
        residual: Whether clients add to a value what they did not send of earlier ones. Then it
            must receive the same coordinates in every round.
        tracks: Whether clients keep something else of a value for later rounds; likewise.
        fixed: Whether coordinates of what it hands on are the same in every round, though the
            server decodes it.
        partial: Whether it never sends some of a value, or of a large one: no contraction.
        settle: `(before, after) -> weights`, on the server: from the weights before and after the
            optimizer's step to those that it keeps.
        expands: `(like) -> bool`: whether residuals of the stage's errors would grow without end;
            `like` has the specs of the values that the stage receives.
        mixes: Of how many tensors that it hands on each entry is a product, if these are mixtures
            of entries, others in every round: then an error never meets its own residual.
        error: `(like) -> float`: about E‖x̂ - x‖² / ‖x‖² of such mixtures x, which are normal
            numbers; 0: less than 1 whatever x is.
    """

    init: Callable = lambda like: ()
    shared: Callable = lambda state: ()
    client_init: Callable = lambda like: ()
    encode: Callable = lambda shared, client_state, value, seed: (value, client_state, {})
    decode: Callable = lambda shared, payload, like: payload
    decode_stats: Callable = lambda stats: stats
    finish: Callable = lambda state, total, stats, clients, seed: (total, state, {})
    bound: Callable = lambda bound: None
    passes: Callable = lambda like: like
    wire: Callable = _raw
    ends: bool = False
    weights: bool = False
    name: str = "stage"
    mechanism: Any = None
    calibrate: Callable | None = None
    release: Callable | None = None
    leaks: bool = False
    residual: bool = False
    tracks: bool = False
    fixed: bool = False
    partial: bool = False
    settle: Callable = lambda before, after: after
    expands: Callable = lambda like: False
    mixes: int = 0
    error: Callable = lambda like: 0.0

    @property
    def decodes(self):
        """Whether the server has to undo what the stage does."""
        return self.decode is not Stage._field_defaults["decode"]


def travels(**codecs) -> Callable:
    """The `wire` of a stage, by the names of what it sends beside the value; others travel raw."""

    def wire(side):
        return {name: _alike(part, codecs.get(name, Raw())) for name, part in side.items()}

    return wire


def sequence(*stages) -> Stage:
    """One stage from several: encodes left to right, decodes right to left, finishes left to right.

    Its payload is `Coded`, with a tuple of what each stage has beside the value.

    Raises:
        ValueError: A stage comes after one that leaves nothing to it, or adds up over rounds what
            a stage before it has changed.
    """
    _check_order(stages)
    whole = _Sequence(stages)
    return Stage(
        init=whole.init,
        shared=whole.shared,
        client_init=whole.client_init,
        encode=whole.encode,
        decode=whole.decode,
        decode_stats=whole.decode_stats,
        finish=whole.finish,
        bound=whole.bound,
        passes=whole.passes,
        wire=whole.wire,
        ends=any(stage.ends for stage in stages),
        name=", ".join(stage.name for stage in stages),
        release=whole.release,
        leaks=any(stage.leaks for stage in stages),
        residual=any(stage.residual for stage in stages),
        settle=whole.settle,
        expands=whole.expands,
    )


class _Sequence:
    """The functions of the stage that several make."""

    def __init__(self, stages):
        self._stages = stages

    def init(self, like):
        return tuple(stage.init(like) for stage in self._stages)

    def shared(self, state):
        return tuple(stage.shared(st) for stage, st in self._with(state))

    def client_init(self, like):
        return tuple(stage.client_init(here) for stage, here in self._with(self._likes(like)[:-1]))

    def encode(self, shared, client_state, value, seed):
        new, sides, stats = [], [], []
        for i, (stage, sh, st) in enumerate(self._with(shared, client_state)):
            value, st, stat = stage.encode(sh, st, value, random.stage_seed(seed, i))
            value, side = value if isinstance(value, Coded) else (value, {})
            new.append(st)
            sides.append(side)
            stats.append(stat)
        return Coded(value, tuple(sides)), tuple(new), tuple(stats)

    def decode(self, shared, payload, like):
        value = payload.value
        likes = self._likes(like)[:-1]
        for stage, sh, side, here in reversed(self._with(shared, payload.side, likes)):
            value = stage.decode(sh, Coded(value, side) if side else value, here)
        return value

    def decode_stats(self, stats):
        return tuple(stage.decode_stats(stat) for stage, stat in self._with(stats))

    def finish(self, state, total, stats, clients, seed):
        new, metrics = [], {}
        # Nothing sees the sum before the noise that hides it.
        hidden = [s.mechanism is not None and s.mechanism.place == SERVER_SUM for s in self._stages]
        nothing = tree.zeros_like(total) if any(hidden) else None
        for i, (stage, st, stat) in enumerate(self._with(state, stats)):
            before = any(hidden[i + 1 :])
            given = nothing if before else total
            done, st, found = stage.finish(st, given, stat, clients, random.stage_seed(seed, i))
            total = total if before else done
            new.append(st)
            for name, value in found.items():
                metrics[_unused(name, metrics)] = value
        return total, tuple(new), metrics

    def bound(self, bound):
        for stage in self._stages:
            bound = stage.bound(bound)
        return bound

    def passes(self, like):
        return self._likes(like)[-1]

    def wire(self, side):
        return tuple(stage.wire(here) for stage, here in self._with(side))

    def release(self, state, weights, seed):
        for i, (stage, st) in enumerate(self._with(state)):
            if stage.release is not None:
                weights = stage.release(st, weights, random.stage_seed(seed, i))
        return weights

    def settle(self, before, after):
        for stage in self._stages:
            after = stage.settle(before, after)
        return after

    def expands(self, like):
        factors = 0
        for stage, here in self._with(self._likes(like)[:-1]):
            error = (1 + stage.error(here)) ** factors - 1 if factors else 0.0
            if stage.expands(here) or error > _TOLERABLE:
                return True
            factors = max(factors, stage.mixes)
        return False

    def _with(self, *parts):
        return list(zip(self._stages, *parts, strict=True))

    def _likes(self, like):
        """The specs of what each stage receives, and of what the last one hands on."""
        found = [tree.spec(like)]
        for stage in self._stages:
            found.append(stage.passes(found[-1]))
        return found


def _unused(name, taken):
    """The name; where an earlier stage reports by it, numbered as Keras numbers layers."""
    numbered = (name if k == 0 else f"{name}_{k}" for k in itertools.count())
    return next(one for one in numbered if one not in taken)


def _check_order(stages):
    for stage, following in zip(stages, stages[1:], strict=False):
        if stage.ends and following.encode is not Stage._field_defaults["encode"]:
            raise ValueError(
                f"{stage.name} sends codes, of which another stage can make nothing. Received: "
                f"{following.name} after it. Put it before."
            )
    for k, stage in enumerate(stages):
        recoding = [s.name for s in stages[:k] if _recodes(s, stage)]
        if stage.residual and recoding:
            raise ValueError(
                f"{stage.name} adds up what was not sent in several rounds, so it must stand "
                "before all stages that the server decodes: what they hand on means something "
                f"else in every round. Received: {recoding[0]} before it."
            )
        if stage.tracks and recoding:
            raise ValueError(
                f"{stage.name} learns from round to round what updates have in common, but what "
                "the stage before it hands on means something else in every round. Received: "
                f"{recoding[0]} before it. Put it first, or leave one of them out."
            )


def _recodes(stage, following):
    """Whether what a stage hands on to another that keeps a state is of other coordinates."""
    # Where there is noise on the sum, its stage decodes only to clip again.
    if not stage.decodes or stage.mechanism is not None:
        return False
    return not stage.fixed or (stage.residual and following.residual)


def codecs(stage, payload, values=None):
    """How the payload of a `sequence` travels: a nest of codecs like it.

    What comes after a gate in it travels only while that is open. `values` are the codecs of what
    is left of the value; None: raw.
    """
    wrap, sides = _unchanged, []
    for side in stage.wire(payload.side):
        sides.append(tree.map(wrap, side))
        if any(isinstance(codec, Gate) for codec in tree.leaves(side)):
            wrap = Gated
    values = _raw(payload.value) if values is None else values
    return Coded(tree.map(wrap, values), tuple(sides))


def _unchanged(codec):
    return codec
