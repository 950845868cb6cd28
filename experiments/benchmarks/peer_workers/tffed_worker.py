"""tffed's side: `Federated.fit`, one round a call, as a user writes it."""

import keras
import numpy as np
import peer_protocol

import tffed


class Peer(peer_protocol.KerasEvaluation):
    def __init__(self, federation):
        keras.utils.set_random_seed(federation.seed)
        count, examples = federation.y.shape
        self.clients = tffed.data.partition(
            federation.x.reshape(-1, *federation.x.shape[2:]),
            federation.y.reshape(-1),
            clients=None,
            scheme=tffed.data.NaturalKey(np.repeat(np.arange(count), examples)),
            seed=federation.seed,
        )
        self.model = peer_protocol.keras_model(keras, federation)
        recipe = tffed.fed_avg(local_epochs=1, batch_size=federation.batch_size)
        self.federated = tffed.Federated(self.model, recipe, seed=federation.seed)
        self.federated.compile(
            keras.optimizers.SGD(federation.learning_rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.rounds, self.seed = 0, federation.seed

    def round(self, cohort):
        """The cohorts were drawn as `clients_per_round` draws them from the same seed."""
        self.federated.fit(
            self.clients,
            rounds=self.rounds + 1,
            initial_round=self.rounds,
            clients_per_round=len(cohort),
            verbose=0,
        )
        self.rounds += 1

    def weights(self):
        return self.model.get_weights()


if __name__ == "__main__":
    peer_protocol.serve(Peer, ("tensorflow", "keras"))
