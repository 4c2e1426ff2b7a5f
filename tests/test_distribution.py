"""What the environment calls for, and what it does not say."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import distribution
from tbptt.distribution import Replicas, open_replicas
from tbptt.testing import assert_same_bits

ENVIRONMENT = ("TF_CONFIG", "TPU_NAME", "SLURM_STEP_NUM_TASKS")


def workers(*addresses):
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "one"),
        ({"TF_CONFIG": workers("a:1")}, "one"),
        ({"TF_CONFIG": workers("a:1", "b:1")}, "multi_worker"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, "one"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "multi_worker"),
        ({"TPU_NAME": "local"}, "tpu"),
    ],
)
def test_auto_is_what_the_environment_calls_for(monkeypatch, environment, expected):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    opened = []
    monkeypatch.setattr(distribution, "_open", lambda name, _: opened.append(name))
    open_replicas()
    assert (opened or ["one"]) == [expected]


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": 3}', '{"cluster": {"worker": 3}}'])
def test_a_tf_config_that_cannot_be_read_is_told(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"TF_CONFIG \(.*\) must be as \{.cluster"):
        open_replicas()


def test_what_is_missing_is_told(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="needs TF_CONFIG, which names the workers, or Slurm"):
        open_replicas("multi_worker")
    with pytest.raises(ValueError, match=r"strategy \('two'\) must be one of"):
        open_replicas("two")


def test_a_resolver_names_the_workers(monkeypatch):
    """As those of Kubernetes and GCE do, which cannot know which of them this process is."""
    spec = tf.train.ClusterSpec({"worker": ["a:1", "b:1"]})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec)
    resolver.task_type = resolver.task_id = None
    with pytest.raises(ValueError, match=r"says task_type=None, .* must say which worker this pro"):
        open_replicas("multi_worker", resolver=resolver)
    with pytest.raises(ValueError, match="is for strategy='multi_worker', not for 'mirrored'"):
        open_replicas("mirrored", resolver=resolver)
    resolver.task_type, resolver.task_id = "worker", 1
    handed = []

    def make(cluster_resolver):
        handed.append(cluster_resolver)

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", make)
    monkeypatch.setattr(distribution, "_open", distribution._open.__wrapped__)  # keeps nothing
    open_replicas("multi_worker", resolver=resolver)
    assert handed == [resolver]


def test_one_replica_leaves_everything_as_it_is():
    replicas = Replicas()
    assert (replicas.count, replicas.here, replicas.is_chief) == (1, (0,), True)
    with replicas.scope():
        assert not isinstance(tf.Variable(1.0), tf.distribute.DistributedValues)
    state = {"a": tf.ones([3, 2]), "b": tf.constant(2)}
    for method in (replicas.scatter, replicas.local, replicas.gather, replicas.one):
        assert_same_bits(method(state), state)
    window = tbptt.Window(np.zeros([2, 5, 3]), np.ones([2, 5, 3]))
    put = replicas.put(window)
    assert_same_bits([put.inputs, put.targets], [window.inputs, window.targets])
    assert put.controls.reset is None
    assert replicas.rows_of_each(7) == 7
    assert replicas.any(True, False) == (True, False)
    assert replicas.sum(1.5) == (1.5,)
    assert not replicas.differ(3)
