"""One script a study."""

import signal
import sys

# `python -m experiments.NAME` imports for some seconds. An interrupt then ends the process without
# the traceback of an import; `launch` puts Python's own handler back.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import tbptt  # noqa: F401  (before TensorFlow, which is then quiet while it is imported)
