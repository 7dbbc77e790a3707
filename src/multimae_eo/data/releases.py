"""What can be downloaded: the files of MMEarth's three releases, and those of GEO-Bench v1 as the Hub lists them.

Sources: the download scripts of MMEarth (github.com/vishalned/MMEarth-data), which publish no checksums; the list
of `recursix/geo-bench-1.0` on the Hugging Face Hub, which has the size and a checksum of every file.
"""

import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from multimae_eo.errors import DataError, UnknownNameError

ERDA = "https://sid.erda.dk/share_redirect"
HUB = "https://huggingface.co"
GEOBENCH = "recursix/geo-bench-1.0"

# What is asked for -> name of the data set, and the share on ERDA that holds its files.
MMEARTH = {
    "mmearth64": ("data_1M_v001_64", "bX5JzPuwJF"),
    "mmearth100k": ("data_100k_v001", "CoaUojVXzu"),
    "mmearth": ("data_1M_v001", "ChL1BoVEyH"),
}
FOLDERS = ("classification_v1.0", "segmentation_v1.0")
SETS = (
    *("m-eurosat", "m-so2sat", "m-bigearthnet", "m-brick-kiln", "m-forestnet", "m-pv4ger"),
    *("m-cashew-plant", "m-SA-crop-type", "m-chesapeake", "m-pv4ger-seg", "m-nz-cattle", "m-NeonTree"),
)
NAMES = (*MMEARTH, "geobench", *(f"geobench:{name}" for name in SETS))


@dataclass(frozen=True)
class Remote:
    """One file: its address, and its path below the folder that is downloaded into.

    size: in bytes, None until a server has stated it. digest: "sha256:HEX", "git:HEX" (SHA-1 as git takes it), or ""
    where none is published. unpack: the folder of the set that a zip holds. optional: whether a server may lack it.
    """

    url: str
    path: str
    size: int | None = None
    digest: str = ""
    unpack: str = ""
    optional: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


def check_name(what: str) -> None:
    """Raise UnknownNameError where `what` is none of NAMES."""
    if what not in NAMES:
        raise UnknownNameError("data set", what, NAMES)


def mmearth_files(what: str, base: str | None) -> list[Remote]:
    """The files of a release of MMEarth, small ones first; base: the address of the folder that holds them."""
    name, share = MMEARTH[what]
    base = base or f"{ERDA}/{share}"
    ends = ("_splits.json", "_band_stats.json", "_tile_info.json", ".h5")
    files = [Remote(f"{base}/{name}{end}", f"{name}/{name}{end}") for end in ends]
    return [Remote(f"{base}/LICENSE-data", f"{name}/LICENSE-data", optional=True), *files]


def hub_list(base: str | None) -> str:
    """The address of the first page of the list of GEO-Bench's files; base: the address of a Hub."""
    return f"{base or HUB}/api/datasets/{GEOBENCH}/tree/main?recursive=true"


def hub_files(what: str, base: str | None, entries: Iterable[Any]) -> list[Remote]:
    """The files of GEO-Bench v1, or of one set, from the entries of the Hub's list.

    Zips become folders NAME beside them, whether they are called NAME.zip or lie in a folder NAME. Raises DataError
    where the list makes no sense or has no such file.
    """
    wanted, files = what.partition(":")[2], []
    for entry in entries:
        try:
            if entry["type"] != "file":
                continue
            path, size, digest = str(entry["path"]), int(entry["size"]), f"git:{entry['oid']}"
            if entry.get("lfs"):
                size, digest = int(entry["lfs"]["size"]), f"sha256:{entry['lfs']['oid']}"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"'{hub_list(base)}' answers with an entry that makes no sense: {entry!r:.120}. Give another --base."
            ) from error
        folder, *rest = parts_of(path, hub_list(base))
        if folder not in FOLDERS or not rest or (wanted and set_of(rest[0]) != wanted):
            continue
        unpack = f"{folder}/{set_of(rest[0])}" if path.lower().endswith(".zip") else ""
        url = f"{base or HUB}/datasets/{GEOBENCH}/resolve/main/{urllib.parse.quote(path)}"
        files.append(Remote(url, path, size, digest, unpack))
    if not files:
        raise DataError(
            f"'{hub_list(base)}' lists no file of '{wanted or what}'. Has the data set moved? See docs/download.md for "
            "files fetched by hand."
        )
    return sorted(files, key=lambda file: file.path)


def set_of(name: str) -> str:
    """The set that a file or folder belongs to by its name: m-eurosat for m-eurosat, m-eurosat.zip, m-eurosat_1.zip."""
    known = [s for s in SETS if name == s or name.startswith((f"{s}.", f"{s}_"))]
    return max(known, key=len, default=PurePosixPath(name).stem)


def parts_of(path: str, where: str) -> list[str]:
    """The parts of a path that a server or a zip names; raises DataError where it would lead out of its folder."""
    parts = path.split("/")
    windows = PureWindowsPath(path)
    if windows.drive or windows.root or "\\" in path or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise DataError(f"'{where}' names the path {path!r}, which leads out of its folder; nothing of it is written.")
    return parts


def chosen(files: Sequence[Remote], only: Sequence[str]) -> list[Remote]:
    """The files that a name or a pattern of `only` fits; all without any.

    A file has its path, the last part of it, and that without its ending as names.
    """
    names = {file: (file.path, file.name, PurePosixPath(file.path).stem) for file in files}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for known in names.values() for name in known):
            raise UnknownNameError("file", pattern, [file.name for file in files])
    return [file for file in files if not only or any(fnmatchcase(name, p) for p in only for name in names[file])]
