"""Flower: its FedAvg strategy over its simulation on Ray, an actor a processor, Keras clients.

A simulation is one call. The first round that is asked for runs them all, and each answer tells
what the strategy's own hooks timed: from the choice of a round's clients to that of the next.
"""

import os
import sys
import time

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import flower_client  # noqa: E402
import keras  # noqa: E402
import peer_protocol  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402


class GivenCohorts(FedAvg):
    """FedAvg whose cohorts are given; notes when rounds begin and what they ended with."""

    def __init__(self, cohorts):
        super().__init__(fraction_evaluate=0.0)
        self.cohorts = cohorts
        self.starts, self.weights, self.peak = [], [], 0.0

    def configure_train(self, server_round, arrays, config, grid):
        self.note(arrays)
        cohort = self.cohorts[server_round - 1]
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for client, node in zip(cohort, grid.get_node_ids(), strict=True)
        ]

    def note(self, arrays):
        """Ends the round before, if there was one; what is noted counts in no round."""
        ended = time.perf_counter()
        if self.starts:
            self.starts[-1] = ended - self.starts[-1]
        self.weights.append(arrays.to_numpy_ndarrays())
        self.peak = max(self.peak, peer_protocol.memory())
        self.starts.append(time.perf_counter())


class Peer(peer_protocol.KerasEvaluation):
    def __init__(self, federation):
        self.model = peer_protocol.keras_model(keras, federation)
        self.first = federation.weights
        self.strategy = GivenCohorts(federation.cohorts.tolist())
        self.rounds = 0
        os.environ[flower_client.FEDERATION] = os.path.abspath(sys.argv[1])

    def round(self, cohort):
        if self.rounds == 0:
            self._simulate(len(cohort))
        self.rounds += 1
        return self.strategy.starts[self.rounds - 1]

    def _simulate(self, nodes):
        """A node a client of the cohort: the server tells each whose data to train on."""
        server = ServerApp()

        @server.main()
        def main(grid, context):
            start = ArrayRecord(self.first)
            result = self.strategy.start(grid, start, num_rounds=len(self.strategy.cohorts))
            self.strategy.note(result.arrays)

        run_simulation(
            server_app=server,
            client_app=flower_client.app,
            num_supernodes=nodes,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )

    def weights(self):
        return self.strategy.weights[self.rounds]

    @property
    def peak_memory(self):
        return self.strategy.peak


if __name__ == "__main__":
    peer_protocol.serve(Peer, ("flwr", "ray", "tensorflow", "keras"))
