"""Names the variables of a module by the path of attributes that leads to them."""

import tensorflow as tf


def named_parameters(module: tf.Module) -> dict[str, tf.Variable]:
    """Returns a module's parameters by their path, as `core.cores.0.w_x`."""
    return {name: v for name, v in named_variables(module).items() if v.trainable}


def named_variables(module: tf.Module) -> dict[str, tf.Variable]:
    """Returns all variables of a module by their path, parameters and others."""
    flattened = module._flatten(  # tf.Module's own walk; it offers paths under this name only
        predicate=lambda leaf: isinstance(leaf, tf.Variable), with_path=True
    )
    return {".".join(str(step) for step in path): variable for path, variable in flattened}
