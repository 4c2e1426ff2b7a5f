"""Running a cell over the T steps of a window."""

from tbptt.unroll.api import BACKENDS as BACKENDS
from tbptt.unroll.api import KEEP as KEEP
from tbptt.unroll.api import Cell as Cell
from tbptt.unroll.api import check_backend as check_backend
from tbptt.unroll.api import check_window as check_window
from tbptt.unroll.api import unroll as unroll
