"""The forward loop and the backward loop of the fused backend, with resets and gradient scales.

Every function works on `Parts`, the leaves of a state as a flat tuple.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.state import detach, scale_rows, select

Parts = tuple[tf.Tensor, ...]


def initial_parts(learned: Parts | None, state: Parts) -> Parts:
    """Returns the learned initial state, or zeros like `state` if there is none."""
    return tuple(learned or (tf.zeros_like(part) for part in state))


def enter(t: tf.Tensor, state: Parts, reset: tf.Tensor | None, initial_state: Parts) -> Parts:
    """Returns the state that step t starts from: rows that reset there get the initial state."""
    return state if reset is None else select(reset[t], initial_state, state)


def states_before(
    values: tf.Tensor, first: tf.Tensor, reset: tf.Tensor | None, initial: tf.Tensor
) -> tf.Tensor:
    """Returns the state before each step, `[T, B, H]`, given the states after each step."""
    before = tf.concat([first[None], values[:-1]], axis=0)
    return before if reset is None else tf.where(reset[..., None], initial[None], before)


def reached(advance: tf.Tensor | None, states: Parts, final: Parts) -> Parts:
    """Returns the state to carry to the next window: after `advance` steps, or after all steps."""
    return final if advance is None else tuple(tf.gather(s, advance - 1) for s in states)


def constant(advance: tf.Tensor | None, final: Parts) -> Parts:
    """Detaches a state in mid-window (`advance`): the backward loops start at the window's end."""
    return final if advance is None else detach(final)


def masked(hidden: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Multiplies the hidden state by a dropout mask, if there is one."""
    return hidden if mask is None else hidden * mask


def sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Computes the sigmoid by a tanh, for which XLA has a faster approximation on a CPU."""
    return 0.5 * tf.tanh(0.5 * x) + 0.5


def weight_gradient(a: tf.Tensor, d_z: tf.Tensor, compute_dtype: tf.DType | None) -> tf.Tensor:
    """Computes `sum_t,b a[t, b]^T d_z[t, b]`, `[H, G]`, as one matrix product."""
    dtype = a.dtype
    flat = [
        tf.cast(tf.reshape(part, [-1, part.shape[-1]]), compute_dtype or dtype) for part in (a, d_z)
    ]
    return tf.cast(tf.matmul(*flat, transpose_a=True), dtype)


def loop_back(
    step: Callable,
    d_state: Parts,
    steps: int,
    reset: tf.Tensor | None,
    gradient_scale: tf.Tensor | None,
    *,
    learned: bool,
    summed: Parts = (),
) -> tuple[Parts, Parts, Parts, Parts]:
    """Runs `step(t, (*d_state, *summed)) -> ((*d_state before t, *summed), kept)` backwards.

    Returns:
      The gradients of the first state and of the initial state, if that is `learned`; the last
      `summed`; and the kept values of all steps. At a reset the gradient goes to the initial state
      and not to the step before; elsewhere it goes on, multiplied by `gradient_scale`.
    """
    order = range(steps - 1, -1, -1)
    zeros = tuple(tf.zeros_like(part) for part in d_state)
    count, own = len(d_state), len(d_state) + len(summed)
    adds = learned and reset is not None  # the gradient of the initial state is a sum over steps

    def back(
        reset_t: tf.Tensor | None, scale_t: tf.Tensor | None, d_entered: Parts
    ) -> tuple[Parts, Parts]:
        """Splits a state's gradient between the initial state (at resets) and the step before."""
        further, to_initial = d_entered, zeros
        if reset_t is not None:
            further, to_initial = (
                select(reset_t, a, b) for a, b in ((zeros, d_entered), (d_entered, zeros))
            )
        return to_initial, further if scale_t is None else scale_rows(scale_t, further)

    # The gradient of step t + 1's state passes its reset at the start of step t, where XLA fuses
    # both into one kernel. The end of the window has no reset and scale 1.
    reset_after = None if reset is None else tf.concat([reset[1:], tf.zeros_like(reset[:1])], 0)
    scale_after = (
        None
        if gradient_scale is None
        else tf.concat([gradient_scale[1:], tf.ones_like(gradient_scale[:1])], 0)
    )

    def scaled(t: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
        reset_t, scale_t = (x if x is None else x[t] for x in (reset_after, scale_after))
        to_initial, further = back(reset_t, scale_t, carried[:count])
        new, kept = step(t, (*further, *carried[count:own]))
        return (*new, *_sum(carried[own:], to_initial)), kept

    carried, kept = loop(scaled, (*d_state, *summed, *(zeros if adds else ())), order)
    reset_t, scale_t = (x if x is None else x[0] for x in (reset, gradient_scale))
    to_initial, d_first = back(reset_t, scale_t, carried[:count])
    d_initial = _sum(carried[own:], to_initial) if adds else zeros[: count if learned else 0]
    return d_first, d_initial, carried[count:own], kept


def _sum(totals: Parts, more: Parts) -> Parts:
    """Adds `more` to `totals` as far as there are totals: none if nothing is summed."""
    return tuple(a + b for a, b in zip(totals, more, strict=False))


def loop(step: Callable, carried: Parts, order: range) -> tuple[Parts, Parts]:
    """Runs `step(t, carried) -> (carried, kept)` for t in `order`, in one `tf.while_loop`.

    A single step is run without a loop: serving runs many of those, and exports have no loops.

    Returns:
      The last `carried`, and the kept values of all steps, those of step t at index t.
    """
    steps = len(order)
    if steps == 1:
        carried, kept = step(tf.constant(0), tuple(carried))
        return carried, tuple(part[None] for part in kept)
    carried_spec = tuple(tf.TensorSpec(part.shape, part.dtype) for part in carried)
    traced = tf.function(step, autograph=False).get_concrete_function(
        tf.TensorSpec([], tf.int32), carried_spec
    )
    _, kept_spec = traced.structured_outputs
    arrays = tuple(
        tf.TensorArray(part.dtype, size=steps, element_shape=part.shape) for part in kept_spec
    )

    def body(k: tf.Tensor, carried: Parts, arrays: tuple) -> tuple:
        t = order.start + order.step * k
        carried, kept = step(t, carried)
        arrays = tuple(array.write(t, part) for array, part in zip(arrays, kept, strict=True))
        return k + 1, carried, arrays

    _, carried, arrays = tf.while_loop(
        lambda k, *_: k < steps,
        body,
        (tf.constant(0), tuple(carried), arrays),
        maximum_iterations=steps,
        parallel_iterations=1,
    )
    return carried, tuple(array.stack() for array in arrays)
