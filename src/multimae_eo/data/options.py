"""What the commands that write, fetch and check data take, as plain dataclasses; imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from multimae_eo.modalities import PAPER_INPUTS


@dataclass
class SynthesizeOptions:
    """Write a synthetic world; needs no download.

    Args:
        out: folder to write the data set into.
        layout: mmearth, for pre-training; geobench: three labelled data sets over the same tiles of another world;
            scene: GeoTIFFs of one place, to make maps of.
        name: of the data set or scene; those of geobench have names of their own.
        tiles: number of tiles; a scene is one.
        tile_px: edge of a tile, or of the scene, in pixels of 10 m.
        seed: decides the world.
        shifted: places far from the equator, in autumn, with three times the noise.
        workers: processes; default: one per core.
    """

    out: Path = Path("data")
    layout: Literal["mmearth", "geobench", "scene"] = "mmearth"
    name: str = "synthetic"
    tiles: int = 1000
    tile_px: int = 64
    seed: int = 0
    shifted: bool = False
    workers: int | None = None


@dataclass
class PackOptions:
    """Write a copy of a data set that trains faster: only the bands that are needed, uncompressed, in large files.

    Goes on where it was stopped; a complete copy is only checked.

    Args:
        data: folder of a data set in the MMEarth layout.
        out: folder to write the copy into, which gets the name of the data set.
        modalities: what is kept; default: the paper's six.
        tiles_per_shard: tiles in one file.
    """

    data: Path
    out: Path
    modalities: list[str] = field(default_factory=lambda: list(PAPER_INPUTS))
    tiles_per_shard: int = 4096


@dataclass
class DownloadOptions:
    """Download MMEarth or GEO-Bench; goes on where it was stopped, and only checks what is complete.

    Args:
        what: mmearth64, mmearth100k, mmearth, geobench, or one of its sets as geobench:NAME.
        out: folder to download into; MMEarth makes a folder of its own in it.
        only: names or patterns of files to take, such as "*.json" or m-eurosat; all by default.
        workers: files that come down at the same time.
        base: address of a mirror: the folder of MMEarth's files, or a Hub for GEO-Bench; the publishers' by default.
    """

    what: str
    out: Path = Path("data")
    only: list[str] = field(default_factory=list)
    workers: int = 4
    base: str | None = None


@dataclass
class VerifyOptions:
    """Read all of a data set and list what is damaged; exits with 3 where anything is.

    Args:
        data: a data set in the MMEarth layout (decoded), a packed copy (checksums), or GEO-Bench, one set or all.
        out: a CSV of all faults; the first few are printed.
        workers: processes; default: one per core.
    """

    data: Path
    out: Path | None = None
    workers: int | None = None
