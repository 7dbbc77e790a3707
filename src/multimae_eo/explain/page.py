"""The parts of an explanation as text no wider than a terminal, and which modalities some bands feed, in words."""

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from multimae_eo.modalities import INPUT_SETTINGS, MODALITIES, REFLECTANCE, Modality, fed_by

WIDTH = 100
GAP = 2  # spaces before a line and between columns


def page(title: str, path: Path, *parts: str) -> str:
    """A whole explanation; parts that are empty are left out."""
    return "\n\n".join([f"{title}\n{' ' * GAP}{path}", *(part for part in parts if part)])


def facts(*entries: tuple[str, str]) -> str:
    """One fact after another, its name before it; those without text are left out."""
    return table([], [[name, text] for name, text in entries if text])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their names, as wide as their longest cell; the last one takes what is left, and is wrapped."""
    cells = [list(row) for row in (head, *rows) if row]
    widths = [max(len(cell) for cell in column) + GAP for column in list(zip(*cells, strict=True))[:-1]]
    left, lines = GAP + sum(widths), []
    for *first, last in cells:
        start = " " * GAP + "".join(cell.ljust(width) for cell, width in zip(first, widths, strict=True))
        wrapped = textwrap.wrap(last, max(30, WIDTH - left), break_long_words=False, break_on_hyphens=False) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * left + more for more in wrapped[1:])]
    return "\n".join(lines)


def block(title: str, *lines: str) -> str:
    """Lines under a title, such as commands or code."""
    return "\n".join([title, *(" " * GAP + line for text in lines for line in text.splitlines())])


def command(name: str, *words: object) -> str:
    """A command line of the package, quoted for a shell, and broken before an option where it is long."""
    parts = [f"multimae-eo {name}"]
    for word in words:
        text = shlex.quote(str(word))
        parts[-1:] = [parts[-1], text] if text.startswith("--") else [f"{parts[-1]} {text}"]
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= WIDTH - GAP:
            lines[-1] += f" {part}"
        else:
            lines[-1:] = [f"{lines[-1]} \\", f"    {part}"]
    return "\n".join(lines)


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names with commas between; of many the first ones, and how many more."""
    texts = [str(name) for name in names]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def amount(number: int, noun: str) -> str:
    """A number of things: "1 tile", "1,234 tiles"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def fed(bands: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """As facts: the modalities that some bands feed, those that they do not, and the bands that each lacks."""
    there = set(bands)
    missing = {name: " ".join(b for b in m.bands if b not in there) for name, m in MODALITIES.items()}
    feeds = fed_by(there)
    return (
        ("feeds", ", ".join(n + f" (without {missing[n]})" * bool(missing[n]) for n in feeds) or "none"),
        ("lacks", ", ".join(f"{n} (needs {bands})" for n, bands in missing.items() if n not in feeds)),
    )


def settings(bands: Iterable[str]) -> list[str]:
    """The input settings that these bands can feed."""
    there = set(bands)
    return [name for name, setting in INPUT_SETTINGS.items() if setting.fits(there)]


def source_name(modalities: Iterable[Modality], otherwise: str = "scene") -> str:
    """What a source of some modalities is usually called in a command: s2, s1, dem, ..."""
    for modality in modalities:
        optical, several = modality.unit == REFLECTANCE, len(modality.bands) > 1
        return "s2" if optical else "s1" if several else modality.bands[0]
    return otherwise
