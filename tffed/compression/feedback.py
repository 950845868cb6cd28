"""Stages by which clients send later what they did not send now."""

import tensorflow as tf

from tffed import tree
from tffed.aggregation.stage import Coded, Stage, sequence
from tffed.arguments import positive
from tffed.wire import Gate


def error_feedback(*stages, decay=1.0) -> Stage:
    """Adds to each update what compression took from the earlier ones.

    With C the stages and e_k the residual that client k keeps (in the client store, so in
    checkpoints too), for each update u:

        v = u + decay · e_k,   send C(v),   e_k ← v - C(v)

    So all that a client sent in its rounds sums to all its updates less its last residual, and
    biased stages such as `top_k` and `sign` converge as if nothing was taken if C is a contraction,
    E ‖v - C(v)‖² <= (1 - δ) ‖v‖² for some δ > 0, or residuals stay bounded for another reason.
    Coarse unbiased stages are none, and residuals would grow without end: `random_k` needs
    unbiased=False, and `quantize` enough levels (2 bits; 3 with "max" and in rows of 64 entries
    and more; with "l2" and s levels, rows of fewer than 4 s² entries; after `rotate` and
    `power_sgd` the same or more). `clip` before it, not inside: what is clipped off would never be
    sent. (Seide et al. 2014; Stich et al. 2018; Karimireddy et al. 2019.)

    Not in `down`, where the weights themselves travel: they do not add up over the rounds. Where a
    client's message gets lost, so do the entries in it.

    Args:
        *stages: The stages, in the order of `chain`; all that is lossy belongs inside.
        decay: What of the residual counts in the client's next round, in (0, 1]: less than 1 where
            clients take part so rarely that theirs are outdated.

    Raises:
        ValueError: There is no stage, or one protects clients by noise or keeps a residual itself;
            or, once the model is known, one makes errors larger than the value.
    """
    decay = positive("decay", decay)
    _check_inner(stages, decay)
    whole = sequence(*stages)
    plain = Stage()

    def client_init(like):
        if whole.expands(like):
            raise ValueError(
                "Errors as large as the value would add up without end. Received: "
                f"{whole.name} in error_feedback, for values of {tree.size(like):,} entries. Use "
                "random_k(…, unbiased=False); quantize with more bits; with \'l2\' also smaller "
                "blocks; eden or sign in place of ternary and of 1 bit."
            )
        return tree.zeros_like(like), whole.client_init(like)

    def encode(shared, client_state, value, seed):
        residual, own = client_state
        target = tree.map(lambda v, e: v + tf.cast(decay, v.dtype) * e, value, residual)
        payload, own, stats = whole.encode(shared, own, target, seed)
        residual = tree.subtract(target, whole.decode(shared, payload, tree.spec(target)))
        return payload, (residual, own), stats

    finishes = any(stage.finish is not plain.finish for stage in stages)
    return whole._replace(
        client_init=client_init,
        encode=encode,
        finish=whole.finish if finishes else plain.finish,
        bound=plain.bound,
        weights=False,
        name=f"error_feedback({whole.name}{f', decay={decay}' if decay < 1 else ''})",
        release=None,
        residual=True,
    )


def _check_inner(stages, decay):
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise ValueError(
            "Expected the stages whose errors to feed back, e.g. error_feedback(top_k(0.01)). "
            f"Received: {[type(stage).__name__ for stage in stages]}."
        )
    if decay > 1:
        raise ValueError(f"`decay` must be in (0, 1]. Received: decay={decay}")
    for stage in stages:
        if stage.mechanism is not None or stage.release is not None:
            raise ValueError(
                "Error feedback would take the noise off again in the next round. Received: "
                f"{stage.name} in error_feedback. Put it before, outside."
            )
        if stage.partial:
            raise ValueError(
                "What a stage never sends, or clips off, would add up without end. Received: "
                f"{stage.name} in error_feedback. Put it before, outside."
            )
        if stage.residual:
            raise ValueError(
                f"{stage.name} keeps what it does not send; to keep it twice would send it twice. "
                "Received: it in error_feedback. Use it by itself."
            )


def lazy(threshold) -> Stage:
    """Lets clients whose update is small send nothing now, and more of it later.

    With h_k what client k holds back (in the client store), u its update, and r the mean norm of
    the updates ‖u_j‖₂ of the last round's clients:

        v = u + h_k;   if ‖v‖₂ >= threshold · r: send v, h_k ← 0;   else: send nothing, h_k ← v

    In the first round all send. A client that sends nothing counts in the mean as an update of
    zero, with its weight; what it held back counts in the round in which it is sent, with the
    weight of that round. Reports `skipped`, the fraction of clients that sent nothing.

    This is in the spirit of LAG (Chen et al. 2018), but there the server goes on with a client's
    last gradient, each gradient is compared with the last one that was sent, and the bound follows
    from the steps of the global model. Here nothing is kept of a client on the server, so that
    cohorts may change; and what counts is how much would be sent, against what is sent usually.
    With threshold <= 1 a typical client sends each time; with 2, about every second to fourth
    (updates that agree add up faster).

    Stages that change what is sent, such as `quantize`, come after it: they are then run on zeros,
    and nothing of theirs travels either.

    Args:
        threshold: In mean norms, positive.

    Raises:
        ValueError: `threshold` is not positive and finite.
    """
    threshold = positive("threshold", threshold)

    def encode(usual, held, value, seed):
        del seed
        total = tree.add(value, held)
        norm = tree.global_norm(total)
        # A NaN is sent, so that the client is left out. (Graphs turn "not <" into ">=".)
        sent = (norm >= threshold * usual) | tf.math.is_nan(norm)
        nothing = tree.zeros_like(total)
        stats = {"norm": tree.global_norm(value), "skipped": 1.0 - tf.cast(sent, tf.float32)}
        coded = Coded(tree.select(sent, total, nothing), {"sent": tf.cast(sent, tf.uint8)})
        return coded, tree.select(sent, nothing, total), stats

    def decode(shared, payload, like):
        del shared, like
        sent = payload.side["sent"] > 0
        return tree.select(sent, payload.value, tree.zeros_like(payload.value))

    def finish(usual, total, stats, clients, seed):
        del seed
        mean = tf.math.divide_no_nan(stats["norm"], clients)
        skipped = tf.math.divide_no_nan(stats["skipped"], clients)
        return total, tf.where(clients > 0, mean, usual), {"skipped": skipped}

    return Stage(
        init=lambda like: tf.constant(0.0),
        shared=lambda usual: usual,
        client_init=tree.zeros_like,
        encode=encode,
        decode=decode,
        finish=finish,
        wire=lambda side: {"sent": Gate()},
        name=f"lazy({threshold})",
        leaks=True,
        residual=True,
        fixed=True,
    )
