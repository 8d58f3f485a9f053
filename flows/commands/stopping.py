"""Ctrl-C and SIGTERM: one line that says how to go on, and an end within seconds, whatever is being done.

A handler of Python's runs between two instructions of the main thread, which may be deep in native code, and
Prefect puts one of its own in its place. So a thread waits at the descriptor to which the interpreter writes
each signal at once. It prints the line, sends what is printed afterwards nowhere (each library tells of the
interruption in its own way), and leaves the program a few seconds to mark its runs as ended. Then it ends the
process and all that it started. Nothing is lost: the store publishes whole artifacts, trainings have
checkpoints, and the next run ends in MLflow what is left as running.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pressoir.system.family import end_family

_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar has hidden


@contextmanager
def stoppable(how: str, grace_s: float = 3.0) -> Iterator[None]:
    """End the process on SIGINT (exit code 130) or SIGTERM (143); `how` says how to go on.

    `grace_s` is how long what runs may take to come to its end.

    Only the main thread can receive signals; in another thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    stopped, unwound = threading.Event(), threading.Event()

    def watch() -> None:
        while byte := os.read(reader, 1):
            if byte[0] in (signal.SIGINT, signal.SIGTERM):
                stopped.set()
                _say(f"stopped; {how}")
                unwound.wait(grace_s)
                end_family()
                os._exit(128 + byte[0])

    def ignored(fault: sys.UnraisableHookArgs) -> None:
        if fault.exc_type is not KeyboardInterrupt:  # raised in a destructor, whose errors Python prints
            hook(fault)

    hook, sys.unraisablehook = sys.unraisablehook, ignored
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with sigterm_as_interrupt():
            yield
    finally:
        sys.unraisablehook = hook
        unwound.set()
        if stopped.is_set():  # the thread ends the process, with the signal's exit code
            watcher.join()
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _say(text: str) -> None:
    """Print the last line, and nothing after it."""
    cursor = ""
    with suppress(OSError, ValueError):  # either may be closed
        sys.stdout.flush()
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        terminal = os.dup(2)
    except OSError:
        terminal = nowhere
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    with suppress(OSError):
        os.write(terminal, f"{cursor}{text}\n".encode())


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the main thread, as SIGINT does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
