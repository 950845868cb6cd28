"""The zoo: all cases by name, and those of the default run."""

from tests.contract.case import CASES
from tests.contract.zoo import (  # noqa: F401  (each registers its cases)
    dense,
    gradients,
    images,
    losses,
    optimizers,
    own_loss,
    refused,
    sequences,
    state,
    structure,
    weights,
)

# What the default run takes through the default path, some four minutes of one processor, and the
# other paths that it takes them through; refusals are all in it, and the slow run has everything.
QUICK = {
    "dense": ("batched",),
    "activity_regularizer": ("graph",),
    "activity_regularizer_in_nested_models": (),
    "activation_across_the_batch": ("batched",),
    "partly_frozen": (),
    "constraint_non_negative": (),
    "constraint_unit_norm_two_rounds": (),
    "constraint_of_embeddings": (),
    "sample_weights_in_a_column": ("processes", "batched"),
    "sample_weights_by_step": (),
    "loss_divided_by_its_weights": (),
    "class_weights": ("graph",),
    "class_weights_of_negative_labels": (),
    "ignored_class_0": ("batched",),
    "ignored_class_255": (),
    "batch_normalisation": ("payloads",),
    "application_mobilenet": (),
    "lstm": (),
    "mask_zero_of_a_sequence_loss": ("processes",),
    "mask_zero_attention": (),
    "embedding_with_plain_sgd": ("batched",),
    "outputs_by_name": (),
    "outputs_of_which_one_has_no_loss": (),
    "outputs_with_sample_weights_by_name_in_a_column": (),
    "preprocessing": (),
    "losses_of_several_kinds": (),
    "loss_across_the_batch": (),
    "metric_with_a_dictionary": (),
    "optimizer_adam": (),
    "weights_without_gradient_sgd": (),
    "embedding_by_adam": (),
    "spectral_normalisation": (),
    "statistic_assigned_in_a_call": ("processes",),
    "counter_of_calls": ("graph",),
    "flag_of_the_first_call": (),
    "loss_added_in_a_call": (),
    "compute_loss_without_training": (),
    "custom_gradient_that_reads_a_weight": (),
    "mixed_float16_that_overflows": (),
}

__all__ = ["CASES", "QUICK"]
