"""What numbers probably are: the one place that judges whether values fit the unit of a modality; imports no torch."""

import numpy as np

from multimae_eo.modalities import REFLECTANCE, Categorical, Modality

# Heights in metres outside of which lies nothing that is measured, on land or of trees.
LOWEST, HIGHEST = -1000, 9500
# Reflectance x 10000 below which lies nothing that is measured: an offset of 1000 was taken off a number above 0.
DARKEST = -1100
# The guess that a model of one's own may still take.
EIGHT_BIT = "8-bit numbers"


def looks_like(modality: Modality, values: np.ndarray) -> str | None:
    """What valid values are rather than numbers in the modality's unit, or known codes; None where they fit.

    values: of any shape, not empty.
    """
    if isinstance(modality, Categorical):
        strange = sorted({float(c) for c in np.unique(values)} - set(modality.codes))
        return f"codes without a meaning here ({', '.join(f'{c:g}' for c in strange[:8])})" if strange else None
    low, high = float(values.min()), float(values.max())
    if modality.unit == REFLECTANCE:
        usual = float(np.percentile(values, 99))  # some pixels glint
        # Over dark water reflectance x 10000 is as small, but lower, or in whole numbers.
        fractions = usual < 50 and not np.array_equal(values, np.rint(values))
        if fractions and usual <= 2 and low > -0.5:
            return "reflectance"
        if fractions and low > -10 and np.mean(values < -0.3) > 0.05:
            return "standardised numbers"
        eight_bit = values.dtype == np.uint8 or (high == 255 and np.mean(values == 255) > 1e-3 and low >= 0)
        return EIGHT_BIT if eight_bit else ("none of this unit" if low < DARKEST or high > 65535 else None)
    if modality.unit == "dB":
        if low < -100:
            return "none of this unit"
        return "linear power" if np.mean(values < 0) < 0.01 else None  # noise that was removed leaves some below 0
    return "none of this unit" if modality.unit == "m" and (low < LOWEST or high > HIGHEST) else None
