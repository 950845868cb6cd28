"""`costs`: what a federated run takes, before it is run."""

import numpy as np
import tensorflow as tf

from tffed import tree
from tffed.analysis.closed_forms import Setting
from tffed.analysis.devices import Device, Network, values
from tffed.analysis.flops import graph_flops, step_cost
from tffed.analysis.records import ClientMemory, Costs
from tffed.analysis.rounds import Clients, draw_cohorts, simulate
from tffed.analysis.traffic import traffic
from tffed.analysis.work import LocalWork, StepLine
from tffed.arguments import not_negative, positive_integer
from tffed.fitting import choose_sampler


def costs(
    federated,
    clients,
    *,
    clients_per_round=None,
    client_fraction=None,
    sampler=None,
    network=None,
    device=None,
    examples=None,
    server_seconds=0.0,
    samples=500,
    seed=0,
) -> Costs:
    """What a federated run takes, before it is run: operations, memory, bytes, seconds.

    The graph of a local step is traced and walked for its floating-point operations and for what
    the backward pass keeps; the messages are traced for their bytes, which are those that `fit`
    will show. Cohorts are those that `fit` will draw. Time is that of a model: see `Network`. What
    an algorithm adds to the gradient of a step (FedProx, SCAFFOLD: some operations a parameter) is
    not counted, nor what the server does.

    ```python
    network = tffed.analysis.Network(
        uplink_bits_per_second=5e6,
        downlink_bits_per_second=scipy.stats.lognorm(0.5, scale=20e6),
        latency_seconds=0.05,
    )
    device = tffed.analysis.Device(10e9)
    found = tffed.analysis.costs(
        fed, clients, clients_per_round=10, network=network, device=device
    )
    print(found)
    found.run(rounds=500).seconds["p90"]
    found.to_target(history, "val_accuracy", 0.85).bytes_up
    ```

    Args:
        federated: A `tffed.Federated` after `compile`.
        clients: A `ClientData`, or a dictionary `{client id: (x, y)}`.
        clients_per_round: As in `Federated.fit`.
        client_fraction: As in `Federated.fit`.
        sampler: As in `Federated.fit`.
        network: A `Network`; without one and a `device`, there are no seconds.
        device: A `Device`.
        examples: Examples of each client: a number, an array in population order or a distribution,
            where `clients` would take long to read, or stand for many more. By default they are
            asked for their sizes.
        server_seconds: What the server takes after the last message of a round.
        samples: Rounds whose cohorts are drawn, each with one draw of the network and the devices.
        seed: Of what is drawn from distributions.

    Raises:
        ValueError: `compile` was not called, or an argument is wrong.
    """
    _check(federated, network, device, samples)
    clients = federated._check.population(clients)
    sampler = choose_sampler(clients, sampler, clients_per_round, client_fraction)
    sizes = _sizes(clients, examples, seed)
    cohorts = draw_cohorts(sampler, clients, federated.seed, samples)
    built, client = federated._built, federated._parts.client
    algorithm, calls = _with_counted_gradients(built, client)
    state = federated._start(clients)
    first = next((int(cohort[0]) for cohort in cohorts if len(cohort)), 0)
    sent = traffic(algorithm, state, clients, clients.ids[first], federated.seed)
    work = LocalWork.of(built.recipe, len(calls), built.model.sampled)
    most = int(work.batch(sizes).max())
    part = built.aggregator.part
    steps = [step_cost(built.model, clients.spec, size, client, part) for size in (most, 2 * most)]
    encoding = _encoding(built, state)
    counted, seen = work.count(sizes)
    flops = StepLine.through(*steps)(counted, seen) + encoding.total
    each = Clients(counted, seen, flops, sent.up, sent.down)
    server_seconds = not_negative("server_seconds", server_seconds)
    rounds = simulate(cohorts, each, network, device, seed=seed, server_seconds=server_seconds)
    return Costs(
        name=federated.model.name,
        algorithm=built.algorithm.name,
        aggregator=built.aggregator.name,
        parameters=tree.size(state.weights.trainable),
        sizes=sizes,
        work=work,
        step=steps[0],
        encoding=encoding,
        each=each,
        memory=_memory(steps[0], sent, client, work, sizes),
        traffic=sent,
        rounds=rounds,
        setting=_setting(sizes, rounds, work, steps, network, device, server_seconds, seed),
        seed=seed,
    )


def _check(federated, network, device, samples):
    if getattr(federated, "_parts", None) is None:
        raise ValueError(
            "Expected a tffed.Federated after compile(…), which sets the loss and the optimizers. "
            f"Received: {type(federated).__name__}"
        )
    if (network is None) != (device is None) or not (
        isinstance(network, Network | None) and isinstance(device, Device | None)
    ):
        raise ValueError(
            "Expected a tffed.analysis.Network and a tffed.analysis.Device, or neither. Received: "
            f"network={network!r}, device={device!r}"
        )
    positive_integer("samples", samples)


def _sizes(clients, examples, seed):
    """The number of examples of each client, at least 1."""
    if examples is None:
        return clients.sizes()
    everyone, rng = np.arange(len(clients)), np.random.default_rng(seed)
    found = values("examples", examples, everyone, len(clients), rng)
    return np.maximum(1, np.round(found)).astype(np.int64)


def _with_counted_gradients(built, optimizer):
    """`(algorithm, calls)`: one that puts something into the list where its graph takes a gradient.

    A loop's body is traced once, so that is once for each training loop of a client. TensorFlow may
    trace all of it more than once: each time the list begins anew.
    """
    calls = []

    def client(*arguments):
        calls.clear()
        return algorithm.client(*arguments)

    def grad(*arguments, **keywords):
        calls.append(1)
        return built.model.grad(*arguments, **keywords)

    algorithm = built.recipe(
        built.model._replace(grad=grad),
        client_optimizer=optimizer,
        server_optimizer=built.server,
        aggregator=built.aggregator,
    )
    return algorithm._replace(client=client), calls


def _encoding(built, state):
    """The `Flops` of a client's encoding of its update."""
    aggregator, like = built.aggregator, tree.spec(state.weights.trainable)
    shared = tree.spec(aggregator.shared(state.aggregator))
    own = tree.spec(aggregator.client_init(state.weights.trainable))

    def encode(shared, own, update, examples, seed):
        return aggregator.encode(shared, own, update, examples, seed)[0]

    number, pair = tf.TensorSpec([], tf.float32), tf.TensorSpec([2], tf.int32)
    return graph_flops(encode, shared, own, like, number, pair)


def _setting(sizes, rounds, work, steps, network, device, server_seconds, seed):
    """What the closed forms are compared on: this run's model, work and clients."""
    return Setting(
        parameter_bytes=steps[0].gradient_bytes,
        sizes=sizes,
        workers=max(1, round(rounds.clients.mean())),
        batch_size=steps[0].batch_size,
        epochs=work.epochs or 1,
        gradient=StepLine.through(*steps, lambda s: s.forward.total + s.backward.total),
        step=StepLine.through(*steps),
        network=network,
        device=device,
        server_seconds=server_seconds,
        seed=seed,
    )


def _memory(step, sent, client, work, sizes):
    added_up = work.batch_size is not None
    return ClientMemory(
        received=sent.received_bytes,
        weights=step.weight_bytes if client else step.gradient_bytes * added_up,
        gradient=step.gradient_bytes,
        slots=step.slot_bytes,
        activations=step.activation_bytes,
        batch=step.batch_bytes,
        state=sent.state_bytes,
        examples=int(step.batch_bytes / step.batch_size * sizes.max()),
    )
