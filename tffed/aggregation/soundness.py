"""Which chains keep what they promise: orders of noise, bounds and compression."""

from tffed.aggregation.stage import Stage
from tffed.mechanism import AVERAGED_WEIGHTS, CLIENT_UPDATE, SERVER_SUM


def check_down(stages):
    """The stages by which weights travel to the clients, as a tuple.

    Raises:
        ValueError: One is no stage, or does more than encode and decode.
    """
    stages = (stages,) if isinstance(stages, Stage) else tuple(stages)
    plain = Stage()
    for stage in stages:
        if not isinstance(stage, Stage):
            raise ValueError(
                "Expected `down` to hold stages, e.g. chain(mean(), down=[quantize(8)]). "
                f"Received: {type(stage).__name__}."
            )
        if stage.residual:
            raise ValueError(
                "What a stage keeps back to add it to the next value makes sense of updates, which "
                "add up over the rounds. In `down` the weights themselves travel, and it would "
                f"make them worse. Received: {stage.name}. Use the stages inside it alone, or more "
                "bits."
            )
        if stage.mechanism is not None or stage.finish is not plain.finish or not stage.weights:
            raise ValueError(
                "Only stages that can encode weights can stand in `down`: quantize, cast, rotate "
                "and their like. What others leave out, clip off or add noise to is little of an "
                f"update, but much of the weights. Received: {stage.name}. Leave it out of `down`."
            )
    return stages


def check_adds(stages, reducer):
    """Checks that what clients send later counts then, if one of the stages holds something back.

    Raises:
        ValueError: It does not.
    """
    if not reducer.adds and (holding := [s.name for s in stages if s.residual]):
        raise ValueError(
            "What a client adds of earlier rounds makes sense where all that is sent adds up. "
            f"Received: {holding[0]} before {reducer.name}, which makes steps of one size of it. "
            f"Use mean(…), or leave {holding[0]} out."
        )


def check_part(part, stages, mechanisms, reducer):
    """Checks that a part of the model can be trained with such stages and such a reducer.

    Raises:
        ValueError: It can not.
    """
    if part.partial and (tracking := [s.name for s in stages if s.tracks]):
        raise ValueError(
            f"What a client keeps from round to round is of other weights after {part.name} has "
            f"chosen anew. Received: {tracking[0]} after it. Leave one of them out."
        )
    if part.partial and mechanisms:
        raise ValueError(
            "Noise is accounted for on updates of the whole model. Received: "
            f"{part.name} beside noise at {mechanisms[0].place}. Leave one of them out, or put the "
            "noise in the clients' steps (tffed.privacy.dp_sgd)."
        )
    if part.own and reducer.collect:
        raise ValueError(
            f"In {part.name} no two clients have the same weights, of which {reducer.name} needs "
            f"all. Received: {reducer.name}. Use mean(…)."
        )


def check_private(stages, mechanisms, bound, reducer):
    """Checks that what the stages do to protect clients has its effect with the others.

    Raises:
        ValueError: It has not; the message says which order would do.
    """
    if not mechanisms:
        return
    if leaking := [stage.name for stage in stages if stage.leaks]:
        raise ValueError(
            "Noise protects no one from what other stages learn of clients without any. Received: "
            f"{leaking[0]} beside noise. Use tffed.privacy.adaptive_gaussian: its norm is private."
        )
    if len(mechanisms) > 1:
        places = [m.place for m in mechanisms]
        raise ValueError(
            "Expected noise in one place of a chain: what two of them cost together is not "
            f"accounted for. Received: noise at {places}. Leave one out."
        )
    if reducer.collect or not reducer.bounded:
        raise ValueError(
            "Noise protects a client only in a sum to which each adds a bounded part. Received: "
            f"{reducer.name} after noise. Use mean('uniform'), or mean('examples', max_weight=…, "
            "denominator=…)."
        )
    _check_order(stages, mechanisms[0])
    if mechanisms[0].place == AVERAGED_WEIGHTS and reducer.moves is None:
        raise ValueError(
            "Noise on the averaged weights protects a client as far as one update moves them "
            f"little, and {reducer.name} may turn every entry for one client. Received: "
            f"{reducer.name} with {stages[-1].name}. Use mean(…), or noise on the sum "
            "(tffed.privacy.gaussian)."
        )
    if mechanisms[0].place == AVERAGED_WEIGHTS and bound is None:
        raise ValueError(
            "Noise on the averaged weights protects no one while updates have any size. Received: "
            "a chain without a bound on what enters the sum. Put clip(…) before it, and no stage "
            "that can make updates longer after that; or use tffed.privacy.gaussian, whose clip "
            "holds for what the server decodes."
        )


def _check_order(stages, mechanism):
    """Checks that no stage before the noise changes or reveals what the noise is to hide."""
    if mechanism.place not in (SERVER_SUM, CLIENT_UPDATE):
        return
    before = stages[: [s.mechanism for s in stages].index(mechanism)]
    for stage in before:
        if stage.decodes and mechanism.place == SERVER_SUM:
            raise ValueError(
                "The server decodes from the last stage to the first, so what comes before the "
                f"noise would change norms after they were clipped. Received: {stage.name} before "
                "noise. Put it after."
            )
        if stage.decodes:
            raise ValueError(
                "What a stage sends beside the values, such as which ones it chose, has no noise "
                f"on it. Received: {stage.name} before noise on the update. Put it after."
            )
