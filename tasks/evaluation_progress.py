"""What happens in the children of an evaluation: on the terminal, in Prefect's log and on its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect.runtime import task_run

from pressoir.evaluation.memory_log import MemoryLog
from pressoir.evaluation.supervisor import Event
from pressoir.tasks import terminal
from pressoir.tasks.progress import ProgressArtifact, say


@contextmanager
def shown(log: MemoryLog) -> Iterator[Callable[[Event], None]]:
    """Tell the terminal or the log what happens, and Prefect's page how far it is; watch the children."""
    listener = terminal.get()
    bar, parts = ProgressArtifact(str(task_run.name or "evaluate")), dict[str, float]()

    def show(event: Event) -> None:
        if event.kind == "batch":
            log.batch(event.batch)
        elif event.kind == "started":
            if event.pid is not None:
                log.watch(event.pid, event.model)
            say(f"{event.model}: started, {event.detail}".rstrip(", "))
        elif event.kind == "progress":
            parts[event.model] = event.done / max(event.total, 1)
            bar.show(100 * sum(parts.values()) / len(parts), ", ".join(parts))
            if listener is not None:
                listener.progress(event.done, event.total, event.model)
        elif event.kind == "waiting":
            say(f"{event.model}: waiting {event.detail}")
        elif event.kind == "ended":
            if event.pid is not None:
                log.unwatch(event.pid)
            say(f"{event.model}: {event.detail} after {event.done} of {event.total} samples")

    yield show
