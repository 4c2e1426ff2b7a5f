"""Compiles K windows into one call, with XLA (`jit_compile`) or without; all-reduce over replicas.

XLA is switched on here, by `jit_compile`, and nowhere else in training. On one device
`make_program` compiles a whole call, with `fold` as its loop over windows. Data-parallel training
sums gradients over replicas by an all-reduce, which XLA cannot compile together with the rest on
every kind of device, and which cannot stand in a loop inside a replica. So in
`make_replicated_program` the loop over windows is outside, and a window has three parts: backward,
compiled; one all-reduce; update, compiled.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tbptt.distribution import Replicas
from tbptt.streams.feed import Chunk
from tbptt.training.window import LOSS, LoopState, Sums, WindowGradients, continues, row_count
from tbptt.types import Nest, Window

Backward = Callable[[Window, LoopState, tf.Tensor], WindowGradients]
"""Computes the gradients of a replica's rows: `(window, loop_state, replica) -> gradients`."""

Update = Callable[[Window, LoopState, Nest, WindowGradients, tf.Tensor], tuple[LoopState, Nest]]
"""Updates variables, state and metrics by the summed gradients:
`(window, loop_state, metrics, gradients, continued) -> loop_state, metrics`."""


class _Call:
    """Wraps a function of loop state and chunk in an object of its own, for `tf.function`.

    TensorFlow counts traces by a function's code, and would warn of retracing where there are
    merely several trainers or evaluators. With this wrapper it counts each program by itself.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function
        self.__name__ = function.__name__  # the program's name in traces and dumps

    def __call__(self, loop_state: Nest, chunk: Chunk) -> Nest:
        return self._function(loop_state, chunk)


def make_program(function: Callable, *, jit_compile: bool) -> Any:
    """Makes a `tf.function` of `function(loop_state, chunk)`; XLA compiles it if `jit_compile`."""
    return tf.function(_Call(function), autograph=False, jit_compile=jit_compile)


class TracedWindow(NamedTuple):
    """A function of one window, and what it returns.

    Attributes:
      call: the function; assigns nothing.
      outputs: its outputs: symbolic ones where it was traced.
    """

    call: Callable[[Window, Nest], Any]
    outputs: Any


def trace_window(function: Callable, windows: Window, loop_state: Nest) -> TracedWindow:
    """Traces a window before the loop that calls it, so that the names of its metrics are known.

    A loop has to know what it adds up before its first turn, and only the outputs of a model tell
    which metrics it has. TensorFlow puts the body of the traced function in the place of each call,
    so the program is the same as without it. Where `tf.config.run_functions_eagerly` is on, nothing
    is traced, and a debugger sees every value.

    Args:
      function: `(window, loop_state) -> outputs`; assigns nothing.
      windows: stacked `[K, ...]`.
      loop_state: a nest of tensors.
    """
    if tf.config.functions_run_eagerly():
        return TracedWindow(function, function(windows.at(0), loop_state))
    window = tf.nest.map_structure(
        lambda x: None if x is None else tf.TensorSpec(x.shape[1:], x.dtype), windows
    )
    loop_state = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), loop_state)
    traced = tf.function(function, autograph=False).get_concrete_function(window, loop_state)
    return TracedWindow(traced, traced.structured_outputs)


def fold(chunk: Chunk, body: Callable[[Window, Nest], Nest], carry: Nest) -> Nest:
    """Runs the inner loop: `carry <- body(window, carry)` for each window, in one `tf.while_loop`.

    The number of windows and their places are data, so every call runs the same program.

    Args:
      chunk: `chunk.count` windows from `chunk.first` on, modulo the M it holds.
      body: traced once; it may assign variables.
      carry: a nest of tensors.
    """

    def turn(k: tf.Tensor, carry: Nest) -> tuple[tf.Tensor, Nest]:
        return k + 1, body(chunk.windows.at(chunk.place(k)), carry)

    _, carry = tf.while_loop(
        lambda k, _: k < chunk.count,
        turn,
        (tf.zeros([], tf.int64), carry),
        parallel_iterations=1,
    )
    return carry


def make_replicated_program(
    replicas: Replicas,
    backward: Backward,
    update: Update,
    initial_metrics: Callable[[Iterable[str]], Nest],
    *,
    reduction: str,
    parameters: Sequence[tf.Variable],
    jit_compile: bool,
) -> Any:
    """Makes a `tf.function` that trains data-parallel: one all-reduce of gradients a window.

    It maps `(loop_state, chunk)` to `(loop_state, metrics)`, all of them per replica.

    Args:
      replicas: the replicas to train on.
      backward, update: what one replica does with one window before and after the all-reduce.
      initial_metrics: returns the metrics before the first window, given their names.
      reduction: see `losses.reduce`.
      parameters: the parameters, which give the gradients' shapes.
      jit_compile: whether XLA compiles `backward` and `update`.
    """
    strategy = replicas.strategy

    @tf.function(autograph=False, jit_compile=jit_compile)
    def before(
        windows: Window, index: tf.Tensor, loop_state: LoopState, replica: tf.Tensor
    ) -> tuple[list[tf.Tensor], Nest, Sums]:
        window = windows.at(index)
        result = backward(window, loop_state, replica)
        broken = ~continues(window, loop_state.offset)
        sums = [*tf.nest.flatten(result.sums), broken]
        return _pack(result.gradients, sums, replicas.reduce_dtype), result.state, result.sums

    @tf.function(autograph=False, jit_compile=jit_compile)
    def after(
        windows: Window,
        index: tf.Tensor,
        loop_state: LoopState,
        metrics: Nest,
        packed: list[tf.Tensor],
        state: Nest,
    ) -> tuple[LoopState, Nest]:
        window = windows.at(index)
        gradients, (*flat, broken) = _unpack(packed, parameters)
        sums = tf.nest.pack_sequence_as(metrics.sums, flat)
        # Each replica has averaged over its own rows.
        share = 1.0 / tf.constant(replicas.count, tf.float32)
        if reduction == "mean":
            share = tf.math.divide_no_nan(
                tf.constant(row_count(window), tf.float32), sums[LOSS].weight
            )
        gradients = [gradient * tf.cast(share, gradient.dtype) for gradient in gradients]
        result = WindowGradients(gradients, state, sums)
        return update(window, loop_state, metrics, result, tf.equal(broken, 0.0))

    def number() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return tf.convert_to_tensor(context.replica_id_in_sync_group, tf.int32)

    def no_metrics(chunk: Chunk, loop_state: LoopState) -> Nest:
        first = (chunk.windows, chunk.place(tf.zeros([], tf.int64)), loop_state, number())
        _, _, sums = before.get_concrete_function(*first).structured_outputs
        return initial_metrics(sums)

    def replica(
        chunk: Chunk, k: tf.Tensor, loop_state: LoopState, metrics: Nest
    ) -> tuple[LoopState, Nest]:
        windows, index = chunk.windows, chunk.place(k)
        context = tf.distribute.get_replica_context()
        packed, state, _ = before(windows, index, loop_state, number())
        packed = [context.all_reduce(tf.distribute.ReduceOp.SUM, part) for part in packed]
        return after(windows, index, loop_state, metrics, packed, state)

    @tf.function(autograph=False)
    def program(loop_state: LoopState, chunk: Chunk) -> tuple[LoopState, Nest]:
        def turn(
            k: tf.Tensor, loop_state: LoopState, metrics: Nest
        ) -> tuple[tf.Tensor, LoopState, Nest]:
            arguments = (chunk, k, loop_state, metrics)
            return k + 1, *strategy.run(replica, arguments)

        _, loop_state, metrics = tf.while_loop(
            lambda k, *_: k < chunk.count,
            turn,
            (tf.zeros([], tf.int64), loop_state, strategy.run(no_metrics, (chunk, loop_state))),
            parallel_iterations=1,
        )
        return loop_state, metrics

    return program


def _pack(
    gradients: Sequence[tf.Tensor], sums: Sequence[tf.Tensor], dtype: tf.DType | None
) -> list[tf.Tensor]:
    """Packs gradients and sums into one vector for the all-reduce; two if their types differ."""
    vector = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
    vector = vector if dtype is None else tf.cast(vector, dtype)
    rest = tf.stack([tf.cast(each, tf.float32) for each in sums])
    same = vector.dtype == rest.dtype
    return [tf.concat([vector, rest], axis=0)] if same else [vector, rest]


def _unpack(
    packed: Sequence[tf.Tensor], parameters: Sequence[tf.Variable]
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Unpacks the vectors of `_pack` into gradients, shaped like the parameters, and sums."""
    sizes = [parameter.shape.num_elements() for parameter in parameters]
    if len(packed) == 1:
        packed = tf.split(packed[0], [sum(sizes), packed[0].shape[0] - sum(sizes)])
    vector, rest = packed
    gradients = [
        tf.reshape(tf.cast(part, parameter.dtype), parameter.shape)
        for part, parameter in zip(tf.split(vector, sizes), parameters, strict=True)
    ]
    return gradients, tf.unstack(rest)
