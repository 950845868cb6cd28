"""pfl-research: its federated averaging of a TensorFlow model on its simulated backend.

With Keras 3, whose variables may share a name, pfl 0.6 averages the last layer only: it keeps
weights by name. So `tf.keras` is Keras 2 here.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import peer_protocol  # noqa: E402
import tensorflow as tf  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.tensorflow import TFTensorDataset  # noqa: E402
from pfl.hyperparam.base import NNTrainHyperParams  # noqa: E402
from pfl.model.tensorflow import TFModel  # noqa: E402


class Peer(peer_protocol.KerasEvaluation):
    def __init__(self, federation):
        self.model = peer_protocol.keras_model(tf.keras, federation)
        self.model.compile(
            optimizer=tf.keras.optimizers.SGD(federation.learning_rate),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.pfl_model = TFModel(
            self.model, metrics={}, central_optimizer=tf.keras.optimizers.SGD(1.0)
        )
        datasets = [
            TFTensorDataset(tf.constant(x), tf.constant(y))
            for x, y in zip(federation.x, federation.y, strict=True)
        ]
        order = iter(federation.cohorts.ravel().tolist())
        training = FederatedDataset(datasets.__getitem__, lambda: next(order))
        self.backend = SimulatedBackend(training_data=training, val_data=None)
        self.algorithm = FederatedAveraging()
        self.local = NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=federation.learning_rate,
            local_batch_size=federation.batch_size,
        )
        self.rounds = 0

    def round(self, cohort):
        """Goes on where the last call ended; nothing is evaluated on the way."""
        self.rounds += 1
        params = NNAlgorithmParams(
            central_num_iterations=self.rounds,
            evaluation_frequency=2**31,
            train_cohort_size=len(cohort),
            val_cohort_size=0,
        )
        self.algorithm.run(
            params, self.backend, self.pfl_model, self.local, send_metrics_to_platform=False
        )

    def weights(self):
        return self.model.get_weights()


if __name__ == "__main__":
    peer_protocol.serve(Peer, ("pfl", "tensorflow", "tf_keras"))
