"""Learning rate schedules: functions of the step, the number of windows trained before."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tbptt import checks
from tbptt.optimizers.transform import GradientTransform, stateless
from tbptt.types import Nest

Schedule = Callable[[tf.Tensor], tf.Tensor]
"""A function of the step: `step -> learning rate`, an int64 scalar to a float32 scalar.

If such a function has an attribute `description`, of values that JSON can hold, checkpoints save
it; else they save the function's name.
"""


def constant(value: float) -> Schedule:
    """Makes a schedule that has the same value at every step."""
    return _described(
        lambda step: tf.constant(value, tf.float32), {"name": "constant", "value": value}
    )


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """Makes a schedule that rises linearly from 0 and then falls by half a cosine.

        step < warmup:  peak * (step + 1) / warmup
        afterwards:     floor + (peak - floor) * (1 + cos(pi * done)) / 2

    where `done` goes from 0 at the end of the warm-up to 1 at `total_steps`, and stays.

    Example:
      >>> rate = warmup_cosine(1.0, warmup_steps=2, total_steps=6)
      >>> [round(float(rate(tf.constant(s, tf.int64))), 3) for s in (0, 1, 2, 4, 6, 9)]
      [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]

    Reference: Loshchilov & Hutter (2017), SGDR: stochastic gradient descent with warm
      restarts (one period).
    """
    checks.check_at_least("warmup_steps", warmup_steps, 0)
    checks.check_at_least("total_steps", total_steps, max(1, warmup_steps))
    falling = max(1, total_steps - warmup_steps)

    def schedule(step: tf.Tensor) -> tf.Tensor:
        rising = tf.cast(step + 1, tf.float32) / max(1, warmup_steps)
        done = tf.cast(tf.minimum(step - warmup_steps, falling), tf.float32) / falling
        cosine = floor + (peak - floor) * 0.5 * (1.0 + tf.cos(math.pi * done))
        return tf.where(step < warmup_steps, peak * rising, cosine)

    description = {
        "name": "warmup_cosine", "peak": peak, "warmup_steps": warmup_steps,
        "total_steps": total_steps, "floor": floor,
    }  # fmt: skip
    return _described(schedule, description)


def epoch_decay(
    initial: float, factor: float, constant_epochs: int, windows_per_epoch: int
) -> Schedule:
    """Makes a schedule that is constant for some epochs, then multiplied by `factor` each epoch.

        rate = initial * factor ** max(0, epoch + 1 - constant_epochs),  epoch = 0, 1, ...

    Example: three epochs of ten windows, the first two at the full rate.
      >>> rate = epoch_decay(1.0, 0.5, constant_epochs=2, windows_per_epoch=10)
      >>> [float(rate(tf.constant(s, tf.int64))) for s in (0, 19, 20, 30)]
      [1.0, 1.0, 0.5, 0.25]

    Reference: Zaremba, Sutskever & Vinyals (2014), as the TensorFlow PTB tutorial has it.
    """
    checks.check_at_least("windows_per_epoch", windows_per_epoch, 1)

    def schedule(step: tf.Tensor) -> tf.Tensor:
        epoch = step // windows_per_epoch
        decays = tf.cast(tf.maximum(epoch + 1 - constant_epochs, 0), tf.float32)
        return initial * tf.pow(factor, decays)

    description = {
        "name": "epoch_decay", "initial": initial, "factor": factor,
        "constant_epochs": constant_epochs, "windows_per_epoch": windows_per_epoch,
    }  # fmt: skip
    return _described(schedule, description)


def scale_by_learning_rate(learning_rate: float | Schedule) -> GradientTransform:
    """Multiplies updates by minus the learning rate; the last transform of a chain."""
    schedule = learning_rate if callable(learning_rate) else constant(learning_rate)

    def scale(updates: Nest, parameters: Nest, step: tf.Tensor) -> Nest:
        del parameters
        rate = schedule(step)
        return tf.nest.map_structure(lambda u: -tf.cast(rate, u.dtype) * u, updates)

    return stateless(scale, {"name": "scale_by_learning_rate", "schedule": schedule})


def _described(schedule: Any, description: dict[str, Any]) -> Schedule:
    schedule.description = description
    return schedule
