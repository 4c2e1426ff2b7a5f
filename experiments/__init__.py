"""Example experiments, one script a study; each docstring gives the command and the result."""

import signal
import sys

# `python -m experiments.NAME` spends some seconds on imports. An interrupt then ends the process
# without a traceback; `launch` restores Python's own handler.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import tbptt  # noqa: F401  (before TensorFlow, which is then quiet while it is imported)
