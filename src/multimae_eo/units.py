"""What numbers probably are: the one place that judges whether values fit the unit of a modality; imports no torch."""

import numpy as np

from multimae_eo.modalities import REFLECTANCE, Categorical, Modality

# The guess that a model of one's own may still take.
EIGHT_BIT = "8-bit numbers"


def looks_like(modality: Modality, values: np.ndarray) -> str | None:
    """What valid values are rather than numbers in the modality's unit, or known codes; None where they fit.

    values: of any shape, not empty.
    """
    if isinstance(modality, Categorical):
        strange = sorted({int(c) for c in np.unique(values)} - set(modality.codes))
        return f"codes without a meaning here ({', '.join(map(str, strange[:8]))})" if strange else None
    low, high = float(values.min()), float(values.max())
    if modality.unit == REFLECTANCE:
        if high <= 2 and low > -0.5:
            return "reflectance"
        if low < 0 and high < 50:
            return "standardised numbers"
        eight_bit = values.dtype == np.uint8 or (high == 255 and np.mean(values == 255) > 1e-3 and low >= 0)
        return EIGHT_BIT if eight_bit else ("none of this unit" if high > 65535 else None)
    if modality.unit == "dB":
        return "linear power" if low >= 0 else ("none of this unit" if low < -100 else None)
    return "none of this unit" if low < -1000 or high > 9500 else None
