"""From what `compile` is given to an algorithm that an engine can run."""

import warnings
import weakref
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tffed import optimizers
from tffed.aggregation import Aggregator, chain, mean
from tffed.algorithm import Algorithm, Recipe
from tffed.compile_checks import check_compiled
from tffed.model import FunctionalModel, from_keras
from tffed.optimizers import Optimizer
from tffed.privacy.example_level import ExampleLevel, private_gradients

# The optimizers that `collect` has given to models, which had none: the next one replaces them.
_GIVEN = weakref.WeakKeyDictionary()


class Parts(NamedTuple):
    """What `compile` was given, checked and in pure form, before the noise is settled.

    Attributes:
        recipe: The `Recipe`.
        model: The `FunctionalModel`.
        client: The clients' `Optimizer`, or None.
        server: The server's `Optimizer`.
        aggregator: The `Aggregator`.
        steps: The `ExampleLevel` of the clients' steps, or None.
        keras_model: The Keras model.
        client_optimizer: The clients' Keras optimizer, or None.
        server_optimizer: The server's Keras optimizer.
    """

    recipe: Recipe
    model: FunctionalModel
    client: Optimizer | None
    server: Optimizer
    aggregator: Aggregator
    steps: ExampleLevel | None
    keras_model: Any
    client_optimizer: Any
    server_optimizer: Any


def collect(
    recipe, keras_model, client_optimizer, server_optimizer, aggregator, steps, **arguments
) -> Parts:
    """Checks what `Federated.compile` was given and makes it pure.

    Args:
        recipe: The `Recipe`.
        keras_model: The Keras model.
        client_optimizer: As in `Federated.compile`.
        server_optimizer: As in `Federated.compile`.
        aggregator: As in `Federated.compile`.
        steps: `privacy` in `Federated.compile`.
        **arguments: Those of `from_keras`.

    Raises:
        ValueError: Something is missing, contradictory or out of range.
    """
    if server_optimizer is None:
        if recipe.needs_server_optimizer:
            raise ValueError(
                f"{recipe.name} needs a server optimizer. Received: server_optimizer=None. Pass "
                "e.g. server_optimizer=keras.optimizers.SGD(0.1)."
            )
        server_optimizer = keras.optimizers.SGD(1.0)
    server_optimizer = _optimizer("server_optimizer", server_optimizer)
    if client_optimizer is not None:
        client_optimizer = _optimizer("client_optimizer", client_optimizer)
        _warn_of_schedule(client_optimizer)
    checked = ("loss", "metrics", "weighted_metrics", "class_weight")
    check_compiled(keras_model, *map(arguments.get, checked))
    own = _own_optimizer(keras_model, client_optimizer or server_optimizer, arguments["loss"])
    model = from_keras(keras_model, optimizer=own, **arguments)
    _check_divisors(recipe, keras_model)
    aggregator = chain(mean()) if aggregator is None else aggregator
    if not isinstance(aggregator, Aggregator):
        raise ValueError(
            "Expected an aggregator from tffed.chain, e.g. chain(clip(1.0), mean()). "
            f"Received: aggregator of type {type(aggregator).__name__}"
        )
    if steps is not None and not isinstance(steps, ExampleLevel):
        raise ValueError(
            "Expected `privacy` to be noise in the clients' steps, tffed.privacy.dp_sgd(clip=…). "
            f"Received: privacy={steps!r}. A Budget goes to fit, stages with noise to chain."
        )
    client = None
    if client_optimizer is not None:
        client = optimizers.from_keras(client_optimizer, model.variables)
    server = optimizers.from_keras(server_optimizer, model.variables)
    return Parts(
        recipe,
        model,
        client,
        server,
        aggregator,
        steps,
        keras_model,
        client_optimizer,
        server_optimizer,
    )


def _optimizer(argument, given):
    """The Keras optimizer; the error of one that is none names the argument."""
    try:
        return optimizers.get(given)
    except ValueError as error:
        hint = ""
        if isinstance(given, str):
            hint = (
                " Without names, compile takes client_optimizer, server_optimizer, loss and "
                "metrics in this order: name what follows one that is left out, e.g. loss='mse'."
            )
        raise ValueError(f"`{argument}`: {error}{hint}") from error


def _own_optimizer(model, optimizer, loss):
    """What `model.optimizer` is outside of `fit`: the user's; `optimizer` where there is none."""
    held = getattr(model, "optimizer", None) if getattr(model, "compiled", False) else None
    if held is not None and (loss is None or _GIVEN.get(model) is not held):
        return held
    if isinstance(model, keras.Model):
        _GIVEN[model] = optimizer
    return optimizer


def _check_divisors(recipe, model):
    """Looks for losses that divide by something else than the number of examples.

    Raises:
        ValueError: One divides by the sum of the sample weights.
    """
    losses = [one for one in tf.nest.flatten(model.loss) if one is not None]
    for one in losses:
        if getattr(one, "reduction", None) == "mean_with_sample_weight":
            raise ValueError(
                "A client's loss must be a mean over its examples, by whose number clients weigh. "
                f"Received: reduction='mean_with_sample_weight' in {type(one).__name__}, which "
                "divides by the sum of the sample weights. Use 'sum_over_batch_size'."
            )
    masked = any(getattr(output, "_keras_mask", None) is not None for output in _outputs(model))
    ignoring = any(getattr(one, "ignore_class", None) is not None for one in losses)
    if recipe.name == "fed_sgd" and (masked or ignoring):
        cause = "the model's output is masked" if masked else "the loss has an ignore_class"
        warnings.warn(
            f"A client's loss is a mean over its valid steps, as {cause}, but clients weigh by "
            "their examples: where valid steps are unevenly spread over clients, fed_sgd's step is "
            "not the centralised one.",
            stacklevel=4,
        )


def _outputs(model):
    """The symbolic outputs of a functional model; none of others."""
    return tf.nest.flatten(getattr(model, "outputs", None) or [])


def _warn_of_schedule(optimizer):
    if callable(optimizer._learning_rate):
        schedule = optimizer._learning_rate
        name = getattr(schedule, "__name__", type(schedule).__name__)
        warnings.warn(
            f"The client optimizer's schedule, {name}, counts the steps of one client in one "
            "round: it starts again in each round. For rates that fall from round to round give a "
            "constant rate, and set `client_optimizer.learning_rate` in a callback's "
            "on_epoch_begin; a round is an epoch.",
            stacklevel=4,
        )


class Built(NamedTuple):
    """Parts that were put together; those with noise know how much.

    Attributes:
        algorithm: The `Algorithm`.
        recipe: As in `Parts`.
        model: As in `Parts`, with private gradients if the steps have noise.
        server: As in `Parts`.
        aggregator: As in `Parts`.
    """

    algorithm: Algorithm
    recipe: Recipe
    model: FunctionalModel
    server: Optimizer
    aggregator: Aggregator


def build(parts, noise_multiplier=None) -> Built:
    """Puts the parts together.

    Args:
        parts: The `Parts`.
        noise_multiplier: That of the mechanism, if a budget has set it.
    """
    model, aggregator, steps = parts.model, parts.aggregator, parts.steps
    if noise_multiplier is not None:
        aggregator = aggregator.calibrate(noise_multiplier)
        steps = steps and steps.calibrate(noise_multiplier)
    if steps is not None and steps.noise_multiplier is None:
        model = model._replace(grad=_awaits_noise, mechanism=steps.mechanism)
    elif steps is not None:
        model = private_gradients(model, parts.keras_model, steps, parts.client_optimizer)
    algorithm = parts.recipe(
        model,
        client_optimizer=parts.client,
        server_optimizer=parts.server,
        aggregator=aggregator,
    )
    return Built(algorithm, parts.recipe, model, parts.server, aggregator)


def _awaits_noise(*arguments, **keywords):
    raise ValueError(
        "Private steps need to know how much noise to add. Received: noise_multiplier=None. Give "
        "dp_sgd(…, noise_multiplier=…), or fit(…, privacy=Budget(…))."
    )
