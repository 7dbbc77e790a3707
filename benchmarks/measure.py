"""What the benchmarks share: works timed in turn, so that a drift of the machine meets all of them, and one table."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from write_tables import table


@dataclass(frozen=True)
class Row:
    """One figure: its median over runs with the lowest and highest, and that of a rival measured in the same run.

    ratio: how many times better than the rival, the median over pairs of neighbouring runs; target: its least.
    """

    name: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    rival: str = ""
    rival_value: float | None = None
    ratio: float | None = None
    target: float | None = None


def interleaved(works: Mapping[str, Callable[[], object]], *, runs: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each work, run in turn, in the opposite order every other time."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in range(-warmup, runs):
        for name in sorted(works, reverse=run % 2 == 1, key=list(works).index):
            began = time.perf_counter()
            works[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if run >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


class Table:
    """Rows as they come; `finish` prints them and writes them as JSON where asked."""

    def __init__(self, title: str):
        self.title, self.rows = title, list[Row]()

    def rate(
        self,
        name: str,
        seconds: list[float],
        units: float,
        unit: str,
        rival: str = "",
        rivals: list[float] | None = None,
        target: float | None = None,
    ) -> None:
        """Units per second of some runs, each of which did `units`; rivals: seconds of the rival, as many units."""
        rates = [units / s for s in seconds]
        spread = statistics.median(rates), unit, min(rates), max(rates)
        if rivals is None:
            self.rows.append(Row(name, *spread))
            return
        ratio = statistics.median(b / a for a, b in zip(seconds, rivals, strict=True))
        self.rows.append(Row(name, *spread, rival, units / statistics.median(rivals), ratio, target))

    def take(self, name: str, seconds: list[float], unit: str, rival: str, rivals: list[float], target: float) -> None:
        """Seconds of some runs, against those of a rival; the ratio is rival over ours."""
        ratio = statistics.median(b / a for a, b in zip(seconds, rivals, strict=True))
        middle = statistics.median(seconds)
        spread = middle, unit, min(seconds), max(seconds), rival, statistics.median(rivals)
        self.rows.append(Row(name, *spread, ratio, target))

    def value(self, name: str, value: float | None, unit: str, target: float | None = None) -> None:
        """A single figure; None: not measured on this machine."""
        self.rows.append(Row(name, value, unit, target=target))

    def markdown(self) -> str:
        """The rows as a table in Markdown."""
        head = ["what", "median (lowest to highest)", "rival", "its median", "ratio", "target"]
        lines = []
        for row in self.rows:
            spread = f" ({number(row.low)} to {number(row.high)})" if row.low is not None else ""
            value = "not measured" if row.value is None else f"{number(row.value)} {row.unit}{spread}"
            rival = "" if row.rival_value is None else number(row.rival_value)
            ratio, target = (
                "" if x is None else f"{x:.2f}" if abs(x) >= 0.005 else number(x) for x in (row.ratio, row.target)
            )
            lines.append([row.name, value, row.rival, rival, ratio, target])
        return table(head, lines)

    def finish(self, path: Path | None) -> None:
        """Print the table; with a path, write name, value, unit, rival, ratio and target of every row there."""
        print(f"\n{self.title}\n{machine()}\n\n{self.markdown()}", flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"title": self.title, "machine": machine(), "rows": [asdict(row) for row in self.rows]}
            path.with_suffix(".md").write_text(f"{machine()}\n\n{self.markdown()}\n")
            path.write_text(json.dumps(content["rows"], indent=1) + "\n")


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        device = f"one {torch.cuda.get_device_name()}"
    else:
        device = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


def arguments(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """The command line of a benchmark: --json, and an option for each default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, help="write the rows there, and the table beside them")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    keep_memory()
    return parser.parse_args()


def keep_memory() -> None:
    """Start again with an allocator that keeps what is freed, as that of a GPU does.

    glibc hands large blocks back at once, and takes them again page by page: for small works that is most of the noise.
    """
    wanted = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_THRESHOLD_": str(1 << 34)}
    if sys.platform == "linux" and any(name not in os.environ for name in wanted):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
