"""TensorBoard: tags, the writer of a run's event file, and callbacks that write metrics."""
