"""The state of the ground: twelve classes that take several sensors and the season to tell apart.

Their names and colours are those of `SYNTHETIC` in `geobench_names`; they are known exactly, below clouds and gaps too.
"""

import numpy as np

from multimae_eo.data.synthetic import classes as c
from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import ramp
from multimae_eo.data.synthetic.surface import Surface
from multimae_eo.data.synthetic.terrain import Terrain

NUM_STATES = 12
OPEN_WATER, ICE, BUILT_UP, BARE_GROUND, GREEN_HERBS, DRY_HERBS, GROWING_CROPS, BARE_FIELD = range(8)
NEEDLE_LEAVED, IN_LEAF, WITHOUT_LEAVES, WETLAND = range(8, NUM_STATES)
_GREEN = 0.4  # of herbs and crops, from which on they count as green


def ground_states(place: Place, terrain: Terrain, cover: c.Cover, surface: Surface) -> np.ndarray:
    """The state of every pixel on the day of the image, uint8 [h, w].

    Snow hides herbs, fields and bare ground, but not what stands above it: buildings and trees. Water freezes as it
    does in the images (`optical`).
    """
    codes = cover.codes
    water, trees = codes == c.WATER, codes == c.TREE
    frozen = np.zeros(codes.shape, bool)
    if terrain.kind != "coast":
        frozen = ramp(place.celsius(terrain.height_m, "now"), -3, -8) > 0.5
    white = ~water & ~trees & (codes != c.BUILT) & (surface.snow > 0.5)
    herbs = np.isin(codes, (c.GRASS, c.SHRUB, c.MOSS))
    states = np.select(
        [
            water & ~frozen,
            water | white | (codes == c.SNOW),
            codes == c.BUILT,
            codes == c.BARE,
            herbs & (surface.green >= _GREEN),
            herbs,
            (codes == c.CROP) & (surface.crop >= _GREEN),
            codes == c.CROP,
            trees & (surface.needles >= 0.5),
            trees & (surface.leaves >= 0.5),
            trees,
        ],
        range(WETLAND),
        WETLAND,
    )
    return states.astype(np.uint8)
