"""Calls a native kernel from a TensorFlow program, compiled by XLA or not."""

import functools

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from tbptt.native import library

Specs = tuple[tuple[tuple[int, ...], tf.DType], ...]

_TYPES = {tf.float32: "f32", tf.bfloat16: "bf16", tf.bool: "i1"}
_VERSION = 9  # of `xla_call_module`'s own format; the module is read as text


def call(
    name: str,
    arguments: list[tf.Tensor],
    results: list[tuple[list[int], tf.DType]],
    **attributes: int,
) -> list[tf.Tensor]:
    """Calls the kernel `name` and returns its results.

    Inside a program that XLA compiles the call becomes a part of it. Elsewhere, in eager code or in
    a plain graph, it is a compiled program of its own. The call has no gradient;
    `tf.custom_gradient` around it gives it one.

    Args:
      name: of a handler in `library.HANDLERS`.
      arguments: tensors of static shape, float32, bfloat16 or bool.
      results: shape and type of each result.
      **attributes: the kernel's attributes, whole numbers.

    Raises:
      Unavailable: the kernels cannot be compiled or loaded on this machine.
      ValueError, TypeError: an argument has no static shape, or another type.
      tf.errors.InvalidArgumentError: when run, shapes that do not belong together.
    """
    library.load()
    arguments = [tf.stop_gradient(argument) for argument in arguments]
    for k, argument in enumerate(arguments):
        if not argument.shape.is_fully_defined():
            raise ValueError(
                f"argument {k} of {name} has shape {argument.shape}, but a native kernel needs one "
                "that is known when the program is traced. Use backend='fused'."
            )
        if argument.dtype not in _TYPES:
            raise TypeError(
                f"argument {k} of {name} is {argument.dtype.name}, but a native kernel takes "
                "float32, bfloat16 and bool. Use backend='fused'."
            )
    given = tuple((tuple(a.shape.as_list()), a.dtype) for a in arguments)
    wanted = tuple((tuple(shape), dtype) for shape, dtype in results)
    return _program(name, given, wanted, tuple(sorted(attributes.items())))(*arguments)


@functools.lru_cache(maxsize=256)
def _program(
    name: str, given: Specs, wanted: Specs, attributes: tuple
) -> tf.types.experimental.PolymorphicFunction:
    """Returns a compiled function of one call: one for all calls with these shapes."""
    module = _module(name, given, wanted, attributes)

    @tf.function(autograph=False, jit_compile=True)
    def program(*arguments: tf.Tensor) -> list[tf.Tensor]:
        return gen_xla_ops.xla_call_module(
            list(arguments),
            version=_VERSION,
            module=module,
            Sout=[list(shape) for shape, _ in wanted],
            Tout=[dtype for _, dtype in wanted],
            platforms=["CPU"],
        )

    return program


def _module(name: str, given: Specs, wanted: Specs, attributes: tuple) -> str:
    """Returns the call as a program in StableHLO, of which XLA's custom call is the only step."""

    def tensor(spec: tuple[tuple[int, ...], tf.DType]) -> str:
        return "tensor<" + "".join(f"{size}x" for size in spec[0]) + _TYPES[spec[1]] + ">"

    inputs, outputs = ", ".join(map(tensor, given)), ", ".join(map(tensor, wanted))
    head = ", ".join(f"%a{k}: {tensor(spec)}" for k, spec in enumerate(given))
    names = ", ".join(f"%a{k}" for k in range(len(given)))
    several = len(wanted) > 1
    left = f"%r:{len(wanted)}" if several else "%r"
    returned = ", ".join(f"%r#{k}" for k in range(len(wanted))) if several else "%r"
    config = ", ".join(f"{key} = {value} : i32" for key, value in attributes)
    return f"""module @kernel {{
      func.func public @main({head}) -> ({outputs}) {{
        {left} = stablehlo.custom_call @{name}({names})
          {{api_version = 4 : i32, backend_config = {{{config}}}}} : ({inputs}) -> ({outputs})
        return {returned} : {outputs}
      }}
    }}"""
