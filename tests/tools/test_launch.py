"""The launcher: every worker knows the others, and none is left when one dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "tools.launch"]
WORKER = """
import json, os, pathlib, sys, time
task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
folder = pathlib.Path(sys.argv[1])
(folder / f"pid-{task}").write_text(str(os.getpid()))
print("hello", os.environ["TF_NUM_INTRAOP_THREADS"], flush=True)
starts = len(list(folder.glob("start-0-*")))
(folder / f"start-{task}-{starts}").touch()
exec(sys.argv[2])
"""


def launched(tmp_path, code, *flags):
    arguments = [*COMMAND, *flags, "--", sys.executable, "-c", WORKER, str(tmp_path), code]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def test_workers_are_told_who_they_are_and_their_lines_are_numbered(tmp_path):
    process = launched(tmp_path, "print(os.environ['TF_CONFIG'])", "--workers=2", "--threads=3")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    told = {}
    for index in (0, 1):
        lines = [line[4:] for line in out.splitlines() if line.startswith(f"[{index}] ")]
        assert lines[0] == "hello 3"
        told[index] = json.loads(lines[1])
        assert told[index]["task"] == {"type": "worker", "index": index}
    assert told[0]["cluster"] == told[1]["cluster"]
    addresses = told[0]["cluster"]["worker"]
    assert len(set(addresses)) == 2
    assert all(address.startswith("127.0.0.1:") for address in addresses)


SLOW = """
import time
from absl import app
from tools import launch
show = launch.show
launch.show = lambda *given: (time.sleep(0.5), show(*given))
app.run(launch.main)
"""


def test_the_last_words_of_every_worker_are_shown():
    command = [sys.executable, "-c", SLOW, "--workers=2", "--", "echo", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert sorted(done.stdout.splitlines()) == ["[0] hello", "[1] hello"], done.stderr


def test_one_that_dies_takes_the_others_along(tmp_path):
    code = "sys.exit(3) if task == 1 else time.sleep(100)"
    began = time.monotonic()
    process = launched(tmp_path, code, "--workers=3", "--grace=0.5")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert time.monotonic() - began < 30
    assert "Worker 1 ended with status 3." in err
    for index in range(3):
        assert gone((tmp_path / f"pid-{index}").read_text())


def test_all_start_again_as_often_as_asked(tmp_path):
    code = "sys.exit(4 if task == 0 and starts < 2 else 0)"
    process = launched(tmp_path, code, "--workers=2", "--grace=0.5", "--restart=2")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(list(tmp_path.glob("start-0-*"))) == 3
    process = launched(tmp_path, "sys.exit(75)", "--workers=1", "--restart=2")
    process.communicate(timeout=60)
    assert process.returncode == 75  # saved: not again
    assert len(list(tmp_path.glob("start-0-*"))) == 4


def test_a_run_is_saved_only_if_no_worker_had_to_be_stopped(tmp_path):
    """One has left with status 75; the chief still writes: in time, and not in time."""
    code = "sys.exit(75) if task == 1 else (time.sleep({}), sys.exit(75))"
    process = launched(tmp_path, code.format(2), "--workers=2", "--grace=30")
    process.communicate(timeout=60)
    assert process.returncode == 75
    process = launched(tmp_path, code.format(100), "--workers=2", "--grace=0.5", "--restart=3")
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 75)
    assert "Worker 0 had to be stopped, with status -15: what it was saving is lost." in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_all(tmp_path, number):
    code = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75));"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(75));"
        "(folder / f'ready-{task}').touch(); time.sleep(100)"
    )
    process = launched(tmp_path, code, "--workers=2", "--restart=5")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(list(tmp_path.glob("start-0-*"))) == 1


def test_command_lines_of_hosts_are_printed_and_nothing_starts(tmp_path):
    out = subprocess.run(
        [*COMMAND, "--hosts=alpha:2222,beta:2222", "--", "python", "-m", "x y"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    first, second = out.splitlines()
    config = json.dumps(
        {
            "cluster": {"worker": ["alpha:2222", "beta:2222"]},
            "task": {"type": "worker", "index": 1},
        }
    )
    assert second == f"beta:2222: TF_CONFIG='{config}' python -m 'x y'"
    assert first.startswith("alpha:2222: ")


def test_nothing_to_run_is_told():
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "what is to be run? Write it after --" in done.stderr
