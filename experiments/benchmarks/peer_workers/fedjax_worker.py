"""FedJAX: its own federated averaging over a Haiku model, `for_each_client` compiled by jit."""

import fedjax
import haiku as hk
import jax
import numpy as np
import peer_protocol
from fedjax.algorithms import fed_avg


def _network(name):
    """The forward pass over a batch; Haiku and Keras lay out weights and images alike."""

    def two_hidden(batch):
        layers = [hk.Linear(200), jax.nn.relu, hk.Linear(200), jax.nn.relu, hk.Linear(10)]
        return hk.Sequential(layers)(batch["x"])

    def convolutional(batch):
        layers = []
        for filters in (32, 64):
            layers += [hk.Conv2D(filters, 5, padding="SAME"), jax.nn.relu]
            layers += [hk.MaxPool((2, 2, 1), (2, 2, 1), padding="VALID")]
        layers += [hk.Flatten(), hk.Linear(512), jax.nn.relu, hk.Linear(10)]
        return hk.Sequential(layers)(batch["x"])

    return hk.transform(two_hidden if name == "2nn" else convolutional)


class Peer:
    def __init__(self, federation):
        fedjax.set_for_each_client_backend("jit")
        self.model = fedjax.create_model_from_haiku(
            transformed_forward_pass=_network(federation.model),
            sample_batch={"x": federation.x[0, :1], "y": federation.y[0, :1]},
            train_loss=lambda b, p: fedjax.metrics.unreduced_cross_entropy_loss(b["y"], p),
            eval_metrics={"accuracy": fedjax.metrics.Accuracy()},
        )
        algorithm = fed_avg.federated_averaging(
            fedjax.model_grad(self.model),
            fedjax.optimizers.sgd(federation.learning_rate),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(batch_size=federation.batch_size, num_epochs=1),
        )
        self.apply = algorithm.apply
        self.datasets = [
            fedjax.ClientDataset({"x": x, "y": y})
            for x, y in zip(federation.x, federation.y, strict=True)
        ]
        self.key = jax.random.PRNGKey(federation.seed)
        params = self.model.init(self.key)
        self.shape = jax.tree_util.tree_structure(params)
        pairs = zip(federation.weights[::2], federation.weights[1::2], strict=True)
        # A tree's leaves come sorted by name, b before w.
        params = self.shape.unflatten([array for w, b in pairs for array in (b, w)])
        self.state = algorithm.init(jax.device_put(params))

    def round(self, cohort):
        self.key, *keys = jax.random.split(self.key, len(cohort) + 1)
        clients = [(i, self.datasets[i], key) for i, key in zip(cohort, keys, strict=True)]
        self.state, _ = self.apply(self.state, clients)
        jax.block_until_ready(self.state.params)

    def weights(self):
        leaves = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(self.state.params)]
        pairs = zip(leaves[::2], leaves[1::2], strict=True)
        return [array for b, w in pairs for array in (w, b)]

    def accuracy(self, federation):
        data = fedjax.ClientDataset({"x": federation.x_test, "y": federation.y_test})
        batches = data.padded_batch(batch_size=1000)
        found = fedjax.evaluate_model(self.model, self.state.params, batches)
        return float(found["accuracy"])


if __name__ == "__main__":
    peer_protocol.serve(Peer, ("fedjax", "jax", "jaxlib", "dm-haiku"))
