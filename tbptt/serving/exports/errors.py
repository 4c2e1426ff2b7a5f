"""`ExportError`: an export that cannot be written, or is not what was written."""


class ExportError(ValueError):
    """Raised when a model cannot be exported as asked, or an export is damaged or of another kind.

    The message says what is wrong, and what to do.
    """
