"""The parts of an explanation as text no wider than a terminal: facts, tables, commands, numbers and lists."""

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

WIDTH = 100
GAP = 2  # spaces before a line and between columns


def page(title: str, path: Path, *parts: str) -> str:
    """A whole explanation; parts that are empty are left out."""
    return "\n\n".join([f"{title}\n{' ' * GAP}{path}", *(part for part in parts if part)])


def facts(*entries: tuple[str, str]) -> str:
    """One fact after another, its name before it; those without text are left out."""
    told = [(name, text) for name, text in entries if text]
    return _lines([[name, text] for name, text in told])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their names; the last one is wrapped."""
    return _lines([list(head), *(list(row) for row in rows)])


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns, as wide as their longest cell; the last column takes what is left."""
    if not rows:
        return ""
    widths = [max(len(cell) for cell in column) + GAP for column in list(zip(*rows, strict=True))[:-1]]
    left = GAP + sum(widths)
    lines = []
    for *cells, last in rows:
        start = " " * GAP + "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        wrapped = textwrap.wrap(last, max(30, WIDTH - left), break_long_words=False, break_on_hyphens=False) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * left + more for more in wrapped[1:])]
    return "\n".join(lines)


def block(title: str, *lines: str) -> str:
    """Lines under a title, such as commands or code."""
    return "\n".join([title, *(" " * GAP + line for text in lines for line in text.splitlines())]) if lines else ""


def paragraph(text: str) -> str:
    """Running text."""
    return textwrap.fill(text, WIDTH, initial_indent=" " * GAP, subsequent_indent=" " * GAP, break_long_words=False)


def command(name: str, *words: object) -> str:
    """A command line of the package, quoted for a shell and broken where it is long."""
    parts = [f"multimae-eo {name}"]
    for word in words:
        text = shlex.quote(str(word))
        joins = not text.startswith("--") or not parts[-1].startswith("--")
        parts[-1:] = [f"{parts[-1]} {text}"] if joins and not text.startswith("--") else [parts[-1], text]
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > WIDTH - GAP:
            lines[-1] += " \\"
            lines.append("    " + part)
        else:
            lines[-1] += " " + part
    return "\n".join(lines)


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names with commas between; of many the first ones, and how many more."""
    texts = [str(name) for name in names]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def amount(number: int, noun: str) -> str:
    """A number of things: "1 tile", "1,234 tiles"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def file_size(size: int) -> str:
    """Bytes in words, in powers of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def share(part: float, whole: float) -> str:
    """A part in per cent; never 0 % or 100 % of what is not none or all."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 1:
        return "under 1 %"
    return "over 99 %" if 99 < percent < 100 else f"{percent:.0f} %"
