"""Images as users have them into what the model sees: bands by name, units stated and checked, products by name."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from multimae_eo.config import ModelConfig
from multimae_eo.errors import BatchError, ConfigError, DataError, SizeError, UnknownNameError
from multimae_eo.modalities import (
    IMAGE_KEYS,
    MODALITIES,
    REFLECTANCE,
    Categorical,
    Modality,
    canonical_bands,
    fed_by,
    find_band,
    lacks,
)
from multimae_eo.raster import Batch, Majority, Raster, by_modality, pad
from multimae_eo.units import DARKEST, EIGHT_BIT, looks_like

Units = Literal["dn", "reflectance"]
# What a number of each unit is in reflectance x 10000.
FACTORS: Mapping[str, float] = {"dn": 1.0, "reflectance": 10_000.0}
# Stands for a channel that is to be left out.
SKIPPED = "-"
# What xarray's dimensions of rows and of columns are called.
SPATIAL = (("y", "lat", "latitude", "northing"), ("x", "lon", "longitude", "easting"))
# Values of a modality that are looked at to judge its unit.
JUDGED = 100_000
# torch computes little with these.
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


class UnusedBandsWarning(UserWarning):
    """Bands were given that the model has no input for."""


class Channel(NamedTuple):
    """One band of some images [b, h, w], its validity, and the product that its key names, if any."""

    values: Tensor
    valid: Tensor
    product: str | None = None


def is_batch(images: object) -> TypeGuard[Batch]:
    """Whether these are rasters already."""
    return isinstance(images, Mapping) and all(isinstance(v, Raster) for v in images.values())


def read_images(
    images: object,
    config: ModelConfig,
    *,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    units: Units | None = None,
    product: str | Sequence[str] | None = None,
    nodata: float | None = 0,
    offset: float = 0,
    judge: bool = True,
    device: torch.device | None = None,
) -> Batch:
    """Arrays of named bands as the rasters of a model's inputs (docs/inputs.md).

    images: [b, c, h, w] or [c, h, w]: a tensor, a NumPy (also masked) array, or xarray with a dimension "band"; or
        several by key: names of modalities (all of their bands), of bands ([h, w] or [b, h, w]), or those of TerraMesh
        ("S2L2A", "S2L1C", "S1GRD", "DEM", ...). NaN is not measured. Maps of classes may be on their own coarser grid.
    bands: what the channels are, in their order, under any of their known names; "-" leaves one out. By key where there
        are several. Not needed where keys or xarray's coordinate name them.
    units: of the Sentinel-2 bands: "dn" (reflectance x 10000) or "reflectance"; heights are metres, radar is dB.
    product: what the values are of, so that they are standardised rightly: "L1C" or "L2A", "ascending" or "descending";
        several where the modalities need them.
    nodata: value of Sentinel-2 bands that means not measured. offset: taken off them first, in dn: 1000 for images as
        ESA delivers them since processing baseline 04.
    judge: look whether the values can be of their unit, which waits for the device they are on.
    Raises UnknownNameError for unknown names, ConfigError for those given twice or what is left open, DataError for
    values that look like another unit, BatchError or SizeError for shapes. Bands that no input has are warned of.
    """
    if units not in (*FACTORS, None):
        raise UnknownNameError("unit", str(units), FACTORS)
    channels = _channels(images, config, bands)
    named = {name: config.modalities[name] for name in config.input_modalities}
    fed = fed_by(channels, named)
    used = {band for name in fed for band in named[name].bands}
    if not fed:
        raise BatchError(
            f"bands {' '.join(channels)} feed no input of the model: at least half of the bands of one are needed. "
            "Inputs: " + "; ".join(f"{name} ({' '.join(m.bands)})" for name, m in named.items()) + "."
        )
    if unused := [band for band in channels if band not in used]:
        warnings.warn(f"the model has no input for {' '.join(unused)}; left out.", UnusedBandsWarning, stacklevel=4)
    _check_products(product, list(named.values()))
    frame = max(tuple(channels[band].values.shape[-2:]) for band in used if band in channels)
    batch = {}
    for name in fed:
        raster = _raster(named[name], channels, product, units, nodata, offset, judge)
        at_frame = (
            isinstance(named[name], Categorical) and named[name].stride > 1 and tuple(raster.values.shape[-2:]) == frame
        )
        batch[name] = _own_grid(named[name], raster) if at_frame else raster
    sizes = {name: len(r.values) for name, r in batch.items()}
    if len(set(sizes.values())) > 1:
        raise BatchError(f"the images have different numbers of samples: {sizes}.")
    return {name: Raster(*(t.to(device) for t in raster)) for name, raster in batch.items()}


def _channels(images: object, config: ModelConfig, bands: Any) -> dict[str, Channel]:
    """Every band that is given, by its canonical name."""
    if hasattr(images, "data_vars"):  # an xarray Dataset: its variables are the keys
        images = {str(name): images[name] for name in images.data_vars}  # type: ignore[index]
    if not isinstance(images, Mapping):
        array, names = _array(images, None if bands is None else list(bands))
        if names is None:
            raise ConfigError('the bands of the images are not named; pass bands=["B02", "B03", ...] in their order.')
        return _split(array, names, None, "the images", config)
    stated = {} if bands is None else bands
    if not isinstance(stated, Mapping):
        keys = ", ".join(map(str, images))
        raise ConfigError(
            f"bands are one list, but the images are {keys}; pass one for each key that does not name its own."
        )
    for key in stated.keys() - images.keys():  # one that is missing may have bands all the same
        if other := next((image for image in images if str(image).upper() == str(key).upper()), None):
            raise ConfigError(f"bands are given for '{key}', but the key of the images is '{other}'; write both alike.")
    found: dict[str, Channel] = {}
    for key, value in images.items():
        array, own = _array(value, stated.get(key))
        _, product = IMAGE_KEYS.get(str(key).upper(), ((), None))
        names = (
            _names(str(key), array, config, [str(other) for other in images if other != key]) if own is None else own
        )
        for band, channel in _split(array, names, product, f"'{key}'", config).items():
            if band in found:
                raise ConfigError(f"'{key}' gives {band}, which another of the images has given; give each band once.")
            found[band] = channel
    return found


def _array(value: Any, names: list[str] | None) -> tuple[Tensor, list[str] | None]:
    """An array of any library as a tensor, NaN where nothing was measured, and the names it states for its bands."""
    if hasattr(value, "dims") and hasattr(value, "coords"):  # xarray
        axis = next((d for d in value.dims if str(d).lower() in ("band", "bands", "variable", "channel")), None)
        if axis is not None:
            others = _north_to_south([d for d in value.dims if d != axis])
            value = value.transpose(*others[:-2], axis, *others[-2:])
            stated = value.coords[axis].values.tolist() if axis in value.coords else []
            if names is None and stated and all(isinstance(name, str) for name in stated):
                names = stated
        else:
            value = value.transpose(*_north_to_south(list(value.dims)))
        value = value.values
    if isinstance(value, list | tuple) and any(isinstance(part, np.ma.MaskedArray) for part in value):
        value = np.ma.stack(value)
    if isinstance(value, np.ma.MaskedArray):
        value = np.where(np.ma.getmaskarray(value), np.nan, value.filled(0).astype(np.float32))
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind not in "iufb":
            raise DataError(f"the images hold {value.dtype}; expected numbers.")
        wanted = value.dtype if value.dtype.kind in "iu" else np.dtype(np.float32)
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=wanted.newbyteorder("=")))
    value = value.to(_WIDER.get(value.dtype, value.dtype))
    return value, names


def _north_to_south(dims: list[Any]) -> list[Any]:
    """Names of dimensions with those of rows and columns last, where their names say which these are."""
    spatial = [next((d for d in dims if str(d).lower() in names), None) for names in SPATIAL]
    return dims if None in spatial else [*(d for d in dims if d not in spatial), *spatial]


def _names(key: str, array: Tensor, config: ModelConfig, others: Sequence[str]) -> list[str]:
    """The bands that a key stands for. others: the keys of the other images."""
    number = array.shape[-3] if array.ndim > 2 else 1
    modality = _modality(key, config)
    if modality is not None and array.ndim == 3 and number == len(modality.bands) > 1 and find_band(key) is not None:
        # One image of all bands, or several of the one band of that name; the others say how images are keyed here.
        if any(find_band(other) is not None and _modality(other, config) is None for other in others):
            return [key]
        if not any(_modality(other, config) or other.upper() in IMAGE_KEYS for other in others):
            raise ConfigError(
                f"'{key}' can be one image of {' '.join(modality.bands)} or {number} of {find_band(key)}; pass "
                f"[samples, bands, height, width], or bands={{'{key}': [...]}}."
            )
    if modality is not None and (number == len(modality.bands) or len(modality.bands) == 1):
        return list(modality.bands)
    if key.upper() in IMAGE_KEYS:
        names, _ = IMAGE_KEYS[key.upper()]
        if number != len(names) > 1:
            raise BatchError(f"'{key}' has {number} bands; expected {len(names)}: {' '.join(names)}. Or pass bands.")
        return list(names)
    if key in config.bands or find_band(key) is not None:
        return [key]
    if modality is not None:
        raise BatchError(f"'{key}' has {number} bands; expected {len(modality.bands)}: {' '.join(modality.bands)}.")
    raise UnknownNameError("key of the images", key, [*config.modalities, *IMAGE_KEYS, *config.bands])


def _modality(key: str, config: ModelConfig) -> Modality | None:
    return config.modalities.get(key) or MODALITIES.get(key)


def _split(
    array: Tensor, names: Sequence[str], product: str | None, where: str, config: ModelConfig
) -> dict[str, Channel]:
    """An array [b, c, h, w], [c, h, w], or of one band [b, h, w] or [h, w], as its bands."""
    kept = [i for i, name in enumerate(names) if name != SKIPPED]
    bands = canonical_bands((names[i] for i in kept), own=config.bands)
    if len(names) == 1 and array.ndim in (2, 3):
        array = array.reshape(-1, 1, *array.shape[-2:])
    elif array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] != len(names):
        raise BatchError(
            f"{where} have the shape {list(array.shape)}; expected [{len(names)}, height, width] or "
            f"[samples, {len(names)}, height, width] for the bands {' '.join(names)}."
        )
    valid = torch.isfinite(array)
    return {band: Channel(array[:, i], valid[:, i], product) for band, i in zip(bands, kept, strict=True)}


def _raster(
    modality: Modality,
    channels: Mapping[str, Channel],
    product: str | Sequence[str] | None,
    units: Units | None,
    nodata: float | None,
    offset: float,
    judge: bool,
) -> Raster:
    """The raster of one modality, checked and in its unit."""
    own = {band: channels[band] for band in modality.bands if band in channels}
    shapes = {band: tuple(c.values.shape) for band, c in own.items()}
    if len(set(shapes.values())) > 1:
        raise SizeError(f"the bands of {modality.name} differ in shape: {shapes}; resample them to one grid first.")
    values, valid = torch.stack([c.values for c in own.values()], 1), torch.stack([c.valid for c in own.values()], 1)
    optical = modality.unit == REFLECTANCE
    if optical and nodata is not None:
        valid = valid & (values != nodata)
    index = product_index(modality, product, next((c.product for c in own.values() if c.product), None))
    described = MODALITIES.get(modality.name)
    own_units = described is not None and modality.products[index] not in described.products
    if own_units and optical and (units == "reflectance" or offset):
        raise ConfigError(
            f"{modality.name} of product {modality.products[index]} has the statistics of that data set, so images are "
            "taken in the numbers that it has: pass them so, without units='reflectance' or offset."
        )
    if judge and not own_units:
        _check_unit(modality, values, valid, units, tuple(own))
    values = values if isinstance(modality, Categorical) else values.float()
    if optical:
        values = (values * FACTORS[units or "dn"]).sub(offset) if offset or units == "reflectance" else values
    return by_modality(values, valid, tuple(own), {modality.name: modality}, {modality.name: index})[modality.name]


def _own_grid(modality: Modality, raster: Raster) -> Raster:
    """Classes at 10 m on the modality's own coarser grid; what its cells reach over the edge is invalid."""
    assert isinstance(modality, Categorical)
    whole = pad({modality.name: raster}, strides={modality.name: 1}, multiple=modality.stride)[modality.name]
    return Majority(modality.codes, modality.stride).to(raster.values.device)(whole)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _check_unit(modality: Modality, values: Tensor, valid: Tensor, units: Units | None, bands: Sequence[str]) -> None:
    """Raise DataError or ConfigError where values look like another unit than is stated."""
    measured = values[valid]
    if not measured.numel():
        return
    some = measured[:: max(1, measured.numel() // JUDGED)].detach().cpu()
    known = (some.float() if some.dtype == torch.bfloat16 else some).numpy()  # NumPy has no bfloat16
    guess, stated = looks_like(modality, known), modality.unit
    if modality.unit == REFLECTANCE:
        seems = "reflectance" if guess == "reflectance" else ("dn" if guess is None else None)
        if units is None:
            hint = f"; they look like units='{seems}'" if seems else (f"; they look like {guess}" if guess else "")
            raise ConfigError(f"the unit of {' '.join(bands)} is not stated: pass units='dn' or 'reflectance'{hint}.")
        if units == "reflectance" and guess != "standardised numbers":
            usual = guess or "dn (reflectance x 10000)" if np.percentile(known, 99) > 2 else None
            guess = "none of this unit" if known.min() < DARKEST / FACTORS[units] else usual
        stated = f"units='{units}'"
    if guess is not None:
        span = f"{known.min():g} to {known.max():g}"
        raise DataError(f"{' '.join(bands)}: expected {stated}, got {span}, which looks like {guess}.{_remedy(guess)}")


def _remedy(guess: str) -> str:
    if guess.startswith("codes"):
        return " Translate the codes first, and set what has no class to NaN."
    remedies = {
        "reflectance": "Pass units='reflectance'.",
        "dn (reflectance x 10000)": "Pass units='dn'.",
        "standardised numbers": "Pass images as they were measured: the model standardises them itself.",
        EIGHT_BIT: "Take the image before it was stretched to colours.",
        "linear power": "Convert it: 10 log10(x).",
    }
    return " " + remedies.get(guess, "Set values without a meaning to NaN.")


def _check_products(product: str | Sequence[str] | None, modalities: Sequence[Modality]) -> None:
    """Raise UnknownNameError for a product that none of the inputs has, whether or not it is fed."""
    known = list(dict.fromkeys(p for m in modalities for p in m.products))
    for name in _listed(product):
        if name not in known:
            raise UnknownNameError("product", name, known)


def _listed(product: str | Sequence[str] | None) -> Sequence[str]:
    return () if product is None else ((product,) if isinstance(product, str) else product)


def product_index(modality: Modality, product: str | Sequence[str] | None, key: str | None = None) -> int:
    """The index of the product of a modality: as said, else as the key of its images names it, else its only one."""
    if key is not None and lacks(modality, key) and not {*_listed(product)} & {*modality.products}:
        raise ConfigError(
            f"the images are of {key} by their name, but the model knows {modality.name} of "
            f"{', '.join(modality.products)}. Take such images; product='{modality.products[0]}' reads these as those."
        )
    said = [p for p in (*_listed(product), key) if p in modality.products]
    given = f" by '{', '.join(_listed(product))}'" if product else ""
    if len(set(said)) > 1:
        raise ConfigError(f"product {said[0]} and {said[1]} are both given for {modality.name}; give one.")
    if not said and len(modality.products) > 1:
        raise ConfigError(
            f"the product of {modality.name} is not stated{given}: pass product='{modality.products[0]}' or another "
            f"of {', '.join(modality.products)}; a list where several inputs need one."
        )
    return modality.products.index(said[0]) if said else 0
