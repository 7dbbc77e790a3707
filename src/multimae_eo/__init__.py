"""multimae-eo: a multi-modal, multi-task masked autoencoder for Earth observation. Public names load on first use."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("multimae-eo")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

if TYPE_CHECKING:
    from multimae_eo.checkpoint import load, load_model, load_predictor, save
    from multimae_eo.config import ModelConfig, sized
    from multimae_eo.encoder import Encoder
    from multimae_eo.errors import MultiMAEError
    from multimae_eo.masking import TokenMask, sample_mask
    from multimae_eo.modalities import MODALITIES
    from multimae_eo.model import MultiMAE
    from multimae_eo.predictor import Predictor
    from multimae_eo.raster import Batch, Raster

_HOMES = {
    "Batch": "raster",
    "Encoder": "encoder",
    "MODALITIES": "modalities",
    "ModelConfig": "config",
    "MultiMAE": "model",
    "MultiMAEError": "errors",
    "Predictor": "predictor",
    "Raster": "raster",
    "TokenMask": "masking",
    "load": "checkpoint",
    "load_model": "checkpoint",
    "load_predictor": "checkpoint",
    "sample_mask": "masking",
    "save": "checkpoint",
    "sized": "config",
}

__all__ = [
    "MODALITIES",
    "Batch",
    "Encoder",
    "ModelConfig",
    "MultiMAE",
    "MultiMAEError",
    "Predictor",
    "Raster",
    "TokenMask",
    "__version__",
    "load",
    "load_model",
    "load_predictor",
    "sample_mask",
    "save",
    "sized",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multimae_eo' has no attribute '{name}'")
    return getattr(import_module(f"multimae_eo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
