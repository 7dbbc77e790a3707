"""Small random batches in physical units, for any modalities."""

from dataclasses import replace

import torch

from multimae_eo.config import ModelConfig, sized
from multimae_eo.modalities import Categorical
from multimae_eo.raster import Batch, Raster


def demo_config(**fields) -> ModelConfig:
    """A model that takes milliseconds."""
    small = {"dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    return sized("demo", **{**small, **fields})


def random_raster(modality, size=2, pixels=56, seed=0, invalid=0.0) -> Raster:
    g = torch.Generator().manual_seed(seed)
    edge = pixels // modality.stride
    product = torch.randint(len(modality.products), (size,), generator=g)
    valid = torch.rand(size, len(modality.bands), edge, edge, generator=g) >= invalid
    if isinstance(modality, Categorical):
        codes = torch.tensor(modality.codes)
        return Raster(codes[torch.randint(len(codes), valid.shape, generator=g)], valid, product)
    mean = torch.tensor([s.mean for s in modality.statistics.values()])[product]
    std = torch.tensor([s.std for s in modality.statistics.values()])[product]
    noise = torch.randn(valid.shape, generator=g)
    return Raster(mean[..., None, None] + std[..., None, None] * noise, valid, product)


def random_batch(config: ModelConfig, size=2, pixels=None, seed=0, invalid=0.0) -> Batch:
    pixels = pixels or config.image_size
    return {
        name: random_raster(m, size, pixels, seed + i, invalid) for i, (name, m) in enumerate(config.modalities.items())
    }


def nowhere(raster: Raster) -> Raster:
    """The raster, valid nowhere."""
    return raster._replace(valid=torch.zeros_like(raster.valid))


def without(config: ModelConfig, *names: str) -> ModelConfig:
    """The config without some inputs and targets."""
    keep = [v for v in config.inputs if v.split(":")[0] not in names]
    return replace(config, inputs=tuple(keep))
