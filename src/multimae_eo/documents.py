"""Reads JSON and YAML that a stranger may have written: bounded in size, depth and repetition, and never executed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from multimae_eo.errors import MultiMAEError

MEGABYTES = 64  # of a JSON file; those of a checkpoint have some kB. What lists every tile states its own.
LONGEST = 1 << 20  # characters of a YAML file; the longest config of the package has 3,000
MOST_NODES = 100_000  # of a YAML file once its aliases are written out


def read_json(path: Path, error: type[MultiMAEError], *, megabytes: int = MEGABYTES) -> Any:
    """The content of a JSON file, NaN and Infinity included; raises `error`, also for a name that is given twice."""
    size = path.stat().st_size
    if size > megabytes << 20:
        raise error(f"'{path}' has {size} bytes; expected at most {megabytes << 20}. It was not read.")
    return parse_json(path.read_bytes(), f"'{path}'", error)


def parse_json(content: bytes, where: str, error: type[MultiMAEError]) -> Any:
    """As `read_json`, of bytes that are there already."""
    import json

    try:
        return json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:  # also of bytes that are no text, and of numbers without end
        raise error(f"{where} is not JSON: {problem}. Fetch or write it again.") from problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(n for n in names if names.count(n) > 1)}' is given twice")
    return entries


def read_yaml(path: Path) -> str:
    """The text of a YAML file that passed `check_yaml`; raises what that does, and OSError."""
    if path.stat().st_size > 4 * LONGEST:
        raise ValueError(f"it has {path.stat().st_size} bytes; expected at most {4 * LONGEST}")
    text = path.read_text(encoding="utf-8")
    check_yaml(text)
    return text


def check_yaml(text: str) -> None:
    """Raise ValueError or a YAMLError for text that is too long, also once its aliases are written out."""
    import yaml

    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters; expected at most {LONGEST}")
    if "*" not in text:
        return  # no alias, so nothing can be more than what is there
    try:
        size = _written_out(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if size > MOST_NODES:
        raise ValueError(f"its aliases stand for {size:.3g} entries; expected at most {MOST_NODES}")


def _written_out(node: Any, known: dict[int, int]) -> int:
    """How many nodes there are where every alias is replaced by what it stands for."""
    if node is None or not isinstance(node.value, list):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # what stands within itself has no end
        known[id(node)] = 1 + sum(_written_out(part, known) for part in _parts(node.value))
    return known[id(node)]


def _parts(entries: Iterable[Any]) -> Iterable[Any]:
    for entry in entries:
        yield from entry if isinstance(entry, tuple) else (entry,)
