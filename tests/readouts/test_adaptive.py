"""The adaptive softmax is a distribution, and its score and gradients are those of it."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.testing import assert_close

HIDDEN, VOCABULARY, CUTOFFS = 8, 40, (6, 15)


def make(dtype=tf.float32, cutoffs=CUTOFFS, **options):
    readout = tbptt.AdaptiveSoftmax(
        HIDDEN, VOCABULARY, cutoffs=cutoffs, seed=tbptt.make_seed(0), factor=2.0, dtype=dtype,
        **options,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for parameter in readout.trainable_variables:  # biases, too, off zero
        parameter.assign_add(tf.constant(0.3 * rng.normal(size=parameter.shape), dtype))
    return readout


def window(kind="mixed", dtype=tf.float32):
    rng = np.random.default_rng(2)
    low, high = {"mixed": (0, VOCABULARY), "head": (0, 6), "last tail": (15, VOCABULARY)}[kind]
    hidden = tf.constant(rng.normal(size=[35, 2, HIDDEN]), dtype)
    return hidden, tf.constant(rng.integers(low, high, [35, 2]), tf.int32)


def dense(readout, hidden, targets):
    """From the definition, with every tail for every run_state, in NumPy's order of things."""
    edges = [*CUTOFFS, VOCABULARY]
    head = tf.nn.log_softmax(tf.einsum("tbh,vh->tbv", hidden, readout.head.w) + readout.head.b)
    columns = [head[..., : edges[0]]]
    for i, (down, tail) in enumerate(zip(readout.down, readout.tails, strict=True)):
        inner = tf.einsum("tbh,hd,vd->tbv", hidden, down, tail.w) + tail.b
        inside = inner - tf.reduce_logsumexp(inner, axis=-1, keepdims=True)
        columns.append(inside + head[..., edges[0] + i : edges[0] + i + 1])
    onehot = tf.one_hot(targets, VOCABULARY, dtype=hidden.dtype)
    return -tf.reduce_sum(onehot * tf.concat(columns, axis=-1), axis=-1)


def with_gradients(score, readout, jit=False):
    """A program `(hidden, targets) -> loss, gradients`."""

    @tf.function(autograph=False, jit_compile=jit)
    def run(hidden, targets):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            loss = score(hidden, targets)
            total = tf.reduce_sum(loss * tf.reshape(tf.linspace(-1.0, 2.0, 70), [35, 2]))
        sources = [hidden, *readout.trainable_variables]
        zero = tf.UnconnectedGradients.ZERO
        return loss, tape.gradient(total, sources, unconnected_gradients=zero)

    return run


def test_sizes():
    readout = make()
    assert readout.head.w.shape == [6 + 2, 8]
    assert [down.shape.as_list() for down in readout.down] == [[8, 4], [8, 2]]
    assert [tail.w.shape.as_list() for tail in readout.tails] == [[9, 4], [25, 2]]
    assert len(readout.trainable_variables) == 8


def test_log_probabilities_are_normalised(jit):
    hidden, _ = window()
    logits = tf.function(make().logits, jit_compile=jit, autograph=False)(hidden)
    assert logits.shape == [35, 2, VOCABULARY]
    assert_close(tf.reduce_logsumexp(logits, axis=-1), tf.zeros([35, 2]))


@pytest.mark.parametrize("chunk", [4, 100])
def test_score_and_gradients_are_those_of_the_definition(chunk, jit):
    """Also where tails have no member at all, and where one has them all: one program for all."""
    readout = make(chunk=chunk)
    run = with_gradients(readout.loss, readout, jit)
    expect = with_gradients(lambda h, t: dense(readout, h, t), readout)
    for kind in ("mixed", "head", "last tail"):
        hidden, targets = window(kind)
        loss, gradients = run(hidden, targets)
        assert_close(loss, -tf.gather(readout.logits(hidden), targets, batch_dims=2))
        assert_close((loss, gradients), expect(hidden, targets))


def test_float64(jit):
    readout, (hidden, targets) = make(tf.float64), window(dtype=tf.float64)
    loss = tf.function(readout.loss, jit_compile=jit, autograph=False)(hidden, targets)
    assert loss.dtype == tf.float64
    assert_close(loss, dense(readout, hidden, targets))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["mixed", "head", "last tail"])
def test_equals_torch(kind):
    """The same weights in torch.nn.AdaptiveLogSoftmaxWithLoss: loss, all gradients, logits."""
    torch = pytest.importorskip("torch")
    readout, (hidden, targets) = make(), window(kind)
    for tail in readout.tails:
        tail.b.assign(tf.zeros_like(tail.b))  # torch has none in its tails
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(
        HIDDEN, VOCABULARY, list(CUTOFFS), div_value=2.0, head_bias=True
    )
    with torch.no_grad():
        theirs.head.weight.copy_(torch.tensor(readout.head.w.numpy()))
        theirs.head.bias.copy_(torch.tensor(readout.head.b.numpy()))
        for module, down, tail in zip(theirs.tail, readout.down, readout.tails, strict=True):
            module[0].weight.copy_(torch.tensor(down.numpy().T))
            module[1].weight.copy_(torch.tensor(tail.w.numpy()))
    h = torch.tensor(hidden.numpy().reshape(-1, HIDDEN), requires_grad=True)
    t = torch.tensor(targets.numpy().reshape(-1)).long()
    (-(theirs(h, t).output) * torch.linspace(-1.0, 2.0, 70)).sum().backward()

    loss, (d_hidden, *gradients) = with_gradients(readout.loss, readout, jit=True)(hidden, targets)
    assert_close(tf.reshape(loss, [-1]), -theirs(h, t).output.detach().numpy())
    assert_close(tf.reshape(d_hidden, [-1, HIDDEN]), h.grad.numpy())
    assert_close(
        tf.reshape(readout.logits(hidden), [-1, VOCABULARY]), theirs.log_prob(h).detach().numpy()
    )
    found = dict(zip(map(id, readout.trainable_variables), gradients, strict=True))
    gradient = lambda variable: found[id(variable)]  # noqa: E731
    assert_close(gradient(readout.head.w), theirs.head.weight.grad.numpy())
    assert_close(gradient(readout.head.b), theirs.head.bias.grad.numpy())
    for module, down, tail in zip(theirs.tail, readout.down, readout.tails, strict=True):
        for ours, layer in (
            (tf.transpose(gradient(down)), module[0]),
            (gradient(tail.w), module[1]),
        ):
            grad = layer.weight.grad  # None where no target is in this tail
            assert_close(ours, np.zeros(ours.shape, np.float32) if grad is None else grad.numpy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(cutoffs=[]), r"cutoffs \(\[\]\) must be increasing"),
        (dict(cutoffs=[5, 5]), r"cutoffs \(\[5, 5\]\) must be increasing, above 0 and below voc"),
        (dict(cutoffs=[7, 5]), r"cutoffs \(\[7, 5\]\) must be increasing"),
        (dict(cutoffs=[0, 5]), r"cutoffs \(\[0, 5\]\) must be increasing, above 0"),
        (dict(cutoffs=[5, 40]), r"below vocabulary_size \(40\).* Use the ids below which"),
        (dict(factor=0.5), r"factor \(0.5\) must be at least 1"),
        (dict(chunk=-1), r"chunk \(-1\) must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    settings = dict(cutoffs=[5]) | settings
    with pytest.raises(ValueError, match=message):
        tbptt.AdaptiveSoftmax(HIDDEN, VOCABULARY, seed=tbptt.make_seed(0), **settings)
