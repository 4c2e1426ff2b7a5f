"""Finding a compiler, compiling, the cache and what is refused in it, the self check, the paths."""

import os
import pathlib
import stat

import pytest

from tbptt.native import build, cache, compiler, paths
from tbptt.native.errors import Unavailable
from tests.native.conftest import in_forks, on_x86

x86 = pytest.mark.skipif(not on_x86(), reason="the paths are those of x86-64")


def folder() -> pathlib.Path:
    return pathlib.Path(os.environ["TBPTT_CACHE"])


def files(ending: str) -> list[pathlib.Path]:
    return sorted(folder().glob(f"*{ending}"))


def define(monkeypatch, *macros: str) -> None:
    """Lets the compiler say that the processor has these instructions."""
    text = "".join(f"#define {macro} 1\n" for macro in macros)
    monkeypatch.setattr(paths, "predefined_macros", lambda compiler, flags: text)


def test_second_build_comes_from_the_cache(stand_in, compiled):
    first, second = build.build("best"), build.build("best")
    assert first.file == second.file
    assert (first.seconds > 0, second.seconds) == (True, 0)
    assert len(compiled()) == 1
    assert first.file.parent == folder()
    assert sorted(path.name for path in folder().iterdir()) == sorted(
        ["lock", first.file.name, first.file.with_suffix(".sha256").name]
    )


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_nobody_else_can_write_folder_or_files_whatever_the_umask(stand_in, mask):
    before = os.umask(mask)
    try:
        build.build("best")
    finally:
        os.umask(before)
    for path in (folder(), *folder().iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert build.build("best").seconds == 0


def test_name_depends_on_source_flags_compiler_and_processor():
    path = paths.Path("best", ("-march=native",), "#define __AVX2__ 1")
    gcc = compiler.Compiler(("g++",), "g++ 12.2.0")
    keys = {
        build._key(b"a", path, gcc),
        build._key(b"b", path, gcc),
        build._key(b"a", path._replace(flags=()), gcc),
        build._key(b"a", path._replace(processor=""), gcc),
        build._key(b"a", path, gcc._replace(version="g++ 13.1.0")),
    }
    assert len(keys) == 5
    assert build._key(b"a", path._replace(name="avx512"), gcc) in keys  # the same flags


def test_compiler_that_fails_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(Unavailable, match=r"^the compiler CXX=false does not work: .*status 1$"):
        build.build("best")


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [("no-such-compiler -x", "was not found"), ("'g++", "is no command line")],
)
def test_compiler_that_is_not_there_is_named(monkeypatch, chosen, reason):
    monkeypatch.setenv("CXX", chosen)
    with pytest.raises(Unavailable, match=reason):
        build.build("best")


def test_no_compiler_at_all_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler was found .*: install one, or set"):
        build.build("best")


def test_compiler_may_have_arguments(stand_in, compiled, monkeypatch):
    monkeypatch.setenv("CXX", os.environ["CXX"] + " -DMORE=1")
    build.build("best")
    assert "-DMORE=1" in compiled()[0]


def test_compiler_that_hangs_is_ended_with_its_children(tmp_path):
    script = tmp_path / "hangs"
    script.write_text("#!/bin/sh\nsleep 60 & sleep 60\n")
    script.chmod(0o700)
    with pytest.raises(compiler.subprocess.TimeoutExpired):
        compiler.run_command([str(script)], 0.2)


def test_source_that_does_not_compile_is_told_in_short(stand_in):
    build.SOURCE.write_text("int f() { return nonsense; }\n" * 50)
    with pytest.raises(Unavailable, match=r"error: .*nonsense") as caught:
        build.build("portable")
    assert len(caught.value.reason) < 400
    assert files(".so") == files(".failed") == []


def test_missing_header_of_tensorflow_is_told(stand_in, monkeypatch):
    monkeypatch.setattr(compiler, "HEADER", "xla/no_such_header.h")
    with pytest.raises(Unavailable, match=r"has no header xla/no_such_header\.h"):
        build.build("best")


def break_content(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


BROKEN = {
    "one bit": break_content,
    "cut short": lambda file: os.truncate(file, 1000),
    "empty": lambda file: os.truncate(file, 0),
    "no digest": lambda file: file.with_suffix(".sha256").unlink(),
    "binary digest": lambda file: file.with_suffix(".sha256").write_bytes(b"\xff\xfe"),
    "writable by others": lambda file: file.chmod(0o722),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_or_foreign_library_is_compiled_anew(stand_in, compiled, caplog, kind):
    file = build.build("best").file
    content = file.read_bytes()
    BROKEN[kind](file)
    assert build.build("best").seconds > 0
    assert len(compiled()) == 2
    assert file.read_bytes() == content
    assert len([line for line in caplog.messages if "is refused" in line]) == 1
    assert build.build("best").seconds == 0


def test_library_of_another_user_is_refused(stand_in, monkeypatch, caplog):
    file = build.build("best").file
    given = pathlib.Path.stat

    def other_user(path, **options):
        status = given(path, **options)
        if path != file:
            return status
        return os.stat_result((*status[:4], 12345, *status[5:10]))

    monkeypatch.setattr(pathlib.Path, "stat", other_user)
    assert build.build("best").seconds > 0
    assert "belongs to another user (12345)" in caplog.text


def test_folder_that_others_can_write_is_refused(stand_in, caplog):
    folder().mkdir()
    folder().chmod(0o777)
    built = build.build("best")
    assert built.file.parent != folder()
    assert f"chmod go-w {folder()}" in caplog.text
    assert list(folder().iterdir()) == []


@pytest.mark.parametrize("kind", ["a file", "below a file", "no home", "read-only"])
def test_unusable_cache_leads_to_a_temporary_folder_and_one_line(
    stand_in, monkeypatch, tmp_path, caplog, kind
):
    if kind == "no home":
        monkeypatch.delenv("TBPTT_CACHE")
        monkeypatch.setattr(pathlib.Path, "home", no_home)
    elif kind == "read-only":  # root may write all the same
        monkeypatch.setattr(cache.tempfile, "mkstemp", read_only(folder()))
    else:
        (tmp_path / "cache").write_text("")
        if kind == "below a file":
            monkeypatch.setenv("TBPTT_CACHE", str(tmp_path / "cache" / "tbptt"))
    built = build.build("best")
    assert built.file.exists()
    assert tmp_path not in built.file.parents
    lines = [line for line in caplog.messages if "for this process alone" in line]
    assert len(lines) == 1
    assert "Set TBPTT_CACHE" in lines[0]


def no_home():
    raise RuntimeError("Could not determine home directory.")


def read_only(folder):
    make = cache.tempfile.mkstemp

    def refuse(*, dir, **options):
        if dir == folder:
            raise PermissionError(13, "Permission denied", str(dir))
        return make(dir=dir, **options)

    return refuse


def test_library_in_a_read_only_cache_is_used(stand_in, monkeypatch):
    first = build.build("best")
    monkeypatch.setattr(cache, "prepare_folder", no_home)
    monkeypatch.setattr(cache, "locked", no_home)
    assert build.build("best") == (first.file, 0)


def test_temporary_folder_goes_with_its_process_and_not_with_a_fork(monkeypatch):
    at_exit = []
    monkeypatch.setattr(cache.atexit, "register", lambda *call: at_exit.append(call))
    made = cache.temporary_folder()
    ((remove, *arguments),) = at_exit
    in_forks(1, lambda: remove(*arguments))
    assert made.exists()
    remove(*arguments)
    assert not made.exists()


@pytest.mark.parametrize("kind", ["locks", "no locks"])
def test_several_processes_at_once_get_one_library(stand_in, compiled, monkeypatch, kind):
    if kind == "no locks":
        monkeypatch.setattr("fcntl.flock", no_locks)
    found = in_forks(3, lambda: build.build("portable").file)
    assert found == [str(build.build("portable").file)] * 3
    assert build.build("portable").seconds == 0
    assert len(compiled()) == 1 if kind == "locks" else len(compiled()) <= 3
    assert [path.name for path in folder().iterdir() if ".new" in path.name] == []


def no_locks(handle, operation):
    raise OSError(95, "Operation not supported")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TBPTT_CACHE", "~/mine")
    assert cache.cache_folder() == pathlib.Path.home() / "mine"
    monkeypatch.delenv("TBPTT_CACHE")
    assert cache.cache_folder() == pathlib.Path.home() / ".cache" / "tbptt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "tbptt"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == pathlib.Path.home() / ".cache" / "tbptt"


CHECKS = {
    "sentence": ('return "the product is wrong"', "the product is wrong"),
    "illegal instruction": ("__builtin_trap()", "the self check ended by signal"),
}


@x86
@pytest.mark.parametrize("kind", CHECKS)
def test_path_that_fails_its_self_check_gives_way_to_the_next(stand_in, compiled, caplog, kind):
    code, reason = CHECKS[kind]
    stand_in(self_check=f"\n#ifdef __AVX2__\n{code};\n#endif\n")
    file = build.build("best").file  # portable: all others fail
    tried = len(compiled())
    assert tried > 1
    assert files(".so") == [file]
    assert len(files(".failed")) == tried - 1
    assert f"the path best fails: {reason}" in caplog.text
    assert "Trying the path portable instead" in caplog.text
    assert build.build("best") == (file, 0)  # the failures are remembered
    assert len(compiled()) == tried
    with pytest.raises(Unavailable, match=f"the path avx2 fails: {reason}.* remove .*failed"):
        build.build("avx2")


def test_no_path_that_works_is_unavailable_with_the_first_reason(stand_in):
    stand_in(self_check='return "the product is wrong"')
    with pytest.raises(Unavailable, match="the path best fails: the product is wrong"):
        build.build("best")


@pytest.mark.parametrize("kind", ["hangs", "is killed"])
def test_self_check_that_is_ended_from_outside_is_not_remembered(stand_in, monkeypatch, kind):
    monkeypatch.setattr(build, "SELF_CHECK_SECONDS", 0.3)
    stand_in(self_check="raise(9)" if kind == "is killed" else "for (volatile int i = 0;;) i = 1")
    reason = r"by signal 9 \(Killed" if kind == "is killed" else r"took longer than 0\.3 s"
    with pytest.raises(Unavailable, match=reason):
        build.build("portable")
    assert files(".failed") == []


def test_library_that_the_system_does_not_load_is_unavailable(stand_in):
    source = stand_in()
    text = source.read_text().replace('extern "C" {', 'extern "C" {\nextern int no_such_symbol;')
    source.write_text(text.replace("return nullptr; }", "return (const char*)&no_such_symbol; }"))
    with pytest.raises(
        Unavailable, match=r"no folder serves .* cannot be loaded: .*no_such_symbol"
    ):
        build.build("portable")


@x86
def test_paths_lower_what_the_processor_has(monkeypatch):
    avx2 = ("__AVX2__", "__FMA__")
    avx512 = (*avx2, "__AVX512F__")
    bf16 = (*avx512, "__AVX512BF16__")
    amx = (*bf16, "__AMX_TILE__", "__AMX_BF16__", "__AMX_INT8__")
    gcc = compiler.Compiler(("g++",), "g++ 12.2.0")

    def flags():
        return {path.name: path.flags for path in paths.paths_to_try("best", gcc)}

    define(monkeypatch, *amx)
    no_amx = ("-march=native", "-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile")
    assert flags() == {
        "best": ("-march=native",),
        "avx512_bf16": no_amx,
        "avx512": (*no_amx, "-mno-avx512bf16"),
        "avx2": ("-mavx2", "-mfma"),
        "portable": (),
    }
    define(monkeypatch, *bf16)
    assert list(flags()) == ["best", "avx512", "avx2", "portable"]
    define(monkeypatch, *avx512)
    assert list(flags()) == ["best", "avx2", "portable"]
    define(monkeypatch, *avx2)
    assert list(flags()) == ["best", "avx2", "portable"]
    define(monkeypatch, "__SSE2__")
    assert list(flags()) == ["best", "portable"]


def test_path_that_the_processor_lacks_is_unavailable(monkeypatch):
    gcc = compiler.Compiler(("g++",), "g++ 12.2.0")
    define(monkeypatch, "__AVX2__", "__FMA__")
    assert paths.paths_to_try("avx2", gcc)[0].flags == ("-mavx2", "-mfma")
    for name in ("avx512", "avx512_bf16"):
        with pytest.raises(Unavailable, match=f"processor lacks the .* TBPTT_NATIVE={name}$"):
            paths.paths_to_try(name, gcc)


def test_compiler_that_does_not_know_the_processor_leaves_the_portable_path(monkeypatch):
    gcc = compiler.Compiler(("g++",), "g++ 4.0.0")
    monkeypatch.setattr(paths, "predefined_macros", lambda _, flags: None if flags else "")
    assert [path.name for path in paths.paths_to_try("best", gcc)] == ["portable"]
