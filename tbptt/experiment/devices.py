"""Opens the devices that a run trains on, as `--strategy` and `--logical_devices` say."""

import tensorflow as tf
from absl import logging

from tbptt.distribution import Replicas, open_replicas
from tbptt.experiment.errors import UsageError, usage_errors
from tbptt.experiment.settings import Options


def replicas_of(options: Options, rows: int = 0) -> Replicas:
    """Returns the devices that the options ask for; call it before TensorFlow uses any device.

    Args:
      options: `strategy` and `logical_devices` are read.
      rows: B, the rows that the devices share; 0: not known yet.

    Raises:
      UsageError: the environment does not fit the strategy, or the rows cannot be shared equally.
    """
    name, devices = options.strategy, options.logical_devices
    if devices and rows % devices:
        raise UsageError(
            f"--rows={rows} must be a multiple of --logical_devices={devices}, because a device "
            "carries the state of its own rows. Use other --rows or fewer devices."
        )
    if devices:
        split_cpu(devices)
        name = "mirrored" if name == "auto" else name
    tf.get_logger().setLevel("WARNING")  # or TensorFlow logs every reduce
    try:
        with usage_errors():
            replicas = open_replicas(name)
    except tf.errors.OpError as error:
        raise UsageError(
            f"--strategy={name} cannot be opened ({error.message.splitlines()[0]}). Use "
            "--strategy=one to train on this device alone."
        ) from None
    if not replicas.is_chief:
        logging.set_verbosity(logging.WARNING)  # the chief logs for all
    return replicas


def split_cpu(devices: int) -> None:
    """Divides the CPU into this many logical devices; possible once in a process.

    Raises:
      UsageError: TensorFlow has already started with another number of devices.
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
