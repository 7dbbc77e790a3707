"""Explains GEO-Bench: one set, or the folder of all; reads side files and the names of the bands of one image."""

from pathlib import Path

from multimae_eo.data.geobench import PARTITIONS, GeoBench
from multimae_eo.data.geobench_sets import CLASSIFICATION, SEGMENTATION, SETS, GeoBenchSet
from multimae_eo.errors import DataError
from multimae_eo.explain.page import amount, block, command, facts, fed, listed, page, settings, table

# Those that the world of the package writes can be made, and need no download.
_MADE = "synthetic"


def explain(path: Path, out: Path | None = None) -> str:
    """What a set of GEO-Bench, or the folder of all, holds; raises DataError where it is unknown."""
    name = path.resolve().name
    if name in SETS:
        return _set(path, SETS[name])
    if name in (CLASSIFICATION, SEGMENTATION):
        path = path.resolve().parent
    there = [s for s in SETS.values() if (path / s.folder / s.name).is_dir()]
    if not there:
        raise DataError(
            f"'{path}' looks like GEO-Bench, but neither is it called like a set nor does it hold {CLASSIFICATION} or "
            f"{SEGMENTATION} with one; a set is known by the name of its folder: {listed(SETS, 20)}."
        )
    return _root(path, there)


def _opened(path: Path, described: GeoBenchSet) -> tuple[GeoBench | None, str]:
    """A set if it can be read, and what is wrong with it; where class 0 means no data, either choice will do."""
    problem = ""
    for leaks in (False, True):
        try:
            choice = False if described.class0_is_no_data else None
            return GeoBench(path, described.name, ignore_class0=choice, allow_leaks=leaks), problem
        except DataError as error:
            problem = problem or str(error)
    return None, problem


def _set(path: Path, described: GeoBenchSet) -> str:
    found, problem = _opened(path, described)
    bands = [layer.band for layer in described.layers]
    ids = {} if found is None else found.ids
    files = {p.name.split("_")[0] for p in path.glob("*_partition.json")}
    own = ", ".join(described.products)
    about = facts(
        ("images", f"{len(list(path.glob('*.hdf5'))):,} in the folder"),
        ("splits", ", ".join(f"{split} {len(names):,}" for split, names in ids.items())),
        ("partitions", listed(p for p in PARTITIONS if p in files)),
        ("classes", listed((f"{c.code} {c.name}" for c in described.classes), 12)),
        ("class 0", "means no data: say with --data.ignore_class0 whether it counts" * described.class0_is_no_data),
        ("bands", " ".join(bands)),
        ("units", f"those of {own}" if own else "its own, so only its own statistics fit"),
        *fed(bands),
        ("settings", ", ".join(settings(bands)) or "none of the paper's"),
        *(("note", note) for note in described.notes),
        ("problem", problem),
    )
    title = f"GEO-Bench set {described.name}: {described.task}, {len(described.classes)} classes"
    return page(title, path, about, _use(path, described, found is not None, bool(problem)))


def _use(path: Path, described: GeoBenchSet, usable: bool, leaks: bool) -> str:
    """The commands that try an encoder on it, or fetch it."""
    root = path.resolve().parent
    root = root.parent if root.name == described.folder else root
    if not usable:
        fetch = command("download", f"geobench:{described.name}", "--out", root)
        if described.name.startswith(_MADE):
            fetch = command("synthesize", "--layout", "geobench", "--out", root)
        return block("Fetch what is missing of it:", fetch)
    data = ["--checkpoint", "CHECKPOINT", "--data.root", root]
    choice = ["--data.ignore_class0", "true"] * described.class0_is_no_data + ["--data.allow_leaks", "true"] * leaks
    lines = [command("probe", *data, "--data.name", described.name, *choice)]
    fitting = settings(layer.band for layer in described.layers)
    for setting in [s for s in ("multispectral", "rgb-only") if s in fitting][:1]:
        config = f"configs/finetune/{described.name}_{setting}.yaml"
        lines.append(command("finetune", "--config", config, *data, *choice))
    return block("Try an encoder on it, frozen and fine-tuned (configs are in the repository):", *lines)


def _root(path: Path, there: list[GeoBenchSet]) -> str:
    """The folder of all sets: a row for each that is there, and how to get the others."""
    rows = []
    for described in there:
        found, _ = _opened(path, described)
        number = "not complete" if found is None else f"{sum(map(len, found.ids.values())):,}"
        bands = [layer.band for layer in described.layers]
        rows.append([described.name, described.task, str(len(described.classes)), number, ", ".join(settings(bands))])
    absent = [s.name for s in SETS.values() if s not in there and not s.name.startswith(_MADE)]
    lines = [
        command("geobench", "--checkpoint", "CHECKPOINT", "--data-root", path, "--datasets", "all"),
        command("inspect", path / there[0].folder / there[0].name),
        *[command("download", "geobench:NAME", "--out", path)] * bool(absent),
    ]
    return page(
        f"GEO-Bench: {amount(len(there), 'set')}",
        path,
        table(["set", "task", "classes", "images", "input settings"], rows),
        facts(("missing", listed(absent))),
        block("Try an encoder on all that are complete, look at one, or fetch one that is missing:", *lines),
    )
