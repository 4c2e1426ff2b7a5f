"""Initializers of parameters: pure functions of (shape, seed, dtype)."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tbptt.types import Seed

Initializer = Callable[[Sequence[int], Seed, tf.DType], tf.Tensor]


def zeros() -> Initializer:
    """Makes an initializer that returns zeros."""
    return lambda shape, seed, dtype: tf.zeros(shape, dtype)


def uniform(scale: float) -> Initializer:
    """Makes an initializer that draws from the uniform distribution on [-scale, scale)."""
    return lambda shape, seed, dtype: tf.random.stateless_uniform(
        shape, seed, -scale, scale, dtype, alg="philox"
    )


def glorot_uniform() -> Initializer:
    """Makes an initializer of matrices `[n, m]`: uniform on [-s, s) with s = sqrt(6 / (n + m)).

    Reference: Glorot & Bengio (2010), Understanding the difficulty of training deep
      feedforward neural networks.
    """
    return lambda shape, seed, dtype: uniform((6.0 / sum(shape)) ** 0.5)(shape, seed, dtype)


def orthogonal() -> Initializer:
    """Makes an initializer of orthonormal blocks: `[H, G*H]` holds G orthogonal matrices.

    It is for recurrent weights: every gate starts with a map that preserves norms.

    Reference: Saxe, McClelland & Ganguli (2014), Exact solutions to the nonlinear
      dynamics of learning in deep linear neural networks.
    """

    def init(shape: Sequence[int], seed: Seed, dtype: tf.DType) -> tf.Tensor:
        rows, columns = shape
        blocks = tf.random.stateless_normal(
            [columns // rows, rows, rows], seed, dtype=dtype, alg="philox"
        )
        q, r = tf.linalg.qr(blocks)
        q *= tf.sign(tf.linalg.diag_part(r))[:, None, :]  # uniform over rotations
        return tf.reshape(tf.transpose(q, [1, 0, 2]), shape)

    return init
