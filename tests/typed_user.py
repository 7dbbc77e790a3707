"""What a user writes, under mypy --strict: the public names are typed, and give back what they say."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from torch import Tensor

import multimae_eo
from multimae_eo import Batch, Encoder, ModelConfig, MultiMAE, Predictor, Raster, TokenMask
from multimae_eo.encoder import Seen


def use(folder: Path) -> None:
    """Never run."""
    encoder = assert_type(multimae_eo.load(folder), Encoder)
    assert_type(encoder.config, ModelConfig)
    images = np.zeros((1, 3, 56, 56), np.uint16)
    seen = assert_type(encoder.see(images, bands=["B04", "B03", "B02"], units="dn", product="L2A"), Seen)
    assert_type(seen.mean(), Tensor)
    assert_type(seen.places(), Tensor)
    batch = assert_type(encoder.read({"DEM": torch.zeros(1, 56, 56)}), Batch)
    assert_type(batch["elevation"], Raster)
    model = assert_type(multimae_eo.load_model("organisation/name@v1"), MultiMAE)
    valid = assert_type(encoder.valid_tokens(batch), Tensor)
    mask = assert_type(
        multimae_eo.sample_mask(valid, 49, generator=np.random.default_rng(0)),
        TokenMask,
    )
    assert_type(model.reconstruct(batch, mask), dict[str, Tensor])
    predictor = assert_type(multimae_eo.load_predictor(folder), Predictor)
    assert_type(predictor.predict(batch), Tensor)
    assert_type(multimae_eo.save(predictor, folder), Path)
    encoder.see(images, units="metres")  # type: ignore[arg-type]
