"""Saves and resumes runs: `Checkpoints.save(snapshot(...))`, `resume(...)`; parameter files.

A loop of one's own calls `snapshot.resume` when it starts, and between two calls
`checkpoints.save(snapshot.snapshot(trainer, run_state))`, where `store.Checkpoints` is the folder;
`save.Save` is a callback that does it. For parameters alone: `parameters` and `from_torch`.
"""

from tbptt.checkpoint.from_torch import load_torch as load_torch
from tbptt.checkpoint.parameters import assign_parameters as assign_parameters
from tbptt.checkpoint.parameters import load_parameters as load_parameters
from tbptt.checkpoint.parameters import save_parameters as save_parameters
from tbptt.checkpoint.parameters import write_parameters as write_parameters
from tbptt.checkpoint.store import Checkpoint as Checkpoint
from tbptt.checkpoint.store import CheckpointError as CheckpointError
from tbptt.checkpoint.store import Checkpoints as Checkpoints
from tbptt.checkpoint.store import read_checkpoint as read_checkpoint
from tbptt.checkpoint.store import write_checkpoint as write_checkpoint
