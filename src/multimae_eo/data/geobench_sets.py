"""The GEO-Bench v1 sets: where each band lives in the files, what its numbers mean, what their metadata get wrong.

Sources: the converters of the benchmark (github.com/ServiceNow/geo-bench), its issues 28 and 29, and published files.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from multimae_eo.config import TaskName
from multimae_eo.data.geobench_names import (
    BIGEARTHNET,
    CASHEW,
    CHESAPEAKE,
    EUROSAT,
    FORESTNET,
    LOCAL_CLIMATE_ZONES,
    SOUTH_AFRICA,
    SYNTHETIC,
)
from multimae_eo.data.labelled import numbered_classes
from multimae_eo.modalities import MapClass

CLASSIFICATION, SEGMENTATION = "classification_v1.0", "segmentation_v1.0"


@dataclass(frozen=True)
class Layer:
    """One band of a set: `key` in the file (which may have a date behind it) and the canonical `band` that it is.

    scale: what the numbers are multiplied by to have the package's unit. decibel: they are intensities, to be read as
    10 log10. no_data: the number in the file that means none; non-finite numbers always do.
    optional: where the file lacks it or has it on another grid, it is invalid rather than an error.
    """

    key: str
    band: str
    scale: float = 1.0
    decibel: bool = False
    no_data: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class GeoBenchSet:
    """One set: `layers` in the order of its channels, `classes` in the order of their indices.

    size_px: the usual edge of an image, which no file is held to. products: see `labelled.Description`.
    class0_is_no_data: whether class 0 may be left out, so that the user has to decide. notes: go into every result.
    """

    name: str
    folder: str
    task: TaskName
    size_px: int
    layers: tuple[Layer, ...]
    classes: tuple[MapClass, ...]
    products: tuple[str, ...] = ()
    class0_is_no_data: bool = False
    notes: tuple[str, ...] = ()


_KEYS = {
    "B01": "01 - Coastal aerosol",
    "B02": "02 - Blue",
    "B03": "03 - Green",
    "B04": "04 - Red",
    "B05": "05 - Vegetation Red Edge",
    "B06": "06 - Vegetation Red Edge",
    "B07": "07 - Vegetation Red Edge",
    "B08": "08 - NIR",
    "B8A": "08A - Vegetation Red Edge",
    "B09": "09 - Water vapour",
    "B10": "10 - SWIR - Cirrus",
    "B11": "11 - SWIR",
    "B12": "12 - SWIR",
}


def _layers(keys: Mapping[str, str], *, no_data: float | None = None, scale: float = 1.0) -> tuple[Layer, ...]:
    """From {band: key}."""
    return tuple(Layer(key, band, scale=scale, no_data=no_data) for band, key in keys.items())


def _without(*bands: str) -> dict[str, str]:
    return {band: key for band, key in _KEYS.items() if band not in bands}


_COLOURS = {"B04": "Red", "B03": "Green", "B02": "Blue"}
_EIGHT_BIT = "8-bit numbers, not reflectance: only the set's own statistics fit"
_RGB_OF_AIRCRAFT = "pixels of about 10 cm, which are read as if they were 10 m"

_EUROSAT = GeoBenchSet(
    "m-eurosat",
    CLASSIFICATION,
    "classification",
    64,
    _layers(
        {
            **_without("B8A", "B09", "B10", "B11", "B12"),
            "B09": _KEYS["B8A"],
            "B10": _KEYS["B09"],
            "B11": _KEYS["B10"],
            "B12": _KEYS["B11"],
            "B8A": _KEYS["B12"],
        },
        no_data=0,
    ),
    numbered_classes(EUROSAT),
    products=("L1C",),
    notes=(
        "band names corrected: what the files call 08A, 09, 10, 11 and 12 is B09, B10, B11, B12 and B8A",
        "class names corrected: in alphabetical order of EuroSAT's folders",
    ),
)

_SO2SAT = GeoBenchSet(
    "m-so2sat",
    CLASSIFICATION,
    "classification",
    32,
    (
        *_layers(_without("B01", "B09", "B10"), scale=10_000),
        Layer("06 - VV.LEE Filtered", "VV", decibel=True),
        Layer("05 - VH.LEE Filtered", "VH", decibel=True),
    ),
    numbered_classes(LOCAL_CLIMATE_ZONES),
    products=("L1C", "descending"),
    notes=(
        "reflectance multiplied by 10000, in the images and in the statistics",
        "VV and VH are the Lee-filtered intensities as 10 log10, with statistics of up to 1000 training images; the "
        "other six radar channels are left out; the direction of the pass is not known",
    ),
)

_BIGEARTHNET = GeoBenchSet(
    "m-bigearthnet",
    CLASSIFICATION,
    "multilabel",
    120,
    _layers(_without("B10"), no_data=0),
    numbered_classes(BIGEARTHNET),
    products=("L2A",),
)

_BRICK_KILN = GeoBenchSet(
    "m-brick-kiln",
    CLASSIFICATION,
    "classification",
    64,
    _layers(
        {
            **_without("B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
            "B07": _KEYS["B06"],
            "B8A": _KEYS["B07"],
            "B08": _KEYS["B08"],
            "B11": _KEYS["B8A"],
            "B12": _KEYS["B09"],
        },
        no_data=0,
    ),
    numbered_classes(("Not brick kiln", "Brick kiln")),
    products=("L2A",),
    notes=(
        "band names corrected: what the files call 06, 07, 08A and 09 is B07, B8A, B11 and B12; 10, 11 and 12 are a "
        "true-colour picture and are left out; there is no B06, B09 or B10",
    ),
)

_FORESTNET = GeoBenchSet(
    "m-forestnet",
    CLASSIFICATION,
    "classification",
    256,
    _layers(
        {
            **{"B04": "04 - Red", "B03": "03 - Green", "B02": "02 - Blue"},
            **{"B8A": "05 - NIR", "B11": "06 - SWIR1", "B12": "07 - SWIR2"},
        }
    ),
    numbered_classes(FORESTNET),
    notes=(
        "Landsat 8, read as the Sentinel-2 bands nearest in wavelength (near infrared as B8A), at 15 m",
        _EIGHT_BIT,
        "the published images are 256 px, not the 332 px of task_specs.pkl",
    ),
)

_PV4GER = GeoBenchSet(
    "m-pv4ger",
    CLASSIFICATION,
    "classification",
    256,
    _layers(_COLOURS),
    numbered_classes(("No solar panel", "Solar panel")),
    notes=(
        _EIGHT_BIT,
        _RGB_OF_AIRCRAFT,
        "the published images are 256 px, not the 320 px of task_specs.pkl",
    ),
)

_CASHEW = GeoBenchSet(
    "m-cashew-plant",
    SEGMENTATION,
    "segmentation",
    256,
    _layers(_without("B10"), no_data=0),
    numbered_classes(CASHEW),
    products=("L2A",),
    class0_is_no_data=True,
    notes=("the splits share ground: overlapping chips on 25 dates were split at random, so scores are too high",),
)

_SOUTH_AFRICA = GeoBenchSet(
    "m-SA-crop-type",
    SEGMENTATION,
    "segmentation",
    256,
    _layers(_without("B10")),
    numbered_classes(SOUTH_AFRICA),
    class0_is_no_data=True,
    notes=(_EIGHT_BIT,),
)

_CHESAPEAKE = GeoBenchSet(
    "m-chesapeake",
    SEGMENTATION,
    "segmentation",
    256,
    _layers({**_COLOURS, "B08": "NearInfrared"}),
    numbered_classes(CHESAPEAKE),
    notes=(
        "numbers from 0 to 1, not reflectance: only the set's own statistics fit",
        "class names corrected: class 0 is no data, 1 water, 2 trees, 4 barren (as the images show; task_specs.pkl "
        "starts with water at 0); class 0 is scored like any other",
        "pixels of 1 m, which are read as if they were 10 m",
    ),
)

_PV4GER_SEG = dataclasses.replace(
    _PV4GER,
    name="m-pv4ger-seg",
    folder=SEGMENTATION,
    task="segmentation",
    size_px=320,
    classes=numbered_classes(("Background", "Solar panel")),
    notes=(_EIGHT_BIT, _RGB_OF_AIRCRAFT, "names of the classes assumed"),
)

_NZ_CATTLE = dataclasses.replace(
    _PV4GER_SEG,
    name="m-nz-cattle",
    size_px=500,
    classes=numbered_classes(("No cattle", "Cattle")),
    notes=(_EIGHT_BIT, _RGB_OF_AIRCRAFT),
)

_NEON_TREE = GeoBenchSet(
    "m-NeonTree",
    SEGMENTATION,
    "segmentation",
    400,
    (*_layers(_COLOURS), Layer("CanopyHeightModel", "chm", optional=True)),
    numbered_classes(("No tree", "Tree")),
    products=("ETH",),
    notes=(
        f"colours: {_EIGHT_BIT}",
        _RGB_OF_AIRCRAFT,
        "the canopy height model is invalid where it is missing or not on the grid of the colours; the 369 narrow "
        "bands are left out",
    ),
)

# Written by the package itself (docs/synthetic.md); here the names of the bands are right.
_SYNTHETIC_LAYERS = (
    *_layers(_without("B10"), no_data=0),
    Layer("VV", "VV", no_data=math.nan),
    Layer("VH", "VH", no_data=math.nan),
    Layer("dem", "dem", no_data=-32768),
)
_SYNTHETIC_CLASS = GeoBenchSet(
    "synthetic-class",
    CLASSIFICATION,
    "classification",
    64,
    _SYNTHETIC_LAYERS,
    SYNTHETIC,
    products=("L2A", "ASTER", "descending"),
    notes=("made up by the synthetic world: compare models with it, and draw no conclusion about the Earth",),
)

_ALL = (
    *(_EUROSAT, _SO2SAT, _BIGEARTHNET, _BRICK_KILN, _FORESTNET, _PV4GER),
    *(_CASHEW, _SOUTH_AFRICA, _CHESAPEAKE, _PV4GER_SEG, _NZ_CATTLE, _NEON_TREE),
    _SYNTHETIC_CLASS,
    dataclasses.replace(_SYNTHETIC_CLASS, name="synthetic-multilabel", task="multilabel"),
    dataclasses.replace(_SYNTHETIC_CLASS, name="synthetic-map", folder=SEGMENTATION, task="segmentation"),
)

SETS: Mapping[str, GeoBenchSet] = {s.name: s for s in _ALL}
