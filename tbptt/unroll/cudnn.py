"""The `cudnn` backend: LSTM and GRU over a whole window by NVIDIA's cuDNN, without resets.

It runs a layer over a window in one operation, but only on a CUDA GPU, only without resets inside
the window, and outside of XLA, which has no kernel for the operation:
`Trainer(..., jit_compile=False)`. Inside a program that XLA compiles, XLA itself refuses the
operation; there is no public way to check earlier, so the operation's name, which XLA's message
quotes, says what to do.

cuDNN reads all weights from one flat vector:

    every input weight [H, D], gate by gate;  every recurrent weight [H, H], gate by gate;
    every input bias [H], gate by gate;       every recurrent bias [H], gate by gate

The gates' order is ours: i f g o for LSTM; reset, update, candidate for GRU. The equations are
those of `lstm_step` and `gru_step`. What cuDNN adds is a second bias beside every one of ours,
which is packed as zero, except for the candidate of the GRU, where it is `b_h`.

Reference: NVIDIA, cuDNN API, cudnnRNNMode_t (equations), cudnnGetRNNWeightParams (gates); Keras,
  keras/src/backend/tensorflow/rnn.py (the flat order); Appleyard, Kocisky & Blunsom (2016),
  Optimizing performance of recurrent neural networks on GPUs.
"""

from typing import Any

import tensorflow as tf

from tbptt import checks
from tbptt.types import Controls

Parts = tuple[tf.Tensor, ...]

DTYPES = (tf.float32, tf.float16)


def check_layer(dtype: tf.DType, **options: Any) -> None:
    """Raises unless cuDNN can run a layer with these options; called where the layer is built.

    Args:
      dtype: the type of parameters, inputs and state.
      **options: the layer's options that cuDNN does not have, by name; each must be off: None,
        False, 0, or zeros.

    Raises:
      ValueError: TensorFlow sees no CUDA GPU; `dtype` is another than float32 or float16; an
        option is on.

    Example:
      >>> check_layer(tf.float32, peepholes=True)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: peepholes (True) cannot be with backend='cudnn', which has no such option. ...
    """
    for name, value in options.items():
        if any(value) if isinstance(value, tuple) else value:
            shown = value.name if isinstance(value, tf.DType) else value
            raise ValueError(
                f"{name} ({shown}) cannot be with backend='cudnn', which has no such option. Use "
                f"backend='fused', or leave {name} off."
            )
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype ({tf.as_dtype(dtype).name}) must be float32 or float16 with backend='cudnn'. "
            "Use backend='fused', which takes every floating type."
        )
    # Libraries of other GPUs have the operation too, but another order of gates.
    cuda = tf.sysconfig.get_build_info().get("is_cuda_build", False)
    gpus = tf.config.get_visible_devices("GPU")
    if not (cuda and gpus):
        raise ValueError(
            f"backend='cudnn' needs a CUDA GPU, but TensorFlow sees {len(gpus)} GPUs and is "
            f"{'a' if cuda else 'no'} CUDA build. Use backend='fused', which runs on every device "
            "and has the same parameters, or install tensorflow[and-cuda] on a machine with a GPU."
        )


def check_controls(controls: Controls) -> None:
    """Raises ValueError if any of the controls, as resets, is given: cuDNN supports none.

    Example:
      >>> check_controls(Controls())
    """
    for name, value in controls._asdict().items():
        if value is not None:
            raise ValueError(
                f"{name} of shape {list(value.shape)} was given, but backend='cudnn' runs a window "
                "as one operation, inside which no row can start anew, no gradient be cut and no "
                "state be taken. Use backend='fused', or a stream of windows one after another "
                "whose rows start anew only at a window's first step (`start`, not `reset`)."
            )


def lstm(
    inputs: tf.Tensor, w_x: tf.Tensor, w_h: tf.Tensor, b: tf.Tensor, state: Parts
) -> tuple[tf.Tensor, Parts]:
    """Runs an LSTM layer over a window, the product with `w_x` included.

    Args:
      inputs: `[T, B, D]`, T and B static.
      w_x: `[D, 4H]`, blocks i f g o.
      w_h: `[H, 4H]`.
      b: `[4H]`.
      state: hidden and cell, `[B, H]` each.

    Returns:
      The outputs `[T, B, H]`, and (hidden, cell) after the last step.

    Raises:
      tf.errors.InvalidArgumentError: when run without a GPU, or compiled by XLA.

    Example: traced anywhere, run on a GPU.
      >>> specs = [tf.TensorSpec(shape) for shape in ([7, 2, 3], [3, 20], [5, 20], [20])]
      >>> state = (tf.TensorSpec([2, 5]), tf.TensorSpec([2, 5]))
      >>> traced = tf.function(lstm, autograph=False).get_concrete_function(*specs, state)
      >>> outputs, (hidden, cell) = traced.structured_outputs
      >>> outputs.shape.as_list(), cell.shape.as_list()
      ([7, 2, 5], [2, 5])
    """
    hidden, cell = state
    outputs, last_hidden, last_cell = _run("lstm", inputs, pack_lstm(w_x, w_h, b), hidden, cell)
    return outputs, (last_hidden[0], last_cell[0])


def gru(
    inputs: tf.Tensor,
    w_x: tf.Tensor,
    w_h: tf.Tensor,
    b: tf.Tensor,
    b_h: tf.Tensor,
    state: Parts,
) -> tuple[tf.Tensor, Parts]:
    """Runs a GRU layer over a window, the product with `w_x` included.

    Args:
      inputs: `[T, B, D]`, T and B static.
      w_x: `[D, 3H]`, blocks reset, update, candidate.
      w_h: `[H, 3H]`.
      b: `[3H]`.
      b_h: `[H]`.
      state: hidden, `[B, H]`.

    Returns:
      outputs `[T, B, H]`, and (hidden,) after the last step.

    Raises:
      tf.errors.InvalidArgumentError: when run without a GPU, or compiled by XLA.

    Example: as of `lstm`.
      >>> shapes = ([7, 2, 3], [3, 15], [5, 15], [15], [5])
      >>> specs = [tf.TensorSpec(shape) for shape in shapes]
      >>> traced = tf.function(gru, autograph=False).get_concrete_function(
      ...     *specs, (tf.TensorSpec([2, 5]),)
      ... )
      >>> traced.structured_outputs[0].shape.as_list()
      [7, 2, 5]
    """
    outputs, last_hidden, _ = _run("gru", inputs, pack_gru(w_x, w_h, b, b_h), state[0], None)
    return outputs, (last_hidden[0],)


def pack_lstm(w_x: tf.Tensor, w_h: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Packs an LSTM's weights into cuDNN's flat vector; differentiable.

    Args:
      w_x: `[D, 4H]`, blocks i f g o.
      w_h: `[H, 4H]`.
      b: `[4H]`.

    Returns:
      `[4H (D + H) + 8H]`: see the top of this file.

    Example: one unit and one input, so that each number is a block.
      >>> w_x, w_h = tf.constant([[1.0, 2, 3, 4]]), tf.constant([[5.0, 6, 7, 8]])
      >>> pack_lstm(w_x, w_h, tf.constant([9.0, 10, 11, 12])).numpy().astype(int).tolist()
      [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]
    """
    return _pack(w_x, w_h, b, tf.zeros_like(b))


def unpack_lstm(flat: tf.Tensor, input_size: int, hidden_size: int) -> Parts:
    """Unpacks an LSTM's weights from cuDNN's flat vector, adding the two biases of each gate.

    Args:
      flat: `[4H (D + H) + 8H]`.
      input_size: D.
      hidden_size: H.

    Returns:
      `w_x [D, 4H]`, `w_h [H, 4H]` and `b [4H]`.

    Raises:
      ValueError: `flat` has another size.

    Example:
      >>> w_x, w_h, b = unpack_lstm(tf.range(16.0), input_size=1, hidden_size=1)
      >>> w_h.numpy().tolist(), b.numpy().tolist()
      ([[4.0, 5.0, 6.0, 7.0]], [20.0, 22.0, 24.0, 26.0])
    """
    w_x, w_h, b_x, b_h = _unpack(flat, 4, input_size, hidden_size)
    return w_x, w_h, b_x + b_h


def pack_gru(w_x: tf.Tensor, w_h: tf.Tensor, b: tf.Tensor, b_h: tf.Tensor) -> tf.Tensor:
    """Packs a GRU's weights into cuDNN's flat vector; differentiable.

    Args:
      w_x: `[D, 3H]`, blocks reset, update, candidate.
      w_h: `[H, 3H]`.
      b: `[3H]`.
      b_h: `[H]`.

    Returns:
      `[3H (D + H) + 6H]`: see the top of this file.

    Example: one unit and one input, so that each number is a block.
      >>> w_x, w_h = tf.constant([[1.0, 2, 3]]), tf.constant([[4.0, 5, 6]])
      >>> flat = pack_gru(w_x, w_h, tf.constant([7.0, 8, 9]), tf.constant([10.0]))
      >>> flat.numpy().astype(int).tolist()
      [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 10]
    """
    return _pack(w_x, w_h, b, tf.concat([tf.zeros_like(b_h), tf.zeros_like(b_h), b_h], axis=0))


def unpack_gru(flat: tf.Tensor, input_size: int, hidden_size: int) -> Parts:
    """Unpacks a GRU's weights from cuDNN's flat vector, adding the biases of reset and update.

    Args:
      flat: `[3H (D + H) + 6H]`.
      input_size: D.
      hidden_size: H.

    Returns:
      `w_x [D, 3H]`, `w_h [H, 3H]`, `b [3H]` and `b_h [H]`.

    Raises:
      ValueError: `flat` has another size.

    Example:
      >>> w_x, w_h, b, b_h = unpack_gru(tf.range(12.0), input_size=1, hidden_size=1)
      >>> b.numpy().tolist(), b_h.numpy().tolist()
      ([15.0, 17.0, 8.0], [11.0])
    """
    w_x, w_h, b_x, b_h = _unpack(flat, 3, input_size, hidden_size)
    gates, candidate = b_h[: 2 * hidden_size], b_h[2 * hidden_size :]
    b = b_x + tf.concat([gates, tf.zeros_like(candidate)], axis=0)
    return w_x, w_h, b, candidate


def _run(
    mode: str, inputs: tf.Tensor, params: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor | None
) -> Parts:
    """Runs cuDNN; returns outputs `[T, B, H]`, last hidden state and cell, `[1, B, H]` each."""
    steps, rows = inputs.shape[:2]
    outputs, last_hidden, last_cell, _, _ = tf.raw_ops.CudnnRNNV3(
        input=inputs,
        input_h=hidden[None],
        input_c=tf.zeros([], inputs.dtype) if cell is None else cell[None],
        params=params,
        sequence_lengths=tf.fill([rows], steps),
        rnn_mode=mode,
        is_training=True,  # keeps the values that the gradient needs
        time_major=True,
        name=f"cudnn_{mode}_needs_jit_compile_False",  # XLA quotes the name when it refuses
    )
    return outputs, last_hidden, last_cell


def _pack(w_x: tf.Tensor, w_h: tf.Tensor, b_x: tf.Tensor, b_h: tf.Tensor) -> tf.Tensor:
    # The rows of a transposed matrix are gate by gate already.
    parts = [tf.transpose(w_x), tf.transpose(w_h), b_x, b_h]
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)


def _unpack(flat: tf.Tensor, gates: int, input_size: int, hidden_size: int) -> Parts:
    """Unpacks `w_x [D, G]`, `w_h [H, G]` and two biases `[G]`, where G = gates * H."""
    size = gates * hidden_size
    sizes = [size * input_size, size * hidden_size, size, size]
    checks.check_shape("flat", flat, [sum(sizes)])
    w_x, w_h, b_x, b_h = tf.split(flat, sizes)
    w_x = tf.transpose(tf.reshape(w_x, [size, input_size]))
    return w_x, tf.transpose(tf.reshape(w_h, [size, hidden_size])), b_x, b_h
