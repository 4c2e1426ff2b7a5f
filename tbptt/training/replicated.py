"""The hot loop of many replicas: what one replica compiles, and what lies between.

A reduce over replicas cannot be compiled by XLA together with the rest on every kind of device, nor
stand in a loop inside a replica. So the loop over windows is outside, and a window is three
pieces: backward, compiled; one sum over the replicas; update, compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tbptt.distribution import Replicas
from tbptt.streams.feed import Chunk
from tbptt.training import step as one
from tbptt.training.step import Carry, WindowGradients
from tbptt.types import Nest, Window

Backward = Callable[[Window, Carry, tf.Tensor], WindowGradients]
"""`(window, carry, replica) -> gradients` of the loss of its rows, averaged over them."""

Update = Callable[[Window, Carry, Nest, WindowGradients, tf.Tensor], tuple[Carry, Nest]]
"""`(window, carry, metrics, gradients, continued) -> carry, metrics`: assigns."""


def make_replicated_program(
    replicas: Replicas,
    backward: Backward,
    update: Update,
    metrics: Callable[[], Nest],
    *,
    reduction: str,
    parameters: Sequence[tf.Variable],
    jit_compile: bool,
) -> Any:
    """`(carry, chunk) -> carry, metrics`, all of them dealt: one `tf.function`.

    Args:
      replicas: whose rows they are.
      backward, update: of one replica and one window; what is between them is the sum.
      metrics: what they are before the first window.
      reduction: see `losses.reduce`.
      parameters: what the gradients are like.
      jit_compile: whether XLA compiles `backward` and `update`.
    """
    strategy = replicas.strategy

    @tf.function(autograph=False, jit_compile=jit_compile)
    def before(
        windows: Window, index: tf.Tensor, carry: Carry, replica: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, Nest]:
        window = windows.at(index)
        result = backward(window, carry, replica)
        broken = ~one.continues(window, carry.position)
        sums = [result.loss_sum, result.weight_sum, broken]
        packed = _pack(result.gradients, replicas.reduce_dtype)
        return packed, tf.stack([tf.cast(part, tf.float32) for part in sums]), result.state

    @tf.function(autograph=False, jit_compile=jit_compile)
    def after(
        windows: Window,
        index: tf.Tensor,
        carry: Carry,
        metrics: Nest,
        packed: tf.Tensor,
        sums: tf.Tensor,
        state: Nest,
    ) -> tuple[Carry, Nest]:
        window = windows.at(index)
        loss_sum, weight_sum, broken = tf.unstack(sums)
        # Each replica's part was averaged over its own rows.
        share = 1.0 / tf.constant(replicas.count, tf.float32)
        if reduction == "mean":
            share = tf.math.divide_no_nan(tf.constant(one.rows(window), tf.float32), weight_sum)
        gradients = _unpack(packed, share, parameters)
        result = WindowGradients(gradients, state, loss_sum, weight_sum)
        return update(window, carry, metrics, result, tf.equal(broken, 0.0))

    def replica(chunk: Chunk, k: tf.Tensor, carry: Carry, metrics: Nest) -> tuple[Carry, Nest]:
        windows, index = chunk.windows, chunk.place(k)
        context = tf.distribute.get_replica_context()
        number = tf.convert_to_tensor(context.replica_id_in_sync_group, tf.int32)
        packed, sums, state = before(windows, index, carry, number)
        if packed.dtype == sums.dtype:  # TensorFlow makes one vector of a list
            packed, sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [packed, sums])
        else:
            packed = context.all_reduce(tf.distribute.ReduceOp.SUM, packed)
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        return after(windows, index, carry, metrics, packed, sums, state)

    @tf.function(autograph=False)
    def program(carry: Carry, chunk: Chunk) -> tuple[Carry, Nest]:
        def turn(k: tf.Tensor, carry: Carry, metrics: Nest) -> tuple[tf.Tensor, Carry, Nest]:
            arguments = (chunk, k, carry, metrics)
            return k + 1, *strategy.run(replica, arguments)

        _, carry, told = tf.while_loop(
            lambda k, *_: k < chunk.count,
            turn,
            (tf.zeros([], tf.int64), carry, strategy.run(metrics)),
            parallel_iterations=1,
        )
        return carry, told

    return program


def _pack(gradients: Sequence[tf.Tensor], dtype: tf.DType | None) -> tf.Tensor:
    """All numbers as one vector, so that one sum takes them all."""
    flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
    return flat if dtype is None else tf.cast(flat, dtype)


def _unpack(
    packed: tf.Tensor, factor: tf.Tensor, parameters: Sequence[tf.Variable]
) -> list[tf.Tensor]:
    """The numbers times `factor`, shaped like the parameters."""
    sizes = [parameter.shape.num_elements() for parameter in parameters]
    parts = []
    for part, parameter in zip(tf.split(packed, sizes), parameters, strict=True):
        wide = tf.cast(part, parameter.dtype)
        parts.append(tf.reshape(wide * tf.cast(factor, parameter.dtype), parameter.shape))
    return parts
