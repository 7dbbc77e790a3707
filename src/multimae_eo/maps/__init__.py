"""Scenes, and maps of them: predictions, embeddings and missing layers, larger than memory and georeferenced."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimae_eo.maps.embed import embed_scene
    from multimae_eo.maps.fill import fill_scene
    from multimae_eo.maps.lazy import predict_dataarray
    from multimae_eo.maps.predict import predict_map
    from multimae_eo.maps.scene import open_scene

_HOMES = {
    "embed_scene": "embed",
    "fill_scene": "fill",
    "open_scene": "scene",
    "predict_dataarray": "lazy",
    "predict_map": "predict",
}

__all__ = ["embed_scene", "fill_scene", "open_scene", "predict_dataarray", "predict_map"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multimae_eo.maps' has no attribute '{name}'")
    return getattr(import_module(f"multimae_eo.maps.{_HOMES[name]}"), name)
