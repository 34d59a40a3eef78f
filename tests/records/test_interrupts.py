"""Ctrl-C and SIGTERM at any moment: one line, the right exit code, soon."""
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vega3d
from records import interrupts
from records.interrupts import Interrupted, check, deferred, handled, pending

ROOT = Path(vega3d.__file__).parent


@pytest.fixture(autouse=True)
def signals_are_handled():
    """As in a terminal: a process in the background ignores Ctrl-C, under nohup a hang-up too."""
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
              signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ask_to_stop(number: int = signal.SIGTERM) -> None:
    signal.raise_signal(number)  # on this thread: it is handled before the call returns


@pytest.mark.parametrize(("number", "code", "says"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "hung up")])
def test_a_command_that_is_asked_to_stop_says_one_line(monkeypatch, capsys, number, code, says):
    monkeypatch.setattr(vega3d, "_run", lambda *_: ask_to_stop(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["distill", "run"])
    assert stopped.value.code == code and signal.getsignal(number) is before
    assert capsys.readouterr().err == f"vega3d: {says}; the same command resumes\n"


def test_an_error_that_wraps_the_interruption_counts_as_the_interruption():
    with pytest.raises(Interrupted), handled():
        try:
            ask_to_stop()
        except KeyboardInterrupt as error:  # as torch.onnx.export does
            raise RuntimeError("failed to export") from error


def test_a_deferred_block_is_not_cut_and_knows_that_it_should_save():
    done = []
    with pytest.raises(Interrupted), handled():
        with deferred():
            with deferred():
                ask_to_stop()
                done.append(pending())
            done.append("after the inner block")
            with pytest.raises(Interrupted):
                check()
        done.append("never")
    assert done == [True, "after the inner block"]


def test_an_error_in_a_deferred_block_ends_it():
    with pytest.raises(ZeroDivisionError), deferred():
        1 / 0  # noqa: B018
    with pytest.raises(Interrupted), handled():
        ask_to_stop()


def test_another_thread_runs_commands_without_signals(monkeypatch):
    found = []
    monkeypatch.setattr(vega3d, "_run", lambda *_: found.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=vega3d.main, args=(["bench"],))
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.parametrize("stuck", [
    "try: os.kill(os.getpid(), number); time.sleep(60)\n"
    "    except BaseException: time.sleep(60)",       # swallowed
    "threading.Timer(0.1, os.kill, (os.getpid(), number)).start()\n"
    "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",  # in C for half an hour
])
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_code_that_does_not_return_is_ended(stuck, number, code):
    script = ("import hashlib, os, signal, threading, time; from records import interrupts\n"
              "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
              f"interrupts.LAST_SECONDS, number = 0.3, {number}\n"
              f"with interrupts.handled():\n    {stuck}")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          timeout=30)
    assert done.returncode == code
    assert done.stderr == f"vega3d: {interrupts.Interrupted(number)}\n"


def test_a_process_that_ignores_ctrl_c_goes_on_doing_so():
    """As one started by nohup or by a script's `&` does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            ask_to_stop(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
