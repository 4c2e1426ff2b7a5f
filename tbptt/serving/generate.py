"""`generate`: samples text from a language model, token by token."""

from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.seeds import fold_in
from tbptt.types import Model, Seed, State


def check_sampling(length: int, temperature: float) -> None:
    """Raises ValueError unless `length` and `temperature` are valid arguments of `generate`."""
    checks.check_at_least("length", length, 1)
    if not temperature > 0:
        raise ValueError(f"temperature ({temperature}) must be above 0; 0.01 is nearly greedy.")


def generate(
    model: Model,
    prompt: np.ndarray,
    length: int,
    *,
    seed: Seed,
    temperature: float = 1.0,
) -> np.ndarray:
    """Samples `length` tokens that follow `prompt`, each drawn token being the next input.

        p(next) = softmax(logits / temperature)

    Args:
      model: a model whose outputs are logits `[T, B, V]`.
      prompt: ids, one-dimensional, at least one.
      length: the number of tokens to draw, >= 1.
      seed: int32 `[2]`; the same seed draws the same tokens.
      temperature: > 0; below 1 bolder, above 1 wilder.

    Returns:
      `[length]` ids.
    """
    checks.check_at_least("length of the prompt", len(prompt), 1)
    check_sampling(length, temperature)
    program = _generate.get_concrete_function(
        model,
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([], tf.float32),
    )
    ids = tf.constant(np.asarray(prompt, np.int32))
    drawn = program(
        ids, tf.constant(length), tf.convert_to_tensor(seed), tf.constant(temperature, tf.float32)
    )
    return drawn.numpy()


@tf.function(autograph=False)
def _generate(
    model: Any, prompt: tf.Tensor, length: tf.Tensor, seed: Seed, temperature: tf.Tensor
) -> tf.Tensor:
    """Reads the prompt `[N]`, then samples; traced once a model, for all lengths and prompts."""

    def read(token: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        ids = tf.reshape(token, [1, 1])
        outputs, state = model(ids, state)
        return outputs[0], state  # [1, V]

    def follow(i: tf.Tensor, logits: tf.Tensor, state: State) -> tuple:
        logits, state = read(prompt[i], state)
        return i + 1, logits, state

    def draw(i: tf.Tensor, logits: tf.Tensor, state: State, drawn: tf.TensorArray) -> tuple:
        scaled = logits / tf.cast(temperature, logits.dtype)
        key = fold_in(seed, i)
        token = tf.random.stateless_categorical(scaled, 1, key, dtype=tf.int32)[0, 0]
        logits, state = read(token, state)
        return i + 1, logits, state, drawn.write(i, token)

    begun = (tf.constant(1), *read(prompt[0], model.initial_state(1)))
    _, logits, state = tf.while_loop(
        lambda i, *_: i < tf.size(prompt), follow, begun, parallel_iterations=1
    )
    drawn = tf.TensorArray(tf.int32, size=length, element_shape=[])
    loop = (tf.constant(0), logits, state, drawn)
    *_, drawn = tf.while_loop(lambda i, *_: i < length, draw, loop, parallel_iterations=1)
    return drawn.stack()
