"""Yogi (Zaheer et al. 2018), which Keras does not have."""

import keras
from keras import ops

from tffed.arguments import not_negative, real


@keras.saving.register_keras_serializable(package="tffed")
class Yogi(keras.optimizers.Optimizer):
    """Yogi as FedYogi uses it (Reddi et al. 2021, Algorithm 2).

    m ← β₁ m + (1 - β₁) g;   v ← v - (1 - β₂) g² sign(v - g²);   w ← w - η m / (√v + ε),
    without bias correction, v beginning at `initial_accumulator_value`.

    Args:
        learning_rate: η, or a schedule.
        beta_1: β₁.
        beta_2: β₂.
        epsilon: ε, the paper's τ.
        initial_accumulator_value: The first v, the paper's v₋₁ ≥ τ²; by default ε².
        **arguments: As in `keras.optimizers.Optimizer`.

    Raises:
        ValueError: `epsilon` is negative, or `initial_accumulator_value` less than its square.
    """

    def __init__(
        self,
        learning_rate=0.01,
        beta_1=0.9,
        beta_2=0.99,
        epsilon=1e-3,
        initial_accumulator_value=None,
        **arguments,
    ):
        super().__init__(learning_rate=learning_rate, **arguments)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = not_negative("epsilon", epsilon)
        least = self.epsilon**2
        first = least if initial_accumulator_value is None else real(initial_accumulator_value)
        if not least * (1 - 1e-6) <= first < float("inf"):  # ε² may come out rounded
            raise ValueError(
                "Expected initial_accumulator_value, the paper's v₋₁, to be at least epsilon², "
                f"{least:g}. Received: initial_accumulator_value={initial_accumulator_value!r}, "
                f"epsilon={epsilon!r}. Leave it out for epsilon²."
            )
        self.initial_accumulator_value = first

    def build(self, variables):
        """Creates m and v."""
        if self.built:
            return
        super().build(variables)
        first = keras.initializers.Constant(self.initial_accumulator_value)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"], ["zeros", first]
        )

    def update_step(self, gradient, variable, learning_rate):
        """One step for one variable."""
        rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        square = ops.square(gradient)
        self.assign(m, self.beta_1 * m + (1 - self.beta_1) * gradient)
        self.assign(v, v - (1 - self.beta_2) * square * ops.sign(v - square))
        self.assign_sub(variable, rate * m / (ops.sqrt(v) + self.epsilon))

    def get_config(self):
        """The configuration, for saving."""
        return super().get_config() | {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "initial_accumulator_value": self.initial_accumulator_value,
        }
