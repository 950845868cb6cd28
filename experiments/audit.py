"""Attacks federations with and without protection, and draws what the attacker gets.

    python -m experiments.audit --output_dir=runs/audit
    python -m experiments.audit --attacks=inversion
    python -m experiments.audit --whole

- canaries: a lower bound on ε, of noise as claimed and of noise secretly halved.
- membership: whether a digit was among those that a network was trained on, many of which have a
  wrong label that can only be learnt by heart; without noise, and with noise on the clients' sum.
- inversion: what a server sees of four digits in an update of FedSGD, as it is, clipped, and
  clipped and noised.

Writes audit.json, membership.png and inversion.png. With --whole there is another attack instead:
every mechanism goes through `Federated.fit`, as it is and sabotaged (see `whole_audit.py`), and
whole_audit.json says what was found.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from experiments import startup
from experiments.benchmarks import machine

_ATTACKS = ("canaries", "membership", "inversion")
_CLIP, _DELTA = 1.0, 1e-5
_POOL, _CLIENTS, _WRONG_LABELS = 1400, 175, 0.4
_IMAGES, _SHADOWS = 4, 16


def main(argv=None):
    """Runs the attacks, prints what they found and writes it down."""
    argv = sys.argv if argv is None else argv
    values = machine.parse(argv, "audit", __doc__, _define)
    folder = Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    startup.start()
    if values.whole:
        from experiments import whole_audit

        sys.exit(bool(whole_audit.main(folder)))
    attacks = {"canaries": _canaries, "membership": _membership, "inversion": _inversion}
    found = {}
    for name in values.attacks:
        print(f"\n{name.capitalize()}", flush=True)
        found[name] = attacks[name](values, folder)
        for case, numbers in found[name].items():
            print(f"  {case:28} " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    (folder / "audit.json").write_text(json.dumps(found, indent=2) + "\n")
    print("\nResults:")
    for file in ("audit.json", "membership.png", "inversion.png"):
        if (folder / file).is_file():
            print(f"  {folder / file}")


def _define(common):
    absl_flags.DEFINE_string("output_dir", "runs/audit", "Where results go.", **common)
    absl_flags.DEFINE_multi_enum("attacks", list(_ATTACKS), _ATTACKS, "Which attacks.", **common)
    absl_flags.DEFINE_bool("whole", False, "Audits `fit` from end to end instead.", **common)
    absl_flags.DEFINE_float("noise_multiplier", 1.0, "z of the audited noise.", **common)
    absl_flags.DEFINE_integer("canaries", 100_000, "Canary clients.", lower_bound=100, **common)
    absl_flags.DEFINE_integer("rounds", 100, "Rounds of training.", lower_bound=1, **common)
    absl_flags.DEFINE_float("training_noise", 6.0, "z of the training with noise.", **common)
    absl_flags.DEFINE_integer("seed", 0, "Seed of all but the audit's noise.", **common)


def _canaries(values, folder):
    """The bound on ε of the noise as claimed, and with half of it."""
    del folder
    import tffed
    from tffed.privacy import audit

    z, found = values.noise_multiplier, {}
    for name, actual in (("noise as claimed", z), ("noise secretly halved", z / 2)):
        result = audit.audit_clients(
            tffed.chain(tffed.clip(_CLIP), _noise(actual), tffed.mean("uniform")),
            canaries=values.canaries,
            delta=_DELTA,
            claimed_epsilon=_epsilon(z),
        )
        print(f"  {name}: {result}")
        found[name] = result._asdict()
    return found


def _membership(values, folder):
    """Attacks on one network trained without noise, and with it."""
    import tffed
    from tffed.privacy import audit

    data, members = _half_wrong(tffed.data.digits().train, values.seed)
    inside, outside = (tuple(a[mask] for a in data) for mask in (members, ~members))
    z, found, axes = values.training_noise, {}, None
    noised = tffed.chain(tffed.clip(_CLIP), _noise(z), tffed.mean("uniform"))
    epsilon = _epsilon(z / values.rounds**0.5)
    for name, aggregator in (("no noise", None), (f"noise, epsilon {epsilon:.1f}", noised)):
        model = _train(inside, aggregator, values)
        result = audit.loss_threshold(model, inside, outside)._replace(name=f"{name}, loss")
        axes = result.plot(axes=axes).axes[0]
        if aggregator is None:
            ratio = audit.lira(model, data, members, _shadows(data, values))
            ratio = ratio._replace(name=f"{name}, LiRA")
            ratio.plot(axes=axes)
            found[f"{name}, LiRA"] = {"auc": ratio.auc, "tpr_at_1%": ratio.tpr_at(0.01)}
        x, y = tffed.data.digits().test
        found[name] = {
            "auc": result.auc,
            "advantage": result.advantage,
            "tpr_at_1%": result.tpr_at(0.01),
            "test_accuracy": float(np.mean(model.predict(x, verbose=0).argmax(1) == y)),
        }
    axes.figure.savefig(folder / "membership.png", dpi=120)
    return found


def _half_wrong(data, seed):
    """Digits of which many have a random label, and which of them are trained on."""
    rng = np.random.default_rng(seed)
    x, y = (a[:_POOL] for a in data)
    wrong = rng.random(_POOL) < _WRONG_LABELS
    return (x, np.where(wrong, rng.integers(0, 10, _POOL), y)), rng.permutation(_POOL) % 2 == 0


def _network(seed):
    import keras

    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    return model, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _shadows(data, values):
    """Losses of networks that the attacker trains, each on another half of the digits."""
    import keras

    from tffed.privacy import audit

    model, loss = _network(values.seed + 1)
    model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    start = [v.numpy() for v in model.optimizer.variables]
    found, rng = [], np.random.default_rng(values.seed + 1)
    for _ in range(_SHADOWS):
        model.set_weights(keras.models.clone_model(model).get_weights())
        for variable, value in zip(model.optimizer.variables, start, strict=True):
            variable.assign(value)
        mask = rng.permutation(_POOL) % 2 == 0
        rows = (a[mask] for a in data)
        model.fit(*rows, batch_size=_POOL, epochs=values.rounds, verbose=0)
        found.append((audit.example_losses(model, *data), mask))
    return found


def _train(data, aggregator, values):
    """A network trained with FedSGD over clients with a few examples each."""
    import keras

    import tffed

    model, loss = _network(values.seed)
    fed = tffed.Federated(model, tffed.fed_sgd(), seed=values.seed)
    fed.compile(
        server_optimizer=keras.optimizers.Adam(0.02),
        loss=loss,
        aggregator=aggregator,
    )
    clients = tffed.data.partition(*data, clients=_CLIENTS, scheme=tffed.data.IID(), seed=1)
    fed.fit(clients, rounds=values.rounds, verbose=0)
    return model


def _inversion(values, folder):
    """What can be seen of each image that a client computed a gradient of."""
    import keras

    import tffed
    from tffed.privacy import audit

    keras.utils.set_random_seed(values.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    layers = [keras.layers.Flatten(), keras.layers.Dense(64, "sigmoid"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    x, y = (a[:_IMAGES] for a in tffed.data.digits(image=True).train)
    functional, rng = tffed.from_keras(model, loss), np.random.default_rng(values.seed)
    gradient, _, _ = functional.grad(functional.init(), (x, y), tffed.random.seed(0))
    clipped = [g.numpy() * min(1, 0.1 / float(tffed.tree.global_norm(gradient))) for g in gradient]
    noised = [g + rng.normal(0, 0.1 * values.noise_multiplier, g.shape) for g in clipped]
    cases = {"No protection": gradient, "Clipped": clipped, "Clipped and\nnoised": noised}
    images, found = {}, {}
    for name, seen in cases.items():
        recovered, _ = audit.invert(
            model, seen, x.shape, distance="cosine", bounds=(0.0, 1.0), seed=values.seed
        )
        images[name] = _matched(recovered, x)
        error = np.sqrt(np.mean((images[name] - x) ** 2))
        found[name.replace("\n", " ")] = {"root_mean_squared_error": float(error)}
    audit.figure(folder / "inversion.png", x, images)
    return found


def _matched(images, originals):
    """The images in the order of those that they are nearest to."""
    from scipy.optimize import linear_sum_assignment

    far = np.square(originals[:, None] - images[None]).mean((2, 3, 4))
    return images[linear_sum_assignment(far)[1]]


def _noise(multiplier):
    """Gaussian noise on the clients' sum that declares nothing, so that it can be too little."""
    import tensorflow as tf

    import tffed

    def finish(state, total, stats, clients, seed):
        del stats, clients
        noised = (
            leaf + multiplier * _CLIP * tf.random.stateless_normal(leaf.shape, here)
            for leaf, here in ((x, tffed.random.fold_in(seed, i)) for i, x in enumerate(total))
        )
        return tuple(noised), state, {}

    return tffed.Stage(finish=finish, bound=lambda bound: bound, name="noise")


def _epsilon(multiplier):
    """The ε of one Gaussian release; of T releases with multiplier z it is that of z / √T."""
    from tffed.privacy import audit

    return audit.normals((1 / multiplier, 1.0), (0.0, 1.0), _DELTA)


if __name__ == "__main__":
    main()
