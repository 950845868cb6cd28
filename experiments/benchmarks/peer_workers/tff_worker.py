"""TensorFlow Federated: `build_weighted_fed_avg` on its default local runtime, over tf.data."""

import peer_protocol
import tensorflow as tf
import tensorflow_federated as tff


class Peer(peer_protocol.KerasEvaluation):
    def __init__(self, federation):
        self.datasets = [
            tf.data.Dataset.from_tensor_slices(pair)
            .shuffle(len(pair[1]), seed=federation.seed)
            .batch(federation.batch_size)
            for pair in zip(federation.x, federation.y, strict=True)
        ]

        def model_fn():
            return tff.learning.models.from_keras_model(
                peer_protocol.keras_model(tf.keras, federation),
                input_spec=self.datasets[0].element_spec,
                loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )

        self.process = tff.learning.algorithms.build_weighted_fed_avg(
            model_fn,
            client_optimizer_fn=tff.learning.optimizers.build_sgdm(federation.learning_rate),
            server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
            # The faster of the two, by a quarter with the 2NN.
            loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
        )
        start = tff.learning.models.ModelWeights(federation.weights, [])
        self.state = self.process.set_model_weights(self.process.initialize(), start)

    def round(self, cohort):
        self.state = self.process.next(self.state, [self.datasets[i] for i in cohort]).state

    def accuracy(self, federation):
        """Keras 2 turns models invalid that were there when TFF built one in a graph of its own."""
        self.model = peer_protocol.keras_model(tf.keras, federation)
        return super().accuracy(federation)

    def weights(self):
        return list(self.process.get_model_weights(self.state).trainable)


if __name__ == "__main__":
    peer_protocol.serve(Peer, ("tensorflow-federated", "tensorflow", "keras"))
