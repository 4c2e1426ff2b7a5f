"""Exports: a trained model, with the state going in and out, for other programs.

    export = write_export(run.model, "exported", "saved_model", preprocessing=run.preprocessing)
    export = open_export("exported")
    outputs, state = export.step(inputs, export.initial_state(rows))

Every export is a folder with a `description.json`. It is loaded again and compared with the model
when it is written.
"""

from tbptt.serving.exports.errors import ExportError as ExportError
from tbptt.serving.exports.model import ExportedModel as ExportedModel
from tbptt.serving.exports.opened import KINDS as KINDS
from tbptt.serving.exports.opened import Export as Export
from tbptt.serving.exports.opened import open_export as open_export
from tbptt.serving.exports.write import write_export as write_export
