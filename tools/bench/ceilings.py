"""Measures the machine's ceiling: the speed of large float32 matrix products.

The fastest library differs from processor to processor. TensorFlow's products are compiled by XLA.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.bench.contestants import Contestant, Run, Size


def product(_: Size, *, package: str, shape: tuple[int, int, int]) -> Run:
    """Builds a float32 matrix product `[m, k] @ [k, n]` as a contestant without a loss."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
    multiply: Callable[[], Any] = lambda: a @ b  # noqa: E731
    if package == "torch":
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        x, y = torch.from_numpy(a), torch.from_numpy(b)
        multiply = lambda: x @ y  # noqa: E731
    elif package == "tensorflow":
        import tensorflow as tf

        u, v = tf.constant(a), tf.constant(b)
        multiply = functools.partial(tf.function(tf.matmul, jit_compile=True), u, v)

    def run(windows: int) -> float:
        for _ in range(windows):
            multiply()
        return 0.0

    return run


PRODUCTS = {"2048": (2048, 2048, 2048), "512": (512, 4096, 2048)}
CEILINGS: dict[str, Contestant] = {
    f"product-{package}-{name}": Contestant(
        (package,), functools.partial(product, package=package, shape=shape)
    )
    for package in ("numpy", "torch", "tensorflow")
    for name, shape in PRODUCTS.items()
}


def ceiling_flops(name: str) -> float:
    """Returns the floating-point operations of one product of the ceiling `name`."""
    m, k, n = PRODUCTS[name.rpartition("-")[2]]
    return 2.0 * m * k * n
