"""Places rows and state on replicas; their gradients are summed in `training/programs.py`.

Rows are divided contiguously, and a row stays on its replica: replica r of R has rows r * B / R to
(r + 1) * B / R, their windows and their state. Every replica has a copy of the parameters. Once a
window the gradients are summed over replicas by one all-reduce, in
`training.programs.make_replicated_program`. Every replica then makes the same update, so the copies
stay equal to the bit.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.types import Nest, Window

TPU_VARIABLES = ("TPU_NAME", "TPU_CONFIG", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")


def open_replicas(
    strategy: str = "auto", *, resolver: Any = None, reduce_dtype: tf.DType | None = None
) -> "Replicas":
    """Opens the replicas that a strategy trains on; a single replica on a single device.

    A process opens one strategy of each kind, because the collectives of two would collide.

    Args:
      strategy: `one`: this device alone. `mirrored`: all GPUs of this machine, or all logical
        CPU devices. `multi_worker`: this process is one of several, named by `TF_CONFIG` or by
        Slurm; it must be opened before TensorFlow does anything else. `tpu`: the TPU slice
        that the environment names. `auto`: chosen by the environment.
      resolver: for `multi_worker`, one of `tf.distribute.cluster_resolver`, with `task_type` and
        `task_id` set, as for Kubernetes or GCE. None: the environment names the workers.
      reduce_dtype: see `Replicas`.

    Raises:
      ValueError: the strategy's name is unknown, the environment does not name the workers, or the
        resolver does not say which of them this process is.
    """
    checks.check_choice("strategy", strategy, STRATEGIES)
    name = _called_for() if strategy == "auto" else strategy
    if resolver is not None and name != "multi_worker":
        raise ValueError(f"A resolver is for strategy='multi_worker', not for {name!r}.")
    if resolver is not None and (resolver.task_type is None or resolver.task_id is None):
        raise ValueError(
            f"The resolver says task_type={resolver.task_type!r}, task_id={resolver.task_id!r}, "
            "but must say which worker this process is. Set them, as: resolver.task_type, "
            "resolver.task_id = 'worker', 0."
        )
    opened = None if name == "one" else _open(name, resolver)
    return Replicas(opened, reduce_dtype=reduce_dtype)


def _called_for() -> str:
    if os.environ.get("TPU_NAME"):
        return "tpu"
    if len(_workers()) > 1 or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "multi_worker"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one"


def _workers() -> list[str]:
    """Returns the addresses of the processes that `TF_CONFIG` names."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        workers = [*cluster.get("chief", []), *cluster.get("worker", [])]
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        alike = len(cluster.get(kind, []))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"TF_CONFIG ({text!r}) must be as "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}.'
        ) from None
    if cluster and not 0 <= index < alike:
        raise ValueError(
            f"TF_CONFIG ({text!r}) says that this process is {kind} {index}, but names {alike} of "
            "them, counted from 0. Correct its task, or its cluster."
        )
    return workers


@functools.cache
def _open(name: str, resolver: Any) -> tf.distribute.Strategy:
    # On a CPU the caching allocator keeps a window's memory for the next window, instead of giving
    # it back to the system, which clears every page. It must be set before TensorFlow allocates.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if name == "tpu":
        if not any(os.environ.get(variable) for variable in TPU_VARIABLES):
            raise ValueError(
                "strategy='tpu' needs a TPU that the environment names, and none of "
                f"{', '.join(TPU_VARIABLES)} is set. Set TPU_NAME, or use another strategy."
            )
        tpu = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(tpu)
        tf.tpu.experimental.initialize_tpu_system(tpu)
        return tf.distribute.TPUStrategy(tpu)
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy(
            [d.name for d in tf.config.list_logical_devices(kind)]
        )
    if resolver is None and not _workers():
        if "SLURM_STEP_NUM_TASKS" not in os.environ:
            raise ValueError(
                "strategy='multi_worker' needs TF_CONFIG, which names the workers, or Slurm. "
                "python -m tools.launch sets it for processes on this machine."
            )
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


class Replicas:
    """Places rows and their state on the replicas of a strategy, and sums over processes.

    Attributes:
      strategy: the strategy that was given; None: this device alone, a single replica.
      count: R, the number of replicas of all processes together.
      here: the numbers of this process's replicas.
      is_chief: whether this process writes the files that only one process may write.

    Example: all logical devices of this machine share four rows.
      >>> replicas = open_replicas("mirrored")
      >>> options = dict(replicas=replicas, jit_compile=False)
      >>> with replicas.scope():
      ...     model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      ...     trainer = Trainer(model, sgd(0.1), **options)
      >>> stream = ContiguousStream(np.arange(50) % 5, rows=4, window_length=4, vocabulary_size=5)
      >>> feed = open_feed(stream, 2, replicas=replicas)
      >>> run_state = train(trainer, feed, RunState(trainer.initial_loop_state(4)), windows=2)
      >>> trainer.gather(run_state.loop_state).state.hidden.shape.as_list()
      [4, 4]
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy | None = None,
        *,
        reduce_dtype: tf.DType | None = None,
    ) -> None:
        """Wraps a strategy; without one there is a single replica.

        Args:
          strategy: a `tf.distribute` strategy: mirrored, multi-worker or TPU. None: one replica.
          reduce_dtype: the type in which gradients are sent and summed, as bfloat16; None: the type
            that they have.
        """
        self.strategy: Any = strategy
        self.reduce_dtype = reduce_dtype
        self.count, self.is_chief = 1, True
        self.here: tuple[int, ...] = (0,)
        self._gather = tf.function(self._gather_scattered, autograph=False)  # traced once
        if strategy is None:
            return
        self.count = int(strategy.num_replicas_in_sync)
        ids = strategy.experimental_distribute_values_from_function(
            lambda context: context.replica_id_in_sync_group
        )
        self.here = tuple(int(each) for each in strategy.experimental_local_results(ids))
        self._devices = dict(zip(self.here, strategy.extended.worker_devices, strict=True))
        resolver = strategy.cluster_resolver
        if resolver is not None and resolver.task_type == "worker":
            self.is_chief = resolver.task_id == 0 and not resolver.cluster_spec().as_dict().get(
                "chief"
            )

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Makes variables inside the block as one independent copy on every replica.

        Model, average, loss scale and trainer must be built inside it.
        """
        if self.strategy is None:
            yield
            return

        def creator(make: Callable[..., tf.Variable], **options: Any) -> tf.Variable:
            if options.get("trainable") is None:
                options["trainable"] = True  # ON_READ variables are not by default
            options["synchronization"] = tf.VariableSynchronization.ON_READ
            options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return make(**options)

        with self.strategy.scope(), tf.variable_creator_scope(creator):
            yield

    def check_copies(self, variables: Sequence[tf.Variable]) -> None:
        """Raises ValueError if a variable was not made in `scope()`."""
        if self.strategy is None:
            return
        for variable in variables:
            if not isinstance(variable, tf.distribute.DistributedValues):
                raise ValueError(
                    f"{variable.name} was made outside the scope of {self.count} replicas. Build "
                    "model, average, loss scale and trainer in: with replicas.scope():"
                )

    def rows_of_each(self, rows: int) -> int:
        """Returns the number of rows of each replica, B / R.

        Raises:
          ValueError: R does not divide B.
        """
        if rows % self.count:
            fitting = [n for n in (rows - rows % self.count, rows + -rows % self.count) if n]
            raise ValueError(
                f"rows ({rows}) must be a multiple of replicas ({self.count}), because a replica "
                "carries the state of its own rows from window to window. Use rows="
                f"{' or '.join(map(str, fitting))}."
            )
        return rows // self.count

    def rows_here(self, rows: int) -> slice:
        """Returns the slice of `rows` rows that this process's replicas have.

        Raises:
          ValueError: R does not divide B.
        """
        each = self.rows_of_each(rows)
        return slice(self.here[0] * each, (self.here[-1] + 1) * each)

    def put(self, windows: Window) -> Window:
        """Puts `K` stacked windows of this process's rows on its replicas' devices."""
        return windows.map_fields(lambda leaf, axis: self._put(leaf, axis=axis))

    def scatter(self, nest: Nest) -> Nest:
        """Puts each replica's rows of leaves `[B, ...]` on its device, scalars on all devices."""

        def scatter(leaf: Any) -> Any:
            if not len(leaf.shape):
                return self._put(leaf, axis=None)
            here = self.rows_here(int(leaf.shape[0]))
            return self._put(leaf if self.strategy is None else leaf[here], axis=0)

        return tf.nest.map_structure(scatter, nest)

    def local(self, nest: Nest) -> Nest:
        """Returns this process's rows of a nest that `scatter` made, as plain tensors."""
        return tf.nest.map_structure(lambda leaf: _joined(self._parts(leaf)), nest)

    def one(self, nest: Nest) -> Nest:
        """Returns what the first replica of this process has, as plain tensors."""
        return tf.nest.map_structure(lambda leaf: self._parts(leaf)[0], nest)

    def gather(self, nest: Nest) -> Nest:
        """Returns all rows, in their order; all processes must call it at the same time."""
        if len(self.here) == self.count:
            return self.local(nest)
        flat = tf.nest.flatten(nest)
        scattered = [leaf for leaf in flat if len(self._parts(leaf)[0].shape)]
        whole = iter(self.one(self._gather(scattered)))
        gathered = [next(whole) if len(part.shape) else part for part in self.one(flat)]
        return tf.nest.pack_sequence_as(nest, gathered)

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """Sums Python numbers over the processes, which call it together; not gradients."""
        if len(self.here) == self.count:
            return numbers
        total = self.strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.constant(numbers, tf.float64), axis=None
        )
        return tuple(float(each) for each in total.numpy())

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Returns which flags are true in any process; all must call it at the same time."""
        return tuple(total > 0 for total in self.sum(*map(float, flags)))

    def differ(self, number: int) -> bool:
        """Returns whether `number` differs between processes; all must call it at the same time."""
        total, processes = self.sum(float(number), 1.0)
        return self.any(total != number * processes)[0]

    def _gather_scattered(self, scattered: list[Any]) -> list[Any]:
        if len(self.here) > 1:
            return [self.strategy.gather(leaf, axis=0) for leaf in scattered]
        with tf.device(self._devices[self.here[0]]):  # a gather runs on the device of its parts
            return [self.strategy.gather(tf.identity(leaf), axis=0) for leaf in scattered]

    def _parts(self, leaf: Any) -> tuple[tf.Tensor, ...]:
        return (leaf,) if self.strategy is None else self.strategy.experimental_local_results(leaf)

    def _put(self, leaf: Any, axis: int | None) -> Any:
        """Puts this process's rows on its replicas' devices; without an axis, a copy on each."""
        if leaf is None:
            return None
        if self.strategy is None:
            return tf.convert_to_tensor(leaf)
        parts = [leaf] * len(self.here)
        if axis is not None:
            parts = np.split(np.asarray(leaf), len(self.here), axis)
        of = dict(zip(self.here, parts, strict=True))

        def part(replica: int) -> tf.Tensor:
            with tf.device(self._devices[replica]):
                return tf.constant(of[replica])

        if len(self.here) == 1:  # a tensor, as `strategy.run` returns it, and no PerReplica value
            return part(self.here[0])
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: part(int(context.replica_id_in_sync_group))
        )


def _joined(parts: tuple[tf.Tensor, ...]) -> tf.Tensor:
    return tf.concat(parts, axis=0) if len(parts) > 1 and len(parts[0].shape) else parts[0]
