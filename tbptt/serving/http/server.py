"""`Server`: binds an address and runs the application on uvicorn until it is told to stop."""

import logging
import pathlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import uvicorn

from tbptt.serving.http.app import LOCAL, App
from tbptt.serving.http.connections import connection_class
from tbptt.serving.http.limits import DEFAULTS, Limits
from tbptt.serving.http.service import Service
from tbptt.types import Model

KEEP_ALIVE = 75  # seconds that an idle connection stays open
AFTER_GRACE = 30.0  # seconds for answers that are under way when generation has ended
BACKLOG = 2048


class ServerError(ValueError):
    """Raised when a server cannot be started as it was asked to; the message says why."""


class Server:
    """An HTTP server of a model.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> server = Server(model, port=0, jit_compile=False)
      >>> server.start()
      >>> server.address.startswith("http://127.0.0.1:")
      True
      >>> server.stop()
    """

    def __init__(
        self,
        model: Model,
        preprocessing: Mapping[str, Any] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        allowed_hosts: Sequence[str] = (),
        limits: Limits = DEFAULTS,
        batch_rows: int = 32,
        sessions_folder: pathlib.Path | None = None,
        jit_compile: bool = True,
    ) -> None:
        """Binds the address, compiles the model, and gives back sessions that were kept.

        Args:
          model, preprocessing, limits, batch_rows, sessions_folder, jit_compile: see `Service`.
          host: the address to listen at; any but this machine's own needs a token.
          port: 0: any that is free.
          token: what clients must send. None: nothing.
          allowed_hosts: further names of this server, see `App`.

        Raises:
          ServerError: the address cannot be had, or a token is missing.
          KeptError: the sessions that were kept cannot be given back.
        """
        local = host in ("127.0.0.1", "localhost", "::1")
        if not local and not token:
            raise ServerError(
                f"host ({host!r}) lets other machines in, so a token is needed; give one, or use "
                "127.0.0.1."
            )
        if token is not None and (
            len(token) < 16 or not token.isascii() or not token.isprintable()
        ):
            raise ServerError("The token must be 16 or more printable ASCII characters.")
        self._socket = _bind(host, port)
        try:
            self.service = Service(
                model,
                preprocessing,
                limits=limits,
                batch_rows=batch_rows,
                sessions_folder=sessions_folder,
                jit_compile=jit_compile,
            )
            self.restored = self.service.prepare()
        except BaseException:
            self._socket.close()
            raise
        hosts = [*LOCAL, *allowed_hosts] if local else list(allowed_hosts) or None
        self._uvicorn = _Uvicorn(self.service, App(self.service, token=token, hosts=hosts))
        self._thread: threading.Thread | None = None
        self._host = host

    @property
    def address(self) -> str:
        """The address to open in a browser, as `http://127.0.0.1:8000`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, or until `stop` is called from another thread."""
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def start(self) -> None:
        """Serves in another thread, and returns when requests are taken."""
        self._thread = threading.Thread(target=self.run, name="server", daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            if not self._thread.is_alive():
                raise ServerError("The server has ended while it started.")
            time.sleep(0.005)

    def stop(self) -> None:
        """Finishes running requests, keeps sessions, and ends."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which ends generation some seconds after it was told to stop."""

    def __init__(self, service: Service, app: App) -> None:
        limits = service.limits
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            http=connection_class(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(limits.grace_seconds + AFTER_GRACE),
        )
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests, and lets those that run finish."""
        import asyncio

        service = self._service
        service.stopping = True
        asyncio.get_running_loop().call_later(
            service.limits.grace_seconds, lambda: setattr(service, "hurry", True)
        )
        await super().shutdown(sockets)


def _bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address.

    Raises:
      ServerError: it is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(
            f"The address {host}:{port} cannot be had ({reason}). Choose another port, or 0 for "
            "any that is free."
        ) from None
    return bound
