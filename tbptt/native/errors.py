"""`Unavailable`: why the native kernels cannot be used in this process."""


class Unavailable(Exception):
    """Says why the native kernels cannot be used: a clause without a full stop at its end."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
