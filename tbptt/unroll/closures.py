"""Refuses custom-gradient functions that read outside variables, which would get no gradient."""

from typing import Any


def check_closes_over_nothing(name: str, traced: Any) -> None:
    """Raises ValueError if a traced function reads a variable or a floating tensor from outside.

    A custom gradient goes to the arguments only, so a captured variable or tensor would silently
    get none.

    Args:
      name: the function's name, as the subject of the message.
      traced: a `ConcreteFunction`. Integers and bools may come from outside: they get no gradient.

    Example:
      >>> rate = tf.Variable(0.5, name="rate")
      >>> traced = tf.function(lambda x: rate * x).get_concrete_function(tf.TensorSpec([]))
      >>> check_closes_over_nothing("A step", traced)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: A step reads rate:0 from outside, which would get no gradient. Hand it ...
    """
    found = [variable.name for variable in traced.graph.trainable_variables]
    found += [
        f"a {tensor.dtype.name} tensor of shape {list(tensor.shape)}"
        for tensor in traced.captured_inputs
        if tensor.dtype.is_floating
    ]
    if found:
        raise ValueError(
            f"{name} reads {' and '.join(found)} from outside, which would get no gradient. Hand "
            "it over as an argument, read once before the loop, or use backend='scan', which "
            "TensorFlow differentiates."
        )
