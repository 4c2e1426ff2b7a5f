"""Loads the compiled kernels and registers them with XLA's foreign function interface."""

import ctypes
import os
import pathlib
import platform
import sys
import threading
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from tbptt.native.build import build
from tbptt.native.errors import Unavailable as Unavailable
from tbptt.native.paths import VARIABLE, requested_path

HANDLERS = (
    "tbptt_unroll_forward",
    "tbptt_unroll_backward",
    "tbptt_product",
    "tbptt_sum_of_squares",
)
PLATFORM = "Host"  # XLA's name for the CPU
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
# Where TensorFlow has the interface: 2.21 by its C name, 2.20 by the C++ name of the same function.
INTERFACES = (
    ("tensorflow_framework", "XLA_FFI_GetApi"),
    ("tensorflow_cc", "_ZN3xla3ffi12GetXlaFfiApiEv"),
)


class Library(NamedTuple):
    """The native kernels as they are loaded in this process.

    Attributes:
      path: the compiled path, as the kernels name it, such as `avx512_bf16`.
      file: the shared library.
      seconds: what compiling it took in this process; 0 if it came from the cache.
    """

    path: str
    file: pathlib.Path
    seconds: float


_lock = threading.Lock()
_result: Library | Unavailable | None = None


def load() -> Library:
    """Compiles, loads and registers the kernels at the first call; returns them at every call.

    The result, good or bad, is kept for this process, and logged once.

    Returns:
      The library, whose handlers `HANDLERS` compiled programs may call on the CPU.
    Raises:
      Unavailable: there are no native kernels here; `reason` says why.
    """
    global _result
    with _lock:
        if _result is None:
            try:
                _result = _load()
                _log_success(_result)
            except Unavailable as error:
                _result = error
                _log_failure(error)
        if isinstance(_result, Unavailable):
            raise Unavailable(_result.reason)
        return _result


def available() -> bool:
    """Returns whether the native kernels can be used; compiles and loads them to find out."""
    return why_not() == ""


def why_not() -> str:
    """Returns why the native kernels cannot be used, or an empty text if they can."""
    try:
        load()
    except Unavailable as error:
        return error.reason
    return ""


def _load() -> Library:
    """Returns the library after its handlers are registered; raises Unavailable."""
    if sys.platform not in ("linux", "darwin") or platform.machine().lower() not in PROCESSORS:
        raise Unavailable(
            f"they are written for Linux and macOS on x86-64 and Arm processors, not for "
            f"{platform.system()} on {platform.machine()}"
        )
    requested = requested_path()
    if requested == "off":
        raise Unavailable(f"{VARIABLE}=off")
    interface = find_interface()  # before seconds are spent on compiling
    try:
        built = build(requested)
    except OSError as error:
        raise Unavailable(f"the source cannot be read: {error}") from None
    try:
        library = ctypes.CDLL(str(built.file))
    except OSError as error:
        raise Unavailable(f"the library cannot be loaded: {error}") from None
    check = _function(library, "tbptt_check_interface", ctypes.c_void_p)
    _raise_if(check(interface))
    register = _function(
        library, "tbptt_register",
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p,
    )  # fmt: skip
    for name in HANDLERS:
        handler = ctypes.cast(_function(library, name), ctypes.c_void_p)
        _raise_if(register(interface, name.encode(), PLATFORM.encode(), handler))
    return Library(_function(library, "tbptt_path")().decode(), built.file, built.seconds)


def find_interface() -> int:
    """Returns the address of XLA's foreign function interface inside TensorFlow.

    Raises:
      Unavailable: this TensorFlow has none where 2.20 and 2.21 have it.
    """
    folder = pathlib.Path(tf.sysconfig.get_lib())
    for library, symbol in INTERFACES:
        name = f"lib{library}.2.dylib" if sys.platform == "darwin" else f"lib{library}.so.2"
        try:  # only a library that TensorFlow itself has loaded
            loaded = ctypes.CDLL(str(folder / name), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            get_interface = getattr(loaded, symbol)
        except (OSError, AttributeError):
            continue
        get_interface.restype = ctypes.c_void_p
        address = get_interface()
        if address:
            return address
    raise Unavailable(
        f"TensorFlow {tf.version.VERSION} does not offer XLA's foreign function interface as "
        "TensorFlow 2.20 and 2.21 do"
    )


def _function(library: ctypes.CDLL, name: str, *arguments: type) -> "ctypes._FuncPointer":
    """Returns a function of the library that takes `arguments` and returns a text or NULL."""
    try:
        function = getattr(library, name)
    except AttributeError:
        raise Unavailable(f"the library has no function {name}") from None
    function.restype, function.argtypes = ctypes.c_char_p, arguments
    return function


def _raise_if(sentence: bytes | None) -> None:
    """Raises Unavailable with the sentence, if a function of the library returned one."""
    if sentence is not None:
        raise Unavailable(sentence.decode("utf-8", "replace").rstrip("."))


def _log_success(library: Library) -> None:
    compiled = f", compiled in {library.seconds:.1f} s" if library.seconds else ""
    logging.info("The native kernels are in use (%s%s).", library.path, compiled)


def _log_failure(error: Unavailable) -> None:
    if os.environ.get(VARIABLE) != "off":
        logging.warning(
            "Kernels of the processor are not available: %s. Layers run on XLA's own products.",
            error.reason,
        )


def _renew_lock() -> None:
    """Gives a forked process a lock of its own: another thread may have held the old one."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)
