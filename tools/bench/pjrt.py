"""Compiles and runs StableHLO by JAX's PJRT client, without JAX code in the program."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

for _level in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
    os.environ.setdefault(_level, "3")  # or libtpu logs at length that there is no TPU


def compile_text(text: str, device: Any) -> Any:
    """Compiles and loads a StableHLO module for one device of JAX's.

    Raises:
      Exception: the compiler refuses the module.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir

    with mlir.make_ir_context():
        options = compiler.get_compile_options(
            num_replicas=1, num_partitions=1, device_assignment=[[device.id]]
        )
        return compiler.backend_compile_and_load(
            device.client, ir.Module.parse(text), xla_client.DeviceList((device,)), options, []
        )


class Program:
    """A compiled module with its arguments on the device.

    Attributes:
      device: JAX's first one.
    """

    def __init__(
        self, text: str, arguments: Sequence[np.ndarray], carried: Mapping[int, int]
    ) -> None:
        """Compiles a module and puts its arguments on the device.

        Args:
          text: the module, as StableHLO.
          arguments: the arguments of the first call.
          carried: maps results of a call to arguments of the next call, by index.
        """
        import jax

        jax.config.update("jax_enable_x64", True)  # the step counts in int64
        self._carried = carried
        self.device = jax.devices()[0]
        self._executable = compile_text(text, self.device)
        self._arguments = [jax.device_put(argument, self.device) for argument in arguments]

    def __call__(self) -> list[Any]:
        """Runs the module, continuing from the last call; waits for its results and returns them.

        The next call overwrites the carried results, so read them before.
        """
        results = self._executable.execute_sharded(self._arguments)
        found = [parts[0] for parts in results.disassemble_into_single_device_arrays()]
        for each in found:
            each.block_until_ready()
        for result, argument in self._carried.items():
            self._arguments[argument] = found[result]
        return found
