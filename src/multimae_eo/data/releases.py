"""What can be downloaded: the files of MMEarth's three releases, and the zips of GEO-Bench v1 that the Hub lists.

Sources: the download scripts of MMEarth (github.com/vishalned/MMEarth-data), which publish no checksums; the list
of `recursix/geo-bench-1.0` on the Hugging Face Hub, which has the size and a checksum of every file.
"""

import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

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

    size: in bytes, 0 until a server has stated it. sha256: in hexadecimals, "" where none is published. unpack: the
    folder of the set that a zip holds. optional: whether a server may lack it.
    """

    url: str
    path: str
    size: int = 0
    sha256: str = ""
    unpack: str = ""
    optional: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


def mmearth_files(what: str, base: str | None) -> list[Remote]:
    """The files of a release of MMEarth, small ones first; base: the address of the folder that holds them."""
    name, share = MMEARTH[what]
    base = base or f"{ERDA}/{share}"
    ends = ("_splits.json", "_band_stats.json", "_tile_info.json", ".h5")
    files = [Remote(f"{base}/{name}{end}", f"{name}/{name}{end}") for end in ends]
    return [Remote(f"{base}/LICENSE-data", f"{name}/LICENSE-data", optional=True), *files]


def hub_list(base: str | None) -> str:
    """The address of the list of GEO-Bench's files; base: the address of a Hub."""
    return f"{base or HUB}/api/datasets/{GEOBENCH}/tree/main?recursive=true"


def hub_files(what: str, base: str | None, listed: bytes) -> list[Remote]:
    """The zips of GEO-Bench v1, or of one set, in the Hub's list (JSON); raises DataError where it has none."""
    wanted, files = what.partition(":")[2], []
    try:
        for entry in json.loads(listed):
            path, about = PurePosixPath(entry["path"]), entry.get("lfs") or {}
            folder, name = path.parts[0], path.stem
            if path.suffix == ".zip" and folder in FOLDERS and name in SETS and wanted in ("", name):
                url = f"{base or HUB}/datasets/{GEOBENCH}/resolve/main/{urllib.parse.quote(str(path))}"
                size, sha256 = int(entry["size"]), str(about.get("oid", ""))
                files.append(Remote(url, f"{folder}/{name}.zip", size, sha256, f"{folder}/{name}"))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"'{hub_list(base)}' answers with no list of files: {listed[:60]!r}.") from error
    if not files:
        raise DataError(
            f"'{hub_list(base)}' lists no zip of '{wanted or what}'. Has the data set moved? See docs/download.md for "
            "files fetched by hand."
        )
    return sorted(files, key=lambda file: file.path)


def chosen(files: Sequence[Remote], only: Sequence[str]) -> list[Remote]:
    """The files that a name or a pattern of `only` fits; all without any.

    A file has its path, the last part of it, and that without its ending as names.
    """
    names = {file: (file.path, file.name, PurePosixPath(file.path).stem) for file in files}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for known in names.values() for name in known):
            raise UnknownNameError("file", pattern, [file.name for file in files])
    return [file for file in files if not only or any(fnmatchcase(name, p) for p in only for name in names[file])]
