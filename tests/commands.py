"""Runs commands as a user types them, in processes that need not import TensorFlow first."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import re
import runpy
import sys

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("guide", "results", "performance", "scaling", "design")),
)

# One process imports TensorFlow, and every command is a fork of it: seconds less for each.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tbptt"])


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a command left: its exit status, and all that it printed, errors too."""

    status: int
    output: str


def run_module(name: str, arguments: list[str], folder: pathlib.Path, corpus: str = "") -> Ended:
    """Runs `python -m name arguments` in `folder`.

    With a `corpus` that text stands in for Python's own documentation, which is long.
    """
    output = folder / "output.txt"
    process = FORKS.Process(target=_run, args=(name, arguments, folder, output, corpus))
    process.start()
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{name} {arguments} is not through: {output.read_text()}")
    return Ended(process.exitcode or 0, output.read_text("utf-8", "replace"))


def _run(
    name: str, arguments: list[str], folder: pathlib.Path, output: pathlib.Path, text: str
) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    # Of the processes that a command starts, which import TensorFlow themselves.
    os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    sys.path.insert(0, str(ROOT))
    sys.argv = [name, *arguments]
    if text:
        from tbptt.streams import corpus

        corpus.python_docs = corpus.python_source = lambda: text
    with contextlib.redirect_stdout(sys.stdout), contextlib.redirect_stderr(sys.stderr):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def documented() -> dict[str, str]:
    """Every command in the README and in docs/, and the page it is first found on."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
        for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines() if language == "sh" else ():
                command = " ".join(re.sub(r"\s+#.*", "", line).split())
                if command:
                    found.setdefault(command, page)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for command in re.findall(r"`((?:python -m|pip|pytest|tensorboard) [^`\n]+)`", prose):
            found.setdefault(command, page)
    return found
