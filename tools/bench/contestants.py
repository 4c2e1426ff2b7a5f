"""Trains the same language model in TensorFlow (ours), PyTorch, Keras and JAX, for comparison.

Every contestant trains embedding, LSTM layers and readout on the same windows of tokens: mean
cross entropy, backward, clipping by the global norm, SGD, the state carried from window to
window. Initial weights are each framework's own. A builder takes a `Size` and returns a function
that trains on a number of windows, waits until they are done, and returns their mean loss in nats.
A contestant imports its packages when it is built, so this file imports none of them.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

LEARNING_RATE, CLIP_NORM = 0.1, 1.0

Run = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A training program that the benchmark measures.

    Attributes:
      packages: the packages to import before the clock of the first step starts.
      build: builds the program without running it.
    """

    packages: tuple[str, ...]
    build: Callable[["Size"], Run]


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of the model and of the windows that are trained.

    Attributes:
      rows, window_length, embedding, hidden, layers, vocabulary: B, T, D, H, L, V.
      windows_per_call: the number of windows that a framework trains in one call, if it can.
    """

    rows: int
    window_length: int
    embedding: int
    hidden: int
    layers: int
    vocabulary: int
    windows_per_call: int

    @property
    def tokens(self) -> int:
        """The number of tokens in a window, T * B."""
        return self.rows * self.window_length

    @property
    def product_flops(self) -> float:
        """The floating-point operations of a step's matrix products: three times the forward."""
        inputs = [self.embedding] + [self.hidden] * (self.layers - 1)
        weights = sum(4 * self.hidden * (size + self.hidden) for size in inputs)
        weights += self.hidden * self.vocabulary
        return 3.0 * 2.0 * weights * self.tokens

    @property
    def parameters(self) -> int:
        """The number of trained parameters, which is the size of the gradients' all-reduce."""
        inputs = [self.embedding] + [self.hidden] * (self.layers - 1)
        layers = sum(4 * self.hidden * (size + self.hidden + 1) for size in inputs)
        return self.vocabulary * self.embedding + layers + (self.hidden + 1) * self.vocabulary


SIZES = {
    "char": Size(64, 64, 128, 512, 1, 256, windows_per_call=8),
    "small": Size(16, 32, 32, 64, 1, 64, windows_per_call=200),
    "ptb_small": Size(20, 20, 200, 200, 2, 10_000, windows_per_call=20),
    "deep": Size(32, 128, 256, 256, 4, 256, windows_per_call=8),
    "long": Size(128, 512, 128, 256, 1, 256, windows_per_call=2),
    "words": Size(64, 32, 128, 128, 1, 100_000, windows_per_call=1),
    "ptb_large": Size(20, 35, 1500, 1500, 2, 10_000, windows_per_call=8),
    "huge": Size(64, 64, 2048, 2048, 4, 256, windows_per_call=8),
}


def windows_of(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets, `[K, T, B]` int32 each; row b continues from window to window."""
    steps = size.windows_per_call * size.window_length
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, size.vocabulary, [steps + 1, size.rows], np.int32)
    shape = [size.windows_per_call, size.window_length, size.rows]
    return tokens[:-1].reshape(shape), tokens[1:].reshape(shape)


def build_ours(
    size: Size,
    *,
    backend: str = "auto",
    jit_compile: bool = True,
    resets: bool = False,
    bfloat16: bool = False,
    readout: str | None = None,
    strategy: str = "one",
    **options: Any,
) -> tuple[Any, Any, Any]:
    """Builds a `tbptt.Trainer`, its first loop state, and a chunk of windows on the device.

    Args:
      size: the sizes of the model and of the windows.
      backend, jit_compile: see `tbptt.LSTM` and `tbptt.Trainer`.
      resets: whether every row is reset at a random step in every window.
      bfloat16: whether matrix products are computed in bfloat16.
      readout: "chunked", "adaptive" or "sampled"; None: all logits at once.
      strategy: see `tbptt.distribution.open_replicas`; each replica has the rows of `size`.
      options: further arguments of `tbptt.LSTM`.
    """
    import tensorflow as tf

    import tbptt
    from tbptt import optimizers
    from tbptt.distribution import open_replicas
    from tbptt.streams.feed import Chunk

    replicas = open_replicas(strategy)  # before TensorFlow does anything else
    narrow: dict[str, Any] = dict(compute_dtype=tf.bfloat16) if bfloat16 else {}
    seeds = tbptt.split_seed(tbptt.make_seed(0), size.layers + 1)
    inputs = [size.embedding] + [size.hidden] * (size.layers - 1)
    readouts: dict[str, Callable[[], tbptt.types.Readout]] = {
        "chunked": lambda: tbptt.ChunkedSoftmax(size.hidden, size.vocabulary, seed=seeds[-1]),
        "adaptive": lambda: tbptt.AdaptiveSoftmax(
            size.hidden, size.vocabulary, seed=seeds[-1],
            cutoffs=[size.vocabulary // 50, size.vocabulary // 5],
        ),
        "sampled": lambda: tbptt.SampledSoftmax(
            size.hidden, size.vocabulary, seed=seeds[-1], samples=size.vocabulary // 50
        ),
    }  # fmt: skip
    with replicas.scope():
        layers = [
            tbptt.LSTM(inputs[i], size.hidden, seed=seeds[i], backend=backend, **narrow, **options)
            for i in range(size.layers)
        ]
        model = tbptt.LanguageModel(
            size.vocabulary,
            size.embedding,
            tbptt.Stack(layers),
            seed=seeds[-1],
            readout=readouts[readout]() if readout else None,
            **narrow,
        )
        optimizer = optimizers.chain(
            optimizers.clip_by_global_norm(CLIP_NORM), optimizers.sgd(LEARNING_RATE)
        )
        trainer = tbptt.Trainer(model, optimizer, replicas=replicas, jit_compile=jit_compile)
    size = dataclasses.replace(size, rows=size.rows * replicas.count)
    x, y = windows_of(size)
    reset = None
    if resets:
        places = np.random.default_rng(1).integers(0, x.shape[1], [x.shape[0], x.shape[2]])
        reset = np.arange(x.shape[1])[None, :, None] == places[:, None, :]
    windows = tbptt.Window(x, y, controls=tbptt.Controls(reset))
    stacked = replicas.put(windows.of_rows(replicas.rows_here(size.rows)))
    first, count = (tf.constant(n, tf.int64) for n in (0, size.windows_per_call))
    return trainer, trainer.initial_loop_state(size.rows), Chunk(stacked, first, count)


def ours(size: Size, **options: Any) -> Run:
    """Builds `tbptt.Trainer`, many windows a call, as a contestant; options as in `build_ours`."""
    import tensorflow as tf

    trainer, loop_state, chunk = build_ours(size, **options)

    def run(windows: int) -> float:
        nonlocal loop_state
        loop_state, metrics = trainer(
            loop_state, chunk._replace(count=tf.constant(windows, tf.int64))
        )
        return metrics.read().loss

    return run


def torch_lstm(size: Size, *, bfloat16: str | None = None, threads: int | None = None) -> Run:
    """Builds `torch.nn.LSTM`, the state detached between windows; on a GPU if there is one.

    On a CPU it uses all cores, or `threads` threads. `bfloat16` is None, `autocast` (parameters in
    float32), or `parameters` (these and all else in bfloat16, which is less exact).
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(size.vocabulary, size.embedding)
            self.lstm = torch.nn.LSTM(size.embedding, size.hidden, num_layers=size.layers)
            self.readout = torch.nn.Linear(size.hidden, size.vocabulary)

        def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
            h, state = self.lstm(self.embedding(x), state)
            return self.readout(h), state

    model = Model().to(device, torch.bfloat16 if bfloat16 == "parameters" else torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, fused=True)
    xs, ys = (torch.from_numpy(part).long().to(device) for part in windows_of(size))
    state: Any = None

    def step(x: Any, y: Any) -> Any:
        nonlocal state
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16 == "autocast"):
            logits, state = model(x, state)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        state = tuple(part.detach() for part in state)
        return loss.detach()

    def run(windows: int) -> float:
        losses = [step(xs[k % len(xs)], ys[k % len(ys)]) for k in range(windows)]
        return float(sum(losses)) / windows

    return run


def keras_lstm(size: Size, *, jit_compile: bool = False) -> Run:
    """Builds `keras.layers.LSTM(stateful=True)`, trained by `fit`, many windows an execution."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    shape = (size.rows, size.window_length)
    model = keras.Sequential(
        [
            keras.Input(batch_shape=shape, dtype="int32"),
            keras.layers.Embedding(size.vocabulary, size.embedding),
            *(
                keras.layers.LSTM(size.hidden, return_sequences=True, stateful=True)
                for _ in range(size.layers)
            ),
            keras.layers.Dense(size.vocabulary),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, global_clipnorm=CLIP_NORM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
        steps_per_execution=size.windows_per_call,
    )
    xs, ys = (tf.constant(part.swapaxes(1, 2)) for part in windows_of(size))  # [K, B, T]
    data = tf.data.Dataset.from_tensor_slices((xs, ys)).prefetch(2)

    def run(windows: int) -> float:
        some = data if windows == size.windows_per_call else data.take(windows)
        return model.fit(some, verbose=0, shuffle=False).history["loss"][-1]

    return run


def jax_scan(size: Size) -> Run:
    """Builds a `jax.lax.scan` over the steps, input products before it, many windows a call."""
    import jax
    import jax.numpy as jnp

    keys = iter(jax.random.split(jax.random.key(0), 3 * size.layers + 3))

    def uniform(*shape: int) -> Any:
        return jax.random.uniform(next(keys), shape, jnp.float32, -0.05, 0.05)

    inputs = [size.embedding] + [size.hidden] * (size.layers - 1)
    parameters = {
        "embedding": uniform(size.vocabulary, size.embedding),
        "layers": [
            (uniform(d, 4 * size.hidden), uniform(size.hidden, 4 * size.hidden),
             jnp.zeros(4 * size.hidden)) for d in inputs
        ],
        "readout": (uniform(size.hidden, size.vocabulary), jnp.zeros(size.vocabulary)),
    }  # fmt: skip
    zeros = jnp.zeros([size.rows, size.hidden])
    state = [(zeros, zeros)] * size.layers

    def layer(weights: Any, x: Any, state: Any) -> tuple[Any, Any]:
        w_x, w_h, b = weights

        def step(state: Any, z_x: Any) -> tuple[Any, Any]:
            h, c = state
            i, f, g, o = jnp.split(z_x + h @ w_h, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        state, outputs = jax.lax.scan(step, state, x @ w_x + b)
        return outputs, state

    def loss_of(parameters: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        h = parameters["embedding"][x]
        final = []
        for weights, old in zip(parameters["layers"], state, strict=True):
            h, new = layer(weights, h, old)
            final.append(new)
        w, b = parameters["readout"]
        scores = jax.nn.log_softmax(h @ w + b)
        return -jnp.take_along_axis(scores, y[..., None], axis=-1).mean(), final

    def window(carried: Any, xy: Any) -> tuple[Any, Any]:
        parameters, state = carried
        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(parameters, state, *xy)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        rate = LEARNING_RATE * CLIP_NORM / jnp.maximum(norm, CLIP_NORM)
        return (jax.tree.map(lambda p, g: p - rate * g, parameters, grads), state), loss

    call = jax.jit(lambda carried, xy: jax.lax.scan(window, carried, xy), donate_argnums=0)
    carried = (parameters, [tuple(jnp.array(part) for part in pair) for pair in state])
    xs, ys = (jnp.array(part) for part in windows_of(size))

    def run(windows: int) -> float:
        nonlocal carried
        carried, losses = call(carried, (xs[:windows], ys[:windows]))
        return float(losses.mean())

    return run


# tbptt is imported first, which keeps TensorFlow's import from logging.
OURS, KERAS, TORCH = ("tbptt",), ("tbptt", "keras"), ("torch",)
CONTESTANTS: dict[str, Contestant] = {
    "ours-native-xla": Contestant(OURS, lambda size: ours(size, backend="native")),
    "ours-fused-xla": Contestant(OURS, lambda size: ours(size, backend="fused")),
    "ours-fused-plain": Contestant(
        OURS, lambda size: ours(size, backend="fused", jit_compile=False)
    ),
    "ours-scan-xla": Contestant(OURS, lambda size: ours(size, backend="scan")),
    "ours-native-xla-resets": Contestant(
        OURS, lambda size: ours(size, backend="native", resets=True)
    ),
    "ours-bfloat16-native": Contestant(
        OURS, lambda size: ours(size, backend="native", bfloat16=True)
    ),
    "ours-bfloat16-fused": Contestant(
        OURS, lambda size: ours(size, bfloat16=True, backend="fused")
    ),
    "torch": Contestant(TORCH, torch_lstm),
    # Threads synchronise after every operation, which can cost a small network more than it gains.
    "torch-one-thread": Contestant(TORCH, lambda size: torch_lstm(size, threads=1)),
    "torch-bfloat16": Contestant(TORCH, lambda size: torch_lstm(size, bfloat16="autocast")),
    "torch-bfloat16-parameters": Contestant(
        TORCH, lambda size: torch_lstm(size, bfloat16="parameters")
    ),
    "keras": Contestant(KERAS, keras_lstm),
    "keras-xla": Contestant(KERAS, lambda size: keras_lstm(size, jit_compile=True)),
    "jax": Contestant(("jax",), jax_scan),
}

# Options of ours that are measured only if --contestants names them.
OPTIONS: dict[str, dict[str, Any]] = {
    "recurrent-dropout": dict(recurrent_dropout=0.2),
    "weight-dropout": dict(weight_dropout=0.3),
    "zoneout": dict(zoneout=(0.1, 0.1)),
    "layer-norm": dict(layer_norm=True),
    "peepholes": dict(peepholes=True),
    "projection": dict(projection_size=128),
    "states": dict(keep="states"),
}
EXTRAS: dict[str, Contestant] = (
    {"ours-auto": Contestant(OURS, ours)}
    | {
        f"ours-{option}{suffix}": Contestant(
            OURS, functools.partial(ours, backend=backend, **settings)
        )
        for option, settings in OPTIONS.items()
        for backend, suffix in (("auto", ""), ("scan", "-scan"))
    }
    | {
        f"ours-{readout}": Contestant(OURS, functools.partial(ours, readout=readout))
        for readout in ("chunked", "adaptive", "sampled")
    }
)
