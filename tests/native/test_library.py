"""Loading once, registering with XLA, and one sentence wherever that is not possible."""

import ctypes
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from tbptt.native import build, library
from tests.native.conftest import in_forks, on_x86

# A handler that XLA really calls; it stands where kernels.cc has its own.
HANDLER = """
#include <cstring>
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
static ffi::Error Scale(ffi::Buffer<ffi::F32> a, ffi::ResultBuffer<ffi::F32> r, float factor) {
  if (a.element_count() == 3) return ffi::Error::InvalidArgument("three are refused");
  for (size_t i = 0; i < a.element_count(); i++) r->typed_data()[i] = factor * a.typed_data()[i];
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(tbptt_test_scale, Scale,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>().Attr<float>("factor"));
extern "C" const char* tbptt_check_interface(const XLA_FFI_Api* api) {
  return api->api_version.major_version == XLA_FFI_API_MAJOR ? nullptr : "another interface";
}
extern "C" const char* tbptt_register(const XLA_FFI_Api* api, const char* name,
                                      const char* platform, XLA_FFI_Handler* handler) {
  XLA_FFI_Handler_Register_Args args{};
  args.struct_size = XLA_FFI_Handler_Register_Args_STRUCT_SIZE;
  args.name = {name, strlen(name)};
  args.platform = {platform, strlen(platform)};
  args.bundle.execute = handler;
  return api->XLA_FFI_Handler_Register(&args) ? "refused" : nullptr;
}
extern "C" const char* tbptt_self_check() { return nullptr; }
extern "C" const char* tbptt_path() { return "test"; }
"""
MODULE = """module @m { func.func public @main(%a: tensor<SIZExf32>) -> (tensor<SIZExf32>) {
  %r = stablehlo.custom_call @tbptt_test_scale(%a)
    {api_version = 4 : i32, backend_config = {factor = 3.0 : f32}}
    : (tensor<SIZExf32>) -> (tensor<SIZExf32>)
  return %r : tensor<SIZExf32> } }"""


def sentences(caplog) -> list[str]:
    """Returns the log's lines about kernels that are not available."""
    return [line for line in caplog.messages if "are not available" in line]


def test_library_is_loaded_once_and_logged_once(stand_in, compiled, caplog):
    assert library.available()
    assert library.why_not() == ""
    loaded = library.load()
    assert loaded is library.load()
    assert loaded.file.exists()
    assert loaded.seconds > 0
    assert len(compiled()) == 1
    assert [line.split(" (")[0] for line in caplog.messages] == [
        "Compiling the native kernels, once for this machine",
        "The native kernels are in use",
    ]


def test_library_from_the_cache_is_logged_in_one_line(stand_in, caplog, monkeypatch):
    library.load()
    caplog.clear()
    monkeypatch.setattr(library, "_result", None)
    loaded = library.load()
    assert loaded.seconds == 0
    assert caplog.messages == [f"The native kernels are in use ({loaded.path})."]


def test_handler_is_called_from_a_compiled_program_and_its_errors_are_texts(
    monkeypatch, tmp_path, stand_in
):
    stand_in().write_text(HANDLER)
    monkeypatch.setattr(library, "HANDLERS", ("tbptt_test_scale",))
    library.load()

    @tf.function(jit_compile=True, autograph=False)
    def scale(x):
        size = x.shape[0]
        (result,) = gen_xla_ops.xla_call_module(
            [x], version=5, module=MODULE.replace("SIZE", str(size)),
            Sout=[[size]], Tout=[tf.float32], platforms=["CPU"],
        )  # fmt: skip
        return result

    with tf.device("CPU:0"):
        assert scale(tf.range(5.0)).numpy().tolist() == [0, 3, 6, 9, 12]
        with pytest.raises(tf.errors.InvalidArgumentError, match="three are refused"):
            scale(tf.range(3.0))


def test_threads_at_once_load_one_library(stand_in, compiled):
    found = []
    threads = [threading.Thread(target=lambda: found.append(library.load())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    assert len({id(loaded) for loaded in found}) == 1
    assert len(compiled()) == 1


def test_off_is_silent_and_compiles_nothing(stand_in, compiled, caplog, monkeypatch):
    monkeypatch.setenv("TBPTT_NATIVE", "off")
    assert not library.available()
    assert library.why_not() == "TBPTT_NATIVE=off"
    assert caplog.messages == compiled() == []


def test_unknown_path_names_the_choices(caplog, monkeypatch):
    monkeypatch.setenv("TBPTT_NATIVE", "sse")
    choices = "best, avx512_bf16, avx512, avx2, portable, off"
    assert library.why_not() == f"TBPTT_NATIVE ('sse') must be one of {choices}"
    assert len(sentences(caplog)) == 1


@pytest.mark.skipif(not on_x86(), reason="the paths are those of x86-64")
@pytest.mark.parametrize("name", ["avx2", "portable"])
def test_path_is_lowered_by_the_environment(stand_in, monkeypatch, name):
    monkeypatch.setenv("TBPTT_NATIVE", name)
    if name in library.why_not():
        pytest.skip("this processor has no AVX2")
    assert library.load().path == name


def test_failure_is_kept_and_logged_in_one_line(caplog, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    reason = library.why_not()
    monkeypatch.delenv("CXX")
    for _ in range(2):
        with pytest.raises(library.Unavailable, match="CXX=false does not work") as caught:
            library.load()
        assert caught.value.reason == reason
    assert caplog.messages == [
        f"Kernels of the processor are not available: {reason}. Layers run on XLA's own products."
    ]


def test_source_that_is_missing_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "SOURCE", tmp_path / "none.cc")
    assert library.why_not().startswith("the source cannot be read:")


INTERFACES = {
    "other names": (("tensorflow_framework", "XLA_FFI_OtherApi"), ("tensorflow_cc", "OtherApi")),
    "other libraries": (("tensorflow_other", "XLA_FFI_GetApi"),),
    "a function that has none": (("tensorflow_framework", "TF_NoInterface"),),
}


@pytest.mark.parametrize("kind", INTERFACES)
def test_missing_interface_is_unavailable_before_compiling(
    stand_in, compiled, monkeypatch, caplog, kind
):
    if kind == "a function that has none":
        nothing = type("Loaded", (), {"TF_NoInterface": staticmethod(lambda: None)})
        nothing.TF_NoInterface = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: None)
        monkeypatch.setattr(library.ctypes, "CDLL", lambda *_, **__: nothing)
    monkeypatch.setattr(library, "INTERFACES", INTERFACES[kind])
    assert library.why_not() == (
        f"TensorFlow {tf.version.VERSION} does not offer XLA's foreign function interface as "
        "TensorFlow 2.20 and 2.21 do"
    )
    assert compiled() == []
    assert len(sentences(caplog)) == 1


def test_wrong_version_of_the_interface_is_unavailable(stand_in, caplog):
    stand_in(interface='"the interface is version 9.9."')
    assert library.why_not() == "the interface is version 9.9"
    assert len(sentences(caplog)) == 1


def test_handler_that_xla_refuses_is_unavailable(stand_in):
    stand_in(register="name[6] == 'p' ? \"XLA refuses the product\" : nullptr")
    assert library.why_not() == "XLA refuses the product"


def test_library_without_a_handler_is_unavailable(stand_in, monkeypatch):
    monkeypatch.setattr(library, "HANDLERS", ("tbptt_unroll_forward", "tbptt_more"))
    assert library.why_not() == "the library has no function tbptt_more"


def test_handlers_are_registered_for_the_cpu(stand_in):
    stand_in(register="(name[0] == 't' && platform[0] == 'H') ? nullptr : \"wrong arguments\"")
    assert library.available()


@pytest.mark.parametrize("system", ["win32", "freebsd14"])
def test_other_systems_are_unavailable(monkeypatch, system):
    monkeypatch.setattr(library.sys, "platform", system)
    assert "for Linux and macOS on x86-64 and Arm" in library.why_not()


def test_other_processors_are_unavailable(monkeypatch):
    monkeypatch.setattr(library.platform, "machine", lambda: "riscv64")
    assert "riscv64" in library.why_not()


def test_fork_after_use_keeps_the_library(stand_in, compiled):
    loaded = library.load()
    check = ctypes.CDLL(str(loaded.file)).tbptt_self_check
    assert in_forks(2, lambda: (library.load() is loaded, check())) == ["(True, 0)"] * 2
    assert len(compiled()) == 1


def test_fork_while_another_thread_loads_does_not_wait_for_it(stand_in):
    with library._lock:  # as that thread does
        assert in_forks(1, library.available) == ["True"]


def spawned(source: str, results) -> None:
    build.SOURCE = pathlib.Path(source)
    results.put((library.load().file, library.load().seconds))


def test_spawned_process_takes_the_library_from_the_cache(stand_in, compiled):
    loaded = library.load()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=spawned, args=(str(build.SOURCE), results))
    process.start()
    assert results.get(timeout=60) == (loaded.file, 0)
    process.join()
    assert process.exitcode == 0
    assert len(compiled()) == 1


def test_importing_tbptt_loads_and_compiles_nothing(tmp_path):
    program = (
        "import tbptt, sys\nlibrary = sys.modules.get('tbptt.native.library')\n"
        "assert library is None or library._result is None\n"
    )
    environment = os.environ | {"CXX": "no-such-compiler", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert not (tmp_path / "cache").exists()
