"""Tests a cell, model, readout, stream or trainer of your own: resets, truncation, rows, resume.

    from tbptt import testing

    testing.check_core(core, inputs)        # laws 1 to 4: continuation, truncation, resets, rows
    testing.check_same_core(core, other, inputs)  # law 5: another backend of it, or a reference
    testing.check_model(model, window)      # laws 1, 3, 4, 5, 9 of its losses
    testing.check_readout(readout, hidden, targets)
    testing.check_streaming(model, inputs)  # law 10
    testing.check_export(model, inputs, "litert")  # law 10 of an export
    testing.check_stream(stream)            # law 11, and that it is a function of the cursor
    testing.check_training(make_trainer, stream)  # laws 6, 7, 9, 12
    testing.check_replicas(make_trainer, stream)  # law 8

Each check raises `LawError`, an `AssertionError` whose message names the law and shows the
difference. They need no test framework. Every check has parts of its own (`check_reset`, ...), to
be called alone. docs/design.md has the table of the laws; the library's own tests call the same
functions.
"""

from tbptt.testing.compare import LAWS as LAWS
from tbptt.testing.compare import TOLERANCES as TOLERANCES
from tbptt.testing.compare import LawError as LawError
from tbptt.testing.compare import assert_close as assert_close
from tbptt.testing.compare import assert_same_bits as assert_same_bits
from tbptt.testing.cores import check_continuation as check_continuation
from tbptt.testing.cores import check_core as check_core
from tbptt.testing.cores import check_reset as check_reset
from tbptt.testing.cores import check_rows as check_rows
from tbptt.testing.cores import check_same_core as check_same_core
from tbptt.testing.cores import check_truncation as check_truncation
from tbptt.testing.cores import outputs_and_gradients as outputs_and_gradients
from tbptt.testing.cores import random_state as random_state
from tbptt.testing.models import check_model as check_model
from tbptt.testing.readouts import check_readout as check_readout
from tbptt.testing.serving import check_export as check_export
from tbptt.testing.serving import check_streaming as check_streaming
from tbptt.testing.streams import check_cursor as check_cursor
from tbptt.testing.streams import check_offsets as check_offsets
from tbptt.testing.streams import check_stream as check_stream
from tbptt.testing.streams import check_stream_rows as check_stream_rows
from tbptt.testing.training import check_replicas as check_replicas
from tbptt.testing.training import check_training as check_training
