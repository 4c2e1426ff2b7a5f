"""All that TensorBoard shows: its tags, the writer of a run's event file, and actions."""
