"""One verb a file."""

import experiments  # noqa: F401  (keeps TensorFlow quiet while it is imported)
