"""Explains a folder of rasters: one scene in a file per band, one scene of several sources, or many places."""

from itertools import islice
from pathlib import Path
from textwrap import dedent

from multimae_eo.errors import DataError, MultiMAEError
from multimae_eo.explain.feeds import fed, not_fed
from multimae_eo.explain.page import amount, block, command, facts, listed, page, paragraph, table
from multimae_eo.explain.scene import Study, explain_scene, study, use
from multimae_eo.maps.finding import FILES, known_band

_SAFE = ("GRANULE", "IMG_DATA", "R10m")
_TOGETHER, _APART = "as sources of one scene", "some of the same bands: each is a scene of its own"
_MANY = 5000  # rasters of one folder that are counted
_ROWS = 12  # of a table
_LABEL, _SHORT = 44, 4  # letters of a name, and bands that are spelt out
_SOURCES = 8  # more rasters in one folder than these are places, not sources of one scene


def explain_scenes(path: Path) -> str:
    """What a folder of rasters is; raises DataError or ConfigError where one cannot be read."""
    inside = sorted(p for p in path.iterdir() if p.suffix.lower() in FILES)
    if any((path / name).is_dir() for name in _SAFE) or _is_one_per_band(inside):
        return explain_scene(path)
    if (path / "labels.csv").is_file() or list(path.glob("*/images")):
        return _labelled(path)
    if 0 < len(inside) <= _SOURCES:
        return _several(path, inside)
    return _places(path)


def _is_one_per_band(files: list[Path]) -> bool:
    """Whether files are called after bands; a height model beside an image is a source of its own."""
    named = [p for p in files if any(known_band(part) for part in (p.stem, *p.stem.split("_")))]
    optical = [p for p in named if any((known_band(part) or "").startswith("B") for part in p.stem.split("_"))]
    return bool(named) and (len(optical) >= 3 or (len(named) == len(files) and len(files) > 1))


def _several(path: Path, files: list[Path]) -> str:
    """One scene of several sources; where these have the same bands, each is a scene of its own."""
    studies = [study(file) for file in files]
    names = [one.name for one in studies]
    together = len(set(names)) == len(names)
    bands = [band for s in studies for band in s.source.names]
    shared = [fact for fact in studies[0].told if all(fact in s.told for s in studies)]
    notes = []
    for one in studies:
        own = dedent(facts(*(fact for fact in one.told if fact not in shared)))
        notes += [block(f"{one.source.path.name}:", own)] if own else []
    return page(
        f"Folder of {amount(len(files), 'raster')}, {_TOGETHER if together else _APART}",
        path,
        facts(*shared),
        table(_HEAD, [_row(s, s.source.path.name) for s in studies]),
        "\n".join(notes),
        facts(("feeds", fed(bands)), ("lacks", not_fed(bands))),
        use(studies if together else studies[:1]),
    )


_HEAD = ["raster", "source", "bands", "size", "unit"]


def _row(found: Study, label: str) -> list[str]:
    source, names = found.source, found.source.names
    bands = " ".join(names) if len(names) <= _SHORT else f"{len(names)}: {names[0]} to {names[-1]}"
    units = listed(dict.fromkeys(guess.unit for guess in found.guesses if guess.unit), 3)
    short = label if len(label) <= _LABEL else f"{label[: _LABEL - 15]}...{label[-12:]}"
    return [short, found.name, bands or f"{len(source.bands)}, not named", f"{source.width} x {source.height}", units]


def _labelled(path: Path) -> str:
    """Images with labels of the reader's own."""
    table_file = path / "labels.csv"
    files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in FILES and p.parent.name != "masks"]
    if not files:
        raise DataError(f"'{path}' has labels and no image ({', '.join(FILES)}).")
    first = study(files[0])
    split = "labels.csv says their labels and splits" if table_file.is_file() else "with masks beside them"
    about = facts(("images", f"{len(files):,}, {split}"), ("the first", files[0].name), *first.told)
    names = first.source.names or ["B02", "B03", "..."]
    words = ["--data.source", "folder", "--data.root", path, "--data.folder.bands", f"[{', '.join(names)}]"]
    lines = [command("finetune", "--checkpoint", "CHECKPOINT", *words, "--data.folder.task", "TASK")]
    return page("Folder of labelled GeoTIFFs", path, about, block("Fine-tune on them (docs/own_geotiffs.md):", *lines))


def _places(path: Path) -> str:
    """Many rasters: a folder per kind of data, of which the first file is looked at, or a folder per place."""
    folders: dict[Path, list[Path]] = {}
    rasters = (p for below in ("*", "*/*") for p in path.glob(below) if p.suffix.lower() in FILES)
    for file in sorted(islice(rasters, _MANY)):
        folders.setdefault(file.parent, []).append(file)
    files = next(iter(folders.values()))
    shown = [folder if _is_one_per_band(inside) else inside[0] for folder, inside in folders.items()]
    aligned = len(folders) > 1 and len({tuple(f.name for f in inside) for inside in folders.values()}) == 1
    hint, first = "Of each folder the first raster is shown.", shown[0]
    if aligned and 1 < len(files) <= _SOURCES and len({study(file).name for file in files}) > 1:
        shown, first = files, files[0].parent
        hint = f"A folder per place, which holds the same files; those of '{first.name}' are shown."
    elif aligned:
        hint = "A folder per kind of data, which holds the same places; of each the first is shown."
    rows, problem = _rows(shown, path)
    if not rows:
        raise DataError(problem)
    lines = [command("inspect", first)]
    if aligned:
        lines.append(command("import", "--config", "IMPORT.yaml", "--root", path, "--out", "data"))
    number, more = sum(map(len, folders.values())), len(shown) - _ROWS
    return page(
        f"{'At least ' * (number == _MANY)}{amount(number, 'raster')} in {amount(len(folders), 'folder')}",
        path,
        paragraph(hint),
        table(_HEAD, rows) + (f"\n  and {amount(more, 'more folder')}" if more > 0 else ""),
        block("Look at one" + (", or make tiles to pre-train on (docs/import.md):" if aligned else ":"), *lines),
    )


def _rows(shown: list[Path], path: Path) -> tuple[list[list[str]], str]:
    """A row for each of the first rasters that can be read, and what was wrong with the last that cannot."""
    rows, problem = [], ""
    for place in shown[:_ROWS]:
        try:
            rows.append(_row(study(place), str(place.relative_to(path))))
        except MultiMAEError as error:
            problem = str(error)
    return rows, problem
