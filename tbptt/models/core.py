"""How a model runs its core."""

import tensorflow as tf

from tbptt.types import Core, Seed, State, Window


def run_core(
    core: Core, x: tf.Tensor, state: State, window: Window, training: bool, seed: Seed | None
) -> tuple[tf.Tensor, State]:
    """A core over `x [T, B, D]`, with all that `window` says about its steps."""
    return core(
        x,
        state,
        reset=window.reset,
        link=window.link,
        advance=window.advance,
        training=training,
        seed=seed,
    )
