"""Which modalities some bands feed, what the others lack, and what a source of bands is called in a command."""

from collections.abc import Iterable

from multimae_eo.modalities import INPUT_SETTINGS, MODALITIES, REFLECTANCE, Modality, fed_by


def fed(bands: Iterable[str]) -> str:
    """The modalities that some bands feed, and which of its bands each then lacks."""
    there = set(bands)
    told = []
    for name in fed_by(there):
        missing = [band for band in MODALITIES[name].bands if band not in there]
        told.append(name + (f" (without {' '.join(missing)})" if missing else ""))
    return ", ".join(told) or "none"


def not_fed(bands: Iterable[str]) -> str:
    """The modalities that they do not feed, and the bands that are missing for each."""
    there = set(bands)
    absent = [m for name, m in MODALITIES.items() if name not in fed_by(there)]
    return ", ".join(f"{m.name} (needs {' '.join(band for band in m.bands if band not in there)})" for m in absent)


def settings(bands: Iterable[str]) -> list[str]:
    """The input settings that these bands can feed."""
    there = set(bands)
    return [name for name, setting in INPUT_SETTINGS.items() if setting.fits(there)]


def source_name(bands: Iterable[str], otherwise: str = "scene") -> str:
    """What a source of these bands is usually called in a command: s2, s1, dem, ..."""
    for band in bands:
        modality = next((m for m in MODALITIES.values() if band in m.bands), None)
        if modality is not None and modality.unit == REFLECTANCE:
            return "s2"
        if modality is not None:
            return "s1" if len(modality.bands) > 1 else modality.bands[0]
    return otherwise


def sources_of(modalities: Iterable[Modality]) -> list[str]:
    """A source option for every kind of source that some modalities take their bands from, ready to be filled in."""
    names = dict.fromkeys(source_name(m.bands) for m in modalities)
    return [word for name in names for word in ("--source", f"{name}={name.upper()}.tif")]
