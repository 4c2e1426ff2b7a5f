"""The devices of a run."""

import tensorflow as tf
from absl import logging

from experiments.errors import UsageError, usage_errors
from experiments.settings import Options
from tbptt.distribution import Replicas, open_replicas


def replicas_of(options: Options) -> Replicas:
    """Who trains, as the options have it. To be asked for before TensorFlow does anything else.

    Raises:
      UsageError: there is no such strategy, or the environment does not fit it.
    """
    name, devices = options.strategy, options.logical_devices
    if devices:
        split_cpu(devices)
        name = "mirrored" if name == "auto" else name
    tf.get_logger().setLevel("WARNING")  # or every reduce is told
    with usage_errors():
        replicas = open_replicas(name)
    if not replicas.is_chief:
        logging.set_verbosity(logging.WARNING)  # the chief tells for all
    return replicas


def split_cpu(devices: int) -> None:
    """Makes so many logical devices of the CPU, once a process.

    Raises:
      UsageError: TensorFlow has begun with another number.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
    except RuntimeError:
        there = len(tf.config.list_logical_devices("CPU"))
        if there != devices:
            raise UsageError(
                f"--logical_devices={devices} comes too late: TensorFlow has begun with {there} in "
                "this process. Start a new one."
            ) from None
