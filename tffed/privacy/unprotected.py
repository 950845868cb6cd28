"""What leaves clients beside what noise covers, in words: for reports, by looking, not by lists."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tffed import tree
from tffed.aggregation.chain import foreign
from tffed.data import ClientData
from tffed.mechanism import CLIENT_STEPS, CLIENT_UPDATE


class Watched(NamedTuple):
    """What a `fit` computes of data beside training, and who acts on it.

    Attributes:
        validation: What the validation data are, in words; None where there are none.
        monitors: `(callback's name, what it monitors)` of those that act on a metric.
        others: Names of callbacks of the user's own.
    """

    validation: str | None = None
    monitors: tuple = ()
    others: tuple = ()


def watched(clients, validation_data, callbacks) -> Watched:
    """Looks at the arguments of a `fit`.

    Args:
        clients: The `ClientData` that train.
        validation_data: A `ClientData`, arrays, or None.
        callbacks: The user's Keras callbacks.
    """
    validation = None
    if isinstance(validation_data, ClientData):
        trains = any(cid in clients for cid in validation_data.ids)
        validation = "clients that train" if trains else "clients that do not train"
    elif validation_data is not None:
        validation = "arrays"
    own = [c for c in callbacks if type(c).__module__.startswith("keras.")]
    return Watched(
        validation,
        tuple((type(c).__name__, c.monitor) for c in callbacks if _acts(c)),
        tuple(type(c).__name__ for c in callbacks if c not in own and not _acts(c)),
    )


def _acts(callback):
    """Whether a callback changes the run, or what is kept of it, by a metric."""
    if isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_best_only:
        return False
    return isinstance(getattr(callback, "monitor", None), str)


def unprotected(mechanism, built, watched):
    """`(what is released without noise, what must therefore be assumed)`, both in words.

    Args:
        mechanism: The `Mechanism`.
        built: The `tffed.assembly.Built`.
        watched: A `Watched`, or `()` for none.
    """
    watched = watched or Watched()
    apart = mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE)
    found = ["the training loss and metrics"]
    found.append(
        "each client's number of examples and training metrics"
        if apart
        else "the numbers of clients, examples, drops and empty clients"
    )
    if mechanism.place == CLIENT_STEPS and built.model.init().non_trainable:
        found.append("statistics of layers")
    if not apart:  # what is computed of a noised update, or of noised steps, tells nothing more
        stats, varies = _beside(built)
        found += [f"what stages report of the updates: {', '.join(stats)}"] if stats else []
        found += ["the lengths of the clients' messages (bytes_up)"] if varies else []
    if watched.validation == "clients that train":
        found.append("the metrics of validation, which are of clients that train")
    return tuple(found), _assumed(mechanism, built, watched)


def _assumed(mechanism, built, watched):
    found = []
    own = [*built.aggregator.foreign, *([built.recipe.name] if foreign(built.recipe) else [])]
    if own:
        found.append(
            f"What is not tffed's own ({', '.join(own)}) does what it says: clients send their "
            "update and nothing else of their data, and the server keeps nothing of it."
        )
    for name, monitored in watched.monitors:
        public = monitored.startswith("val_") and watched.validation != "clients that train"
        said = "must hold data that nobody in the training has a part in"
        found.append(
            f"The validation data, by whose {monitored} {name} acts, {said}."
            if public
            else f"NOT MET: {name} acts on {monitored}, which has no noise on it."
        )
    if watched.others:
        found.append(
            f"Callbacks of your own ({', '.join(watched.others)}) change nothing by metrics of "
            "the clients, which have no noise on them."
        )
    person = {
        "client": "Each id is one person (or whoever is to be protected), under the same id in "
        "all rounds: who has data under several ids is protected that many times less.",
        "example": "Each example is in one client only, and a person's examples are protected "
        "one by one: who has several is protected that many times less.",
    }
    return (*found, person[mechanism.unit])


def _beside(built):
    """`(names of what stages report, whether messages' lengths depend on their content)`.

    What a stage with noise reports is noised with the rest.
    """
    aggregator, like = built.aggregator, tuple(built.model.variables)
    like = aggregator.part.like(tuple(tf.TensorSpec(v.shape, v.dtype) for v in like))
    found = {}

    @tf.function(autograph=False)
    def encode(update, examples, seed):
        shared = aggregator.shared(aggregator.init(update))
        own = aggregator.client_init(tree.spec(update))
        encoded, _ = aggregator.encode(shared, own, update, examples, seed)
        pairs = zip(*map(tree.leaves, (encoded, aggregator.codecs(encoded))), strict=True)
        found["varies"] = any(_size(*pair) is None for pair in pairs)
        return encoded.stats

    seed = tf.TensorSpec([2], tf.int64 if aggregator.mechanisms else tf.int32)
    traced = encode.get_concrete_function(like, tf.TensorSpec([], tf.float32), seed)
    stages = zip(traced.structured_outputs, aggregator.noised, strict=True)
    names = [name for stats, noised in stages if not noised for name in stats]
    return list(dict.fromkeys(names)), found["varies"]


def _size(leaf, codec):
    return codec.size(tuple(leaf.shape), leaf.dtype.as_numpy_dtype)
