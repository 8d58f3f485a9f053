"""`pressoir monitor`: the machine's state, live in a terminal, one line a sample elsewhere.

It ends on Ctrl-C, on SIGTERM, after `--count` samples, or when the process of `--pid` ends, always with a
summary.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from pressoir.errors import StoreError
from pressoir.flows.commands.terminal import console
from pressoir.system.monitor import Sampler, Summary, level

if TYPE_CHECKING:
    from pressoir.system.memory import ProcessMemory
    from pressoir.system.monitor import MonitorSample

_FIRST_S = 0.2
"""CPU use needs a moment to compare with."""
_STYLES = {"OPTIMAL": "green", "MODERATE": "yellow", "HIGH": "red"}
_FRAME_LINES = 10
"""Lines of the live view besides the watched processes."""


@click.command()
@click.option(
    "--threshold",
    type=click.FloatRange(0, 100, min_open=True),
    default=85.0,
    show_default=True,
    help="Alert above this percentage of RAM (of the effective limit) or GPU memory.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between samples.",
)
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="Append each sample as a JSON line."
)
@click.option(
    "--pid", type=click.IntRange(min=1), help="Watch this process and its descendants until it ends."
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many samples.")
def monitor(threshold: float, interval: float, log: Path | None, pid: int | None, count: int | None) -> None:
    """Monitor CPU, RAM, swap, GPUs and temperature; RAM relative to the limit of this process.

    With --pid, the limits are those of that process, so that a container can be monitored from outside.
    """
    sampler = Sampler(threshold, () if pid is None else (pid,), "self" if pid is None else pid)
    started_with, summary = sampler.watched, Summary()
    with _opened(log) as file, _until_stopped() as wait, _shown(threshold, interval) as show:
        for sample in _samples(sampler, interval, count, wait):
            if not sampler.watched.keys() >= started_with.keys():
                break  # that process's limits are gone with it
            summary.add(sample)
            if file is not None:
                _write(file, sample)
            show(sample)
    for ended in started_with.keys() - sampler.watched.keys():
        console.print(escape(f"{started_with[ended]} has ended"))
    _print_summary(summary, threshold)


def _samples(
    sampler: Sampler, interval_s: float, count: int | None, wait: Callable[[float], bool]
) -> Iterator[MonitorSample]:
    """Samples at even intervals; after a delay the next is taken at once, and those between are left out."""
    due, taken = time.monotonic() + min(_FIRST_S, interval_s), 0
    while not wait(max(due - time.monotonic(), 0.0)):
        yield sampler.sample()
        taken += 1
        if taken == count:
            return
        due = max(due + interval_s, time.monotonic())


@contextmanager
def _until_stopped() -> Iterator[Callable[[float], bool]]:
    """A wait of so many seconds that Ctrl-C and SIGTERM end early: then, and ever after, it gives True.

    They only write to a pipe, so no line is broken in the middle; a handler must not take locks, which rules
    out `threading.Event`.
    """
    reader, writer = os.pipe()
    before = {
        number: signal.signal(number, lambda *_: os.write(writer, b"."))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda seconds: bool(select.select([reader], [], [], seconds)[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@contextmanager
def _opened(log: Path | None) -> Iterator[BinaryIO | None]:
    """The log, open for appending without a buffer; a line that a kill cut off is ended first."""
    if log is None:
        yield None
        return
    try:
        cut_off = log.exists() and _is_cut_off(log)
        file = log.open("ab", buffering=0)
    except OSError as error:
        raise StoreError(f"--log {log}: {error.strerror or error}; choose a writable file") from error
    with file:
        if cut_off:
            file.write(b"\n")
        yield file


def _is_cut_off(log: Path) -> bool:
    """Whether the last line lacks its end."""
    with log.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _write(file: BinaryIO, sample: MonitorSample) -> None:
    try:
        file.write(json.dumps(sample.to_dict()).encode() + b"\n")
    except OSError as error:
        raise StoreError(f"--log {file.name}: {error.strerror or error}; free some space") from error


@contextmanager
def _shown(threshold: float, interval_s: float) -> Iterator[Callable[[MonitorSample], None]]:
    """What shows a sample: a view that is drawn again and again in a terminal, a line each elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda sample: console.print(escape(_line(sample)), soft_wrap=True, highlight=False)
        return
    alerted = False
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:

        def show(sample: MonitorSample) -> None:
            nonlocal alerted
            if sample.alerts and not alerted:  # stays above the view when the alert is over
                for alert in sample.alerts:
                    live.console.print(f"[red]{_clock(sample)} {escape(alert)}[/]", soft_wrap=True)
            alerted = bool(sample.alerts)
            live.update(_view(sample, threshold, interval_s), refresh=True)

        yield show


def _line(sample: MonitorSample) -> str:
    """`12:00:00  CPU 34.2 %  RAM 45.1 % of 4.0 GB OPTIMAL  …`."""
    cpu = "–" if sample.cpu_percent is None else f"{sample.cpu_percent:.1f} %"
    parts = [
        _clock(sample),
        f"CPU {cpu}",
        f"RAM {sample.ram_percent:.1f} % of {_gb(sample.ram_limit_bytes)} {sample.level}",
        f"swap {sample.swap_percent:.1f} %",
    ]
    for index, gpu in enumerate(sample.gpus):
        parts.append(f"GPU {index} {_gb(gpu.used_bytes)} of {_gb(gpu.total_bytes)}")
    if sample.temperature_c is not None:
        parts.append(f"{sample.temperature_c:.0f} °C")
    for watched in sample.watched:
        parts.append(f"{watched.label} {_measure(watched.processes)} {_mb(watched.bytes)}")
    parts += [f"ALERT {alert}" for alert in sample.alerts]
    return "  ".join(parts)


def _view(sample: MonitorSample, threshold: float, interval_s: float) -> RenderableType:
    bars = Table.grid(padding=(0, 2))
    # name, bar, percent, level, and what there is; besides them two columns each for frame, margin and gaps
    bar_width = max(min(30, console.width - 74), 8)
    told_width = max(console.width - 34 - bar_width, 8)
    for width in (5, bar_width, 7, 8, told_width):
        bars.add_column(width=width, no_wrap=True, justify="right" if width == 7 else "left")

    def add(name: str, percent: float | None, description: str, levelled: bool = True) -> None:
        known = percent or 0.0
        style = _STYLES[level(known)] if levelled else "cyan"
        word = f"[{style}]{level(known)}[/]" if levelled and percent is not None else ""
        bar = ProgressBar(total=100, completed=known, complete_style=style, finished_style=style)
        bars.add_row(name, bar, "–" if percent is None else f"{percent:.1f} %", word, escape(description))

    degrees = "" if sample.temperature_c is None else f", {sample.temperature_c:.0f} °C"
    add("CPU", sample.cpu_percent, f"of {sample.cpus:g} CPUs{degrees}")
    add("RAM", sample.ram_percent, f"{_gb(sample.ram_used_bytes)} of {_gb(sample.ram_limit_bytes)}")
    swap = (
        f"{_gb(sample.swap_used_bytes)} of {_gb(sample.swap_total_bytes)}"
        if sample.swap_total_bytes
        else "none"
    )
    add("swap", sample.swap_percent, swap, levelled=False)
    for index, gpu in enumerate(sample.gpus):
        busy = "" if gpu.busy_percent is None else f", {gpu.busy_percent:.0f} % busy"
        percent = 100 * gpu.used_bytes / max(gpu.total_bytes, 1)
        add(f"GPU {index}", percent, f"{_gb(gpu.used_bytes)} of {_gb(gpu.total_bytes)}{busy}, {gpu.name}")
    parts: list[RenderableType] = [bars, f"[dim]limit: {escape(sample.ram_limit_source)}[/]"]
    if sample.pressure_percent is not None:
        parts.append(f"[dim]memory pressure: {sample.pressure_percent:.1f} % of the last 10 s[/]")
    parts += [_processes(sample)] if sample.watched else []
    parts += [f"[bold red]ALERT[/] {escape(alert)}" for alert in sample.alerts]
    title = f"{_clock(sample)}, every {interval_s:g} s, alert above {threshold:g} %, Ctrl-C stops"
    # Two columns are left for the "^C" that a terminal echoes: wrapped, it would shift what is drawn next.
    return Panel(Group(*parts), title=title, title_align="left", width=max(console.width - 2, 20))


def _processes(sample: MonitorSample) -> Table:
    """The watched processes, the largest that fit the terminal, with a sum of all."""
    table = Table("PID", "process", box=None, pad_edge=False)
    table.add_column(
        _measure([process for tree in sample.watched for process in tree.processes]), justify="right"
    )
    rows = max(console.height - _FRAME_LINES - len(sample.gpus) - len(sample.alerts), 3)
    for watched in sample.watched:
        largest = sorted(watched.processes, key=lambda process: process.bytes, reverse=True)
        for process in largest[:rows]:
            mark = "" if process.measure == "pss" else " (RSS)"
            table.add_row(str(process.pid), escape(process.name), _mb(process.bytes) + mark)
        more = len(largest) - rows
        summary = f"{len(largest)} process{'es' if len(largest) > 1 else ''}" + (
            f", {more} not shown" if more > 0 else ""
        )
        table.add_row("sum", summary, _mb(watched.bytes), style="bold")
    return table


def _print_summary(summary: Summary, threshold: float) -> None:
    if not summary.samples:
        console.print("no sample was taken")
        return
    table = Table("", box=None, pad_edge=False)
    table.add_column("mean", justify="right")
    table.add_column("peak", justify="right")
    names = {"cpu_percent": "CPU %", "ram_percent": "RAM %", "temperature_c": "°C"}
    names |= {"ram_used_bytes": "RAM", "swap_used_bytes": "swap"}
    for figure in summary.figures():
        mean, peak = summary.mean(figure), summary.peak(figure)
        if figure.startswith("gpu_"):
            name = f"GPU {figure.split('_')[1]} memory"
        else:
            name = names.get(figure) or figure.removeprefix("watched_bytes/")
        if "bytes" not in figure:
            table.add_row(name, f"{mean:.1f}", f"{peak:.1f}")
        elif peak:
            table.add_row(escape(name), _mb(mean), _mb(peak))
    console.print(table)
    counted = f"{summary.samples} sample{'' if summary.samples == 1 else 's'} in {summary.duration_s:.0f} s"
    console.print(f"{counted}, {summary.alerts} above {threshold:g} %", highlight=False)


def _clock(sample: MonitorSample) -> str:
    return f"{datetime.fromisoformat(sample.recorded_at).astimezone():%H:%M:%S}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else _mb(size)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def _measure(processes: Iterable[ProcessMemory]) -> str:
    """PSS, unless every figure had to be an RSS."""
    return "PSS" if any(process.measure == "pss" for process in processes) else "RSS"
