"""The options of importing GeoTIFFs, as plain dataclasses; imports neither h5py nor rasterio nor torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# A bare on or off in YAML 1.1 is a boolean, so booleans are taken too.
Offset = Literal["on", "off"] | bool
BaselineOffset = Literal["auto", "on", "off"] | bool
OrbitPass = Literal["descending", "ascending"]


@dataclass
class SourceOptions:
    """One kind of GeoTIFF, one file per place.

    Args:
        files: path relative to the root, with {place} where the place's name stands ("S2L2A/{place}.tif"), and the
            wildcards *, ? and **/; without {place} a place is called like its file.
        bands: band names in the order of the file, "-" for one to leave out; the file's band descriptions by default.
        nodata: overrides the no-data value (and mask) that the file states.
        scale: factor from the file's values to reflectance x 10000, metres or dB.
        classes: land cover only: code in the file -> WorldCover code, 0 for no data; WorldCover's codes by default.
        optional: a place may lack this file.
    """

    files: str
    bands: list[str] | None = None
    nodata: float | None = None
    scale: float = 1.0
    classes: dict[int, int] | None = None
    optional: bool = False


@dataclass
class ImportOptions:
    """Import co-registered GeoTIFFs as a data set in the MMEarth layout.

    Args:
        out: folder to write the data set's folder into.
        name: of the data set and its folder.
        root: the folder to which the files' templates are relative.
        s2_l1c: Sentinel-2 L1C; this or s2_l2a must be given.
        s2_l2a: Sentinel-2 L2A.
        dem: heights in m.
        worldcover: land cover classes.
        s1: Sentinel-1 in dB.
        s1_pass: orbit direction: descending is near 6 h of local solar time, ascending near 18 h.
        s1_pass_of: orbit direction of single places.
        tile_px: edge of a tile in pixels.
        stride_px: step from tile to tile in pixels; tile_px by default, so that tiles do not overlap.
        min_valid: a tile is kept if at least this fraction of its Sentinel-2 values was measured, and any.
        baseline_offset: whether the files carry the +1000 of ESA's processing baseline 04; auto judges every file.
        baseline_offset_of: the same for single images, "<place>_L1C" or "<place>_L2A".
        date: of the Sentinel-2 images, YYYY-MM-DD; by default a tag of the files.
        dates: of single places.
        places: which places to import; all by default.
        splits: place -> train, val or test; train where not named.
    """

    out: Path = Path("data")
    name: str = "imported"
    root: Path = Path(".")
    s2_l1c: SourceOptions | None = None
    s2_l2a: SourceOptions | None = None
    dem: SourceOptions | None = None
    worldcover: SourceOptions | None = None
    s1: SourceOptions | None = None
    s1_pass: OrbitPass = "descending"
    s1_pass_of: dict[str, OrbitPass] = field(default_factory=dict)
    tile_px: int = 64
    stride_px: int | None = None
    min_valid: float = 0.5
    baseline_offset: BaselineOffset = "auto"
    baseline_offset_of: dict[str, Offset] = field(default_factory=dict)
    date: str | None = None
    dates: dict[str, str] = field(default_factory=dict)
    places: list[str] | None = None
    splits: dict[str, str] = field(default_factory=dict)

    def offset_of(self, image: str) -> Literal["auto", "on", "off"]:
        """What is said of the baseline offset of an image, "<place>_L1C" or "<place>_L2A"."""
        said = self.baseline_offset_of.get(image, self.baseline_offset)
        if isinstance(said, bool):
            return "on" if said else "off"
        return said
