"""Inputs run in forked children, each within an address space and a time; what escapes is told by its number.

A child has imported everything before it is forked, so that an input costs milliseconds. One that dies, by a
signal, its alarm or for memory, takes only its own input with it: the next child goes on after it.
"""

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

from pressoir.errors import PressoirError

MEMORY_BYTES = 1_000_000_000
"""More than the address space of the child at its fork."""
SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))
"""Of processor time: what else the machine does is not counted."""
WAITING_SECONDS = 10 * SECONDS
"""By the clock, for what waits without computing."""
LAST = "last.txt"
"""Where a child was when it ended before its time."""
LONGEST_MESSAGE = 20_000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {f"os.{name}" for name in "mkdir rename remove rmdir symlink link truncate chmod".split()}


class Guard:
    """Notes every path that is written to outside of a folder while it is on."""

    def __init__(self):
        self.inside, self.seen = None, []
        sys.addaudithook(self._see)

    def _see(self, event, arguments):
        if self.inside is None:
            return
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
            self._note(event, arguments[0])
        elif event in CHANGING:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                self._note(event, os.fsdecode(path) if isinstance(path, str | bytes) else path)

    def _note(self, event, path):
        real = Path(path).absolute().parent.resolve() / Path(path).name
        if real != Path(os.devnull) and not real.is_relative_to(self.inside):
            self.seen.append(f"{event} {path}")


def run(name, target, count, folder):
    """Let `target` make and use `count` inputs; return how many were accepted and refused, and the faults."""
    accepted, refused, faults, done = 0, 0, [], 0
    while done < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                _child(name, target, range(done, count), folder, os.fdopen(writing, "w"))
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as lines:
            for line in lines:
                outcome = json.loads(line)
                done += 1
                accepted += outcome == "accepted"
                refused += outcome == "refused"
                if outcome not in ("accepted", "refused"):
                    faults.append(f"{name} {done - 1}: {outcome}")
        status = os.waitpid(child, 0)[1]
        if done < count:
            how = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
            faults.append(f"{name} {done}: the process ended by {how}; {(folder / LAST).read_text()}")
            done += 1
    return accepted, refused, faults


def _child(name, target, numbers, folder, tell):
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    last = (folder / LAST).open("w")
    faulthandler.enable(last)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(signal.SIGPROF, last, chain=True)  # then it ends the process
    guard = Guard()
    for number in numbers:
        own = folder / f"{name}-{number}"
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        faulthandler.dump_traceback_later(WAITING_SECONDS, exit=True, file=last)
        outcome = _outcome(random.Random(f"{name}-{number}"), target, own, guard)
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        tell.write(json.dumps(outcome) + "\n")
        tell.flush()
        shutil.rmtree(own, ignore_errors=True)
    os._exit(0)


def _outcome(rng, target, own, guard):
    for part in ("input", "output", "outside"):
        (own / part).mkdir(parents=True)
    (own / "outside" / "file").write_text("secret")
    refused = False
    try:
        steps = target(rng, own)
        guard.inside, guard.seen = (own / "output").resolve(), []
        for step in steps:
            try:
                step()
            except PressoirError as error:
                refused = True
                message = str(error)
                message.encode()
                if not message or len(message) > LONGEST_MESSAGE:
                    return f"a message of {len(message)} characters: {message[:200]}"
    except Exception:
        return traceback.format_exc(limit=-6)
    finally:
        guard.inside = None
    if guard.seen:
        return f"written outside of the output: {guard.seen[:5]}"
    if [path.name for path in (own / "outside").iterdir()] != ["file"]:
        return "something was written outside of the output"
    return "refused" if refused else "accepted"
