"""Explains GEO-Bench: one set, or the folder of all; reads side files and the names of the bands of one image."""

import json
import os
from pathlib import Path

from multimae_eo.data.geobench import DEFAULT_PARTITION, PARTITIONS, GeoBench
from multimae_eo.data.geobench_sets import CLASSIFICATION, SEGMENTATION, SETS, GeoBenchSet
from multimae_eo.data.labelled import SPLITS, SplitName
from multimae_eo.errors import DataError
from multimae_eo.explain.feeds import fed, not_fed, settings
from multimae_eo.explain.page import amount, block, command, facts, listed, page, table

_IMAGE = ".hdf5"
# Those that the world of the package writes can be made, and need no download.
_MADE = "synthetic"
_SETS = sum(not name.startswith(_MADE) for name in SETS)


class Present(GeoBench):
    """A set with the images that are there, where these are not all that its partition names.

    problem: why it cannot be read as it is, none where it can; usable: whether an option mends that.
    """

    problem, usable = "", True

    def _read_ids(self, partition: str, *, allow_leaks: bool) -> dict[SplitName, tuple[str, ...]]:
        try:
            return super()._read_ids(partition, allow_leaks=allow_leaks)
        except DataError as error:
            self.problem = str(error)
        try:
            return super()._read_ids(partition, allow_leaks=True)
        except DataError:
            self.usable = False
        found = tuple(sorted(images(self.folder)))
        if not found:
            raise DataError(f"'{self.folder}' holds no image (*{_IMAGE}) of the set '{self.set.name}'.")
        return dict.fromkeys(SPLITS, found)

    def arrays(self) -> dict[str, str]:
        """The arrays of the first image that is there, and what each is."""
        present = images(self.folder)
        chosen = next((i for i in self.ids["train"] if i in present), None)
        with self._open(chosen or self.ids["train"][0]) as (file, _):
            arrays = {str(key): a for key, a in file.items() if hasattr(a, "shape")}
            return {key: f"{a.dtype} {' x '.join(map(str, a.shape))}" for key, a in arrays.items()}


def images(folder: Path) -> set[str]:
    """The ids of the images in a folder."""
    return {entry.name.removesuffix(_IMAGE) for entry in os.scandir(folder) if entry.name.endswith(_IMAGE)}


def explain_geobench(path: Path) -> str:
    """What a set of GEO-Bench, or the folder of all, holds; raises DataError where it is damaged or unknown."""
    name = path.resolve().name
    if name in SETS:
        return _set(path, SETS[name])
    if name in (CLASSIFICATION, SEGMENTATION):
        path = path.parent if path.name == name else path.resolve().parent
    there = [s for s in SETS.values() if (path / s.folder / s.name).is_dir()]
    if there:
        return _root(path, there)
    if (path / CLASSIFICATION).is_dir() or (path / SEGMENTATION).is_dir():
        raise DataError(
            f"'{path}' has the folders of GEO-Bench, but no set in them; expected any of {listed(SETS, 20)}."
        )
    raise DataError(
        f"'{path}' looks like a set of GEO-Bench, but is called '{name}'; a set is known by the name of its folder. "
        f"Rename it to one of {listed(SETS, 20)}."
    )


def _set(path: Path, described: GeoBenchSet) -> str:
    """One set. Where class 0 means no data, the user has to choose; the choice changes nothing that is told here."""
    found = Present(path, described.name, ignore_class0=False if described.class0_is_no_data else None)
    bands, arrays = found.about.bands, found.arrays()
    keys = {layer.band: layer.key for layer in described.layers}
    notes = [n for n in found.about.notes if not (described.class0_is_no_data and n.startswith("class 0 (no data)"))]
    others = [key for key in arrays if not any(key.startswith(k) for k in (*keys.values(), "label"))]
    bare = [key.replace(" ", "") for key in arrays]  # one band is spelt with spaces and without them
    there = [b for b, key in keys.items() if any(k.startswith(key.replace(" ", "")) for k in bare)]
    about = facts(
        ("splits", _splits(path)),
        ("partitions", _partitions(path)),
        ("classes", _classes(described)),
        ("images", f"{listed(dict.fromkeys(arrays.values()), 3)} px in the first of them"),
        ("units", _units(described)),
        ("bands", f"{' '.join(bands)} ({len(there)} of {len(bands)} found)"),
        ("not read", listed(others)),
        ("feeds", fed(bands)),
        ("lacks", not_fed(bands)),
        ("settings", ", ".join(settings(bands)) or "none of the paper's"),
        ("statistics", "" if (path / "band_stats.json").is_file() else "band_stats.json is missing"),
    )
    told = "\n".join(facts(("note", note)) for note in notes)
    problem = facts(("problem", found.problem)) if found.problem else ""
    title = f"GEO-Bench set {described.name}: {described.task}, {len(described.classes)} classes"
    return page(title, path, about, told, problem, _use(path, found))


def _ids(folder: Path) -> dict[str, list[str]] | None:
    """The images of each split as the default partition names them; none where it cannot be read."""
    try:
        named = json.loads((folder / f"{DEFAULT_PARTITION}_partition.json").read_text())
        return {split: [str(sample) for sample in named[split]] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _splits(path: Path) -> str:
    """The sizes of the splits as the partition says, and how many images are there."""
    named, there = _ids(path), images(path)
    if named is None:
        return f"not known; {amount(len(there), 'image')} in the folder"
    text = ", ".join(f"{split} {len(ids):,}" for split, ids in named.items())
    wanted = {sample for ids in named.values() for sample in ids}
    absent = len(wanted - there)
    return f"{text}; {absent:,} of {len(wanted):,} images are not in the folder" if absent else text


def _partitions(path: Path) -> str:
    """Those whose files are there, and those that are missing."""
    files = {p.name.split("_")[0] for p in path.glob("*_partition.json")}
    there, missing = [p for p in PARTITIONS if p in files], [p for p in PARTITIONS if p not in files]
    return (listed(there) or "none") + (f"; missing: {listed(missing)}" if missing else "")


def _classes(described: GeoBenchSet) -> str:
    text = listed((f"{c.code} {c.name}" for c in described.classes), 12)
    if described.class0_is_no_data:
        text += "; class 0 means no data: say with --data.ignore_class0 whether it counts"
    return text


def _units(described: GeoBenchSet) -> str:
    """Whether the statistics of a model fit."""
    if described.products:
        return f"those of {', '.join(described.products)}, so the statistics of a pre-trained model fit"
    return "its own, so only its own statistics fit"


def _use(path: Path, found: Present) -> str:
    """The commands that try an encoder on it, or fetch it."""
    described = found.set
    root = path.parent if path.parent.name == described.folder else path
    root = root.parent if root.name == described.folder else root
    if not found.usable:
        fetch = command("download", f"geobench:{described.name}", "--out", root)
        if described.name.startswith(_MADE):
            fetch = command("synthesize", "--layout", "geobench", "--out", root)
        return block("Fetch the set anew, or what is missing of it:", fetch)
    fitting = settings(layer.band for layer in described.layers)
    setting = next((s for s in ("multispectral", "rgb-only") if s in fitting), None)
    data = ["--checkpoint", "CHECKPOINT", "--data.root", root]
    choice = ["--data.ignore_class0", "true"] * described.class0_is_no_data
    choice += ["--data.allow_leaks", "true"] * bool(found.problem)
    lines = [command("probe", *data, "--data.name", described.name, *choice)]
    if setting is not None:
        config = f"configs/finetune/{described.name}_{setting}.yaml"
        lines.append(command("finetune", "--config", config, *data, *choice))
    return block("Try an encoder on it, frozen and fine-tuned (configs are in the repository):", *lines)


def _root(path: Path, there: list[GeoBenchSet]) -> str:
    """The folder of all sets: a row for each that is there, and how to get the others."""
    rows = []
    for described in there:
        folder = path / described.folder / described.name
        bands = [layer.band for layer in described.layers]
        rows.append(
            [
                described.name,
                described.task,
                str(len(described.classes)),
                _complete(folder),
                ", ".join(settings(bands)) or "none",
            ]
        )
    absent = [s.name for s in SETS.values() if s not in there and not s.name.startswith(_MADE)]
    made = " of the synthetic world" if len(absent) == _SETS else f", {_SETS - len(absent)} of the benchmark's twelve"
    run = command("geobench", "--checkpoint", "CHECKPOINT", "--data-root", path, "--datasets", "all")
    look = command("inspect", path / there[0].folder / there[0].name)
    fetch = command("download", "geobench:NAME", "--out", path)
    return page(
        f"GEO-Bench: {amount(len(there), 'set')}{made}",
        path,
        table(["set", "task", "classes", "images", "input settings"], rows),
        facts(("missing", listed(absent))),
        block("Try an encoder on all that are complete, or look at one:", run, look),
        block("Fetch one that is missing:", *[fetch] * bool(absent)),
    )


def _complete(folder: Path) -> str:
    """How many images are there, of how many."""
    named, there = _ids(folder), images(folder)
    if named is None:
        return f"{len(there):,}, no partition"
    wanted = {sample for ids in named.values() for sample in ids}
    return f"{len(wanted):,}" if wanted <= there else f"{len(wanted & there):,} of {len(wanted):,}"
