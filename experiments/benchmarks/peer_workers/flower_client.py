"""The client that Flower's simulation runs; a module of its own, so that an actor imports it once.

An actor keeps the data and the compiled model from one client to the next. A new model a client,
as in Flower's examples, is traced anew each time and takes several times as long.
"""

import functools
import os

import keras
import peer_protocol
import tensorflow as tf
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

FEDERATION = "PEERS_FEDERATION"  # variable of the environment with the path of the npz file
app = ClientApp()


@functools.lru_cache(maxsize=1)
def _state():
    """The federation and the compiled model of this actor, which has one processor."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    federation = peer_protocol.Federation(os.environ[FEDERATION])
    keras.utils.set_random_seed(federation.seed)
    model = peer_protocol.keras_model(keras, federation)
    model.compile(
        keras.optimizers.SGD(federation.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return federation, model


@app.train()
def train(message, context):
    """One local epoch from the server's weights on the client that the server names."""
    federation, model = _state()
    client = message.content["config"]["client"]
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    x, y = federation.x[client], federation.y[client]
    model.fit(x, y, batch_size=federation.batch_size, epochs=1, verbose=0)
    reply = {
        "arrays": ArrayRecord(model.get_weights()),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(content=RecordDict(reply), reply_to=message)
