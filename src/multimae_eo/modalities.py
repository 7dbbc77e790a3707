"""Modalities: physical descriptions of what a model sees and predicts, and the names of bands; imports no torch.

A modality lists canonical bands, a unit, a grid and statistics per product (or classes). It names no file: data sets
say where each band lives. Adding a modality is one more entry in `MODALITIES`, and its bands' addresses in a reader.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from multimae_eo.errors import ConfigError, UnknownNameError

Standardization = Literal["band", "patch", "sample"]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per band, in the modality's unit."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Continuous:
    """A modality of measurements.

    bands: canonical band names; their order is the channel order.
    unit: of the values at every boundary of the package.
    statistics: {product: Statistics}; the order of the products defines the index in `Raster.product`.
    loss: "squared" or "absolute" reconstruction error (docs/model.md, section 1).
    stride: how many pixels of the 10 m frame one pixel of this modality spans along each axis.
    colormap: of a single band in pictures (three bands are shown as red, green and blue).
    """

    name: str
    bands: tuple[str, ...]
    unit: str
    statistics: Mapping[str, Statistics]
    loss: Literal["squared", "absolute"] = "squared"
    stride: int = 1
    colormap: str = "viridis"

    @property
    def channels(self) -> int:
        """Numbers per pixel in network space."""
        return len(self.bands)

    @property
    def products(self) -> tuple[str, ...]:
        return tuple(self.statistics)


@dataclass(frozen=True)
class MapClass:
    """One class of a map: its code in files, its name, and its colour as #rrggbb."""

    code: int
    name: str
    color: str


@dataclass(frozen=True)
class Categorical:
    """A modality of classes; values at every boundary are class codes, not indices.

    stride: 4 means that labels live on the 40 m grid.
    """

    name: str
    bands: tuple[str, ...]
    classes: tuple[MapClass, ...]
    products: tuple[str, ...]
    stride: int = 1
    unit: str = field(default="class", init=False)

    @property
    def channels(self) -> int:
        """Numbers per pixel in network space: one per class."""
        return len(self.classes)

    @property
    def codes(self) -> tuple[int, ...]:
        return tuple(c.code for c in self.classes)


Modality = Continuous | Categorical


# ESA WorldCover 2020 v100: codes, names and colours of its product user manual.
WORLDCOVER = (
    MapClass(10, "Tree cover", "#006400"),
    MapClass(20, "Shrubland", "#ffbb22"),
    MapClass(30, "Grassland", "#ffff4c"),
    MapClass(40, "Cropland", "#f096ff"),
    MapClass(50, "Built-up", "#fa0000"),
    MapClass(60, "Bare / sparse vegetation", "#b4b4b4"),
    MapClass(70, "Snow and ice", "#f0f0f0"),
    MapClass(80, "Permanent water bodies", "#0064c8"),
    MapClass(90, "Herbaceous wetland", "#0096a0"),
    MapClass(95, "Mangroves", "#00cf75"),
    MapClass(100, "Moss and lichen", "#fae6a0"),
)

REFLECTANCE = "reflectance x 10000"


def _sentinel2(name: str, bands: tuple[str, ...], l1c: Statistics, l2a: Statistics) -> Continuous:
    return Continuous(name, bands, REFLECTANCE, {"L1C": l1c, "L2A": l2a})


# Statistics: MMEarth64 v001 (data_1M_v001_64_band_stats.json, CC BY 4.0, Nedungadi et al., ECCV 2024).
_ENTRIES: tuple[Modality, ...] = (
    _sentinel2(
        "rgb",
        ("B04", "B03", "B02"),
        l1c=Statistics(
            (1633.6041005007844, 1561.2433627865414, 1656.9923384425733),
            (1734.9206729983894, 1474.3747757041376, 1575.4239525583005),
        ),
        l2a=Statistics(
            (1899.1848715975957, 1720.3688077425966, 1479.9521800379623),
            (2354.181051828758, 2256.8997709659416, 2375.872101251672),
        ),
    ),
    _sentinel2(
        "red_edge",
        ("B05", "B06", "B07"),
        l1c=Statistics(
            (1846.642924880421, 2422.1354550099322, 2706.1684786306714),
            (1697.1412804437439, 1584.959816138674, 1577.9910344404889),
        ),
        l2a=Statistics(
            (2253.9309600057886, 2808.2001963620132, 3003.424149045887),
            (2292.99569489449, 2033.2166835293804, 1920.1736418230105),
        ),
    ),
    _sentinel2(
        "swir",
        ("B11", "B12"),
        l1c=Statistics((2154.0573745085508, 1464.8020890030184), (1311.5885770761618, 1140.1057025823181)),
        l2a=Statistics((2399.086213373806, 1811.7986415136786), (1473.224812450967, 1390.6781165633136)),
    ),
    _sentinel2(
        "nir",
        ("B8A", "B08"),
        l1c=Statistics((2907.509651871235, 2620.484567631748), (1560.2251591506092, 1519.2164490452863)),
        l2a=Statistics((3149.5364927329806, 3110.840562275062), (1816.6152354201365, 1988.1938283738782)),
    ),
    Continuous(
        "elevation",
        ("dem",),
        "m",
        {"ASTER": Statistics((750.3643697290039,), (975.1516800116567,))},
        loss="absolute",
        colormap="terrain",
    ),
    Categorical("land_cover", ("worldcover",), WORLDCOVER, products=("WorldCover",), stride=4),
    Continuous(
        "sar",
        ("VV", "VH"),
        "dB",
        {
            "descending": Statistics((-11.754322832475555, -19.187027531976366), (5.01231147683192, 6.296322894653895)),
            "ascending": Statistics((-11.673448681503809, -19.04684937464606), (5.1287824026286755, 6.432180454976982)),
        },
        colormap="gray",
    ),
    Continuous(
        "canopy_height",
        ("chm",),
        "m",
        {"ETH": Statistics((8.039890791015624,), (9.703873390733511,))},
        loss="absolute",
        colormap="YlGn",
    ),
)

MODALITIES: Mapping[str, Modality] = {m.name: m for m in _ENTRIES}

# What the paper pre-trains on, as views (docs/model.md, section 5): six modalities, and RGB standardised per patch.
PAPER_INPUTS = ("rgb", "red_edge", "swir", "nir", "elevation:sample", "land_cover")
PAPER_TARGETS = (*PAPER_INPUTS, "rgb:patch")
# What the recipes of pre-training feed. Land cover as a target alone: docs/results.md, "Roles of land cover".
RECIPE_INPUTS: Mapping[str, tuple[str, ...]] = {
    "paper": PAPER_INPUTS,
    "v2": tuple(view for view in PAPER_INPUTS if view != "land_cover"),
}


def fed_by(bands: Iterable[str], modalities: Mapping[str, Modality] = MODALITIES) -> tuple[str, ...]:
    """The modalities that some bands can feed, in their own order: those of which at least half of the bands are there.

    Of fewer bands no token would ever be valid (docs/design.md, A).
    """
    there = set(bands)
    return tuple(name for name, m in modalities.items() if 2 * len(there & set(m.bands)) >= len(m.bands))


@dataclass(frozen=True)
class InputSetting:
    """A choice of modalities that results are compared by."""

    modalities: tuple[str, ...]

    def fits(self, bands: Iterable[str]) -> bool:
        """Whether these bands can feed every modality."""
        return set(self.modalities) <= set(fed_by(bands))


# The paper's three (docs/model.md, section 8).
INPUT_SETTINGS: Mapping[str, InputSetting] = {
    "rgb-only": InputSetting(("rgb",)),
    "multispectral": InputSetting(("rgb", "red_edge", "swir", "nir")),
    "rgb-relief": InputSetting(("rgb", "red_edge", "elevation")),
}


@dataclass(frozen=True)
class View:
    """A modality and how it is standardised: by its statistics ("band"), per patch, or per sample on top of them.

    Written as a string: "rgb", "rgb:patch", "elevation:sample".
    """

    modality: str
    standardize: Standardization = "band"

    def __str__(self) -> str:
        return self.modality if self.standardize == "band" else f"{self.modality}:{self.standardize}"


def parse_view(text: str, modalities: Mapping[str, Modality] = MODALITIES) -> View:
    """Read a view from its string; raises UnknownNameError or ConfigError."""
    name, _, how = text.partition(":")
    modality = get_modality(name, modalities)
    how = how or "band"
    if how not in ("band", "patch", "sample"):
        raise UnknownNameError(f"standardisation of view '{text}':", how, ("band", "patch", "sample"))
    if how != "band" and isinstance(modality, Categorical):
        raise ConfigError(f"view '{text}': classes are not standardised; write '{name}'.")
    return View(name, how)  # type: ignore[arg-type]


def get_modality(name: str, modalities: Mapping[str, Modality] = MODALITIES) -> Modality:
    """Look a modality up; raises UnknownNameError with the nearest name."""
    if name not in modalities:
        raise UnknownNameError("modality", name, modalities)
    return modalities[name]


# Other spellings of bands that are met in files and in other libraries, in lower case.
_ALIASES: dict[str, tuple[str, ...]] = {
    "B01": ("b1", "coastal", "coastal_aerosol", "coastal aerosol"),
    "B02": ("b2", "blue"),
    "B03": ("b3", "green"),
    "B04": ("b4", "red"),
    "B05": ("b5", "red_edge_1", "rededge1"),
    "B06": ("b6", "red_edge_2", "rededge2"),
    "B07": ("b7", "red_edge_3", "rededge3"),
    "B08": ("b8", "nir_broad", "nir"),
    "B8A": ("b08a", "nir_narrow", "nir08"),
    "B09": ("b9", "water_vapor", "water_vapour", "nir09"),
    "B10": ("cirrus",),
    "B11": ("swir_1", "swir16"),
    "B12": ("swir_2", "swir22"),
    "dem": ("elevation", "height"),
    "worldcover": ("lulc", "land_cover", "landcover"),
    "chm": ("canopy_height",),
}
BANDS = tuple(dict.fromkeys([*_ALIASES, *(band for m in _ENTRIES for band in m.bands)]))
_CANONICAL = {alias: band for band in BANDS for alias in (band.lower(), *_ALIASES.get(band, ()))}


_SENTINEL2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09")
# What images are called in TerraMesh and TerraTorch: their bands in order, and the product that the name says.
IMAGE_KEYS: Mapping[str, tuple[tuple[str, ...], str | None]] = {
    "S2L1C": ((*_SENTINEL2, "B10", "B11", "B12"), "L1C"),
    "S2L2A": ((*_SENTINEL2, "B11", "B12"), "L2A"),
    "S1GRD": (("VV", "VH"), None),
    "S1RTC": (("VV", "VH"), None),
    "DEM": (("dem",), None),
    "LULC": (("worldcover",), None),
}


def lacks(modality: Modality, product: str) -> bool:
    """Whether a product is one that the package describes for a modality, of whose products this one has others only.

    So it is where a model was pre-trained on one product: another one must not be standardised as that.
    """
    described = MODALITIES[modality.name].products if modality.name in MODALITIES else ()
    return product in described and product not in modality.products and bool({*described} & {*modality.products})


def find_band(name: str) -> str | None:
    """The canonical name of a band, or None."""
    return _CANONICAL.get(name.strip().lower())


def canonical_band(name: str, own: Collection[str] = ()) -> str:
    """The canonical name of a band, e.g. "B02" for "B2", "blue" or "BLUE"; raises UnknownNameError.

    own: further ones, which a model of modalities that are not described here has.
    """
    band = name if name in own else find_band(name)
    if band is None:
        raise UnknownNameError("band", name, dict.fromkeys((*BANDS, *own)))
    return band


def canonical_bands(names: Iterable[str], own: Collection[str] = ()) -> tuple[str, ...]:
    """Canonical names, in order; raises UnknownNameError, or ConfigError where two names mean one band."""
    names = list(names)
    bands = tuple(canonical_band(name, own) for name in names)
    for i, band in enumerate(bands):
        if band in bands[:i]:
            raise ConfigError(
                f"bands '{names[bands.index(band)]}' and '{names[i]}' are both {band}; give each band once."
            )
    return bands
