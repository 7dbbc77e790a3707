"""A synthetic world, the default that needs no download: modalities that truly depend on each other, from a seed.

Fractal terrain; climate and water decide the land cover; materials, season, sun and air decide what the sensors see.
Its constants are set by what is plausible on Earth, not by what a model makes of them.
"""

from multimae_eo.data.synthetic.climate import SHIFTED
from multimae_eo.data.synthetic.downstream import generate_downstream
from multimae_eo.data.synthetic.scene import generate_scene
from multimae_eo.data.synthetic.world import make_tile
from multimae_eo.data.synthetic.writing import generate

__all__ = ["SHIFTED", "generate", "generate_downstream", "generate_scene", "make_tile"]
