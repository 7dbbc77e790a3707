"""Shape annotations are checked while testing, and what tests share: the folder of shared data, small batches."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Not for compile tests: the hook breaks torch.compile(fullgraph=True); they run in a process of their own.
# Users need not have jaxtyping: the environments of the integrations and of the lowest versions have not.
if find_spec("jaxtyping") and not os.environ.get("MULTIMAE_EO_UNCHECKED"):
    import jaxtyping

    jaxtyping.install_import_hook(
        [
            f"multimae_eo.{m}"
            for m in ("raster", "codecs", "layers", "masking", "encoder", "model", "losses", "heads", "predictor")
        ],
        "beartype.beartype",
    )

# Two threads of torch wait for each other wherever anything else uses a core; small models are faster with one.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """TerraTorch's import sets "medium" for the whole process: bf16, on CPUs that have AMX."""
    torch.set_float32_matmul_precision("highest")


ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MULTIMAE_EO_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no shared data: {SHARED} does not exist (set MULTIMAE_EO_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A small synthetic world in the MMEarth layout."""
    from multimae_eo.data.synthetic import generate

    return generate(tmp_path_factory.mktemp("world"), "synthetic", tiles=60, seed=3, val_fraction=0.2)


@pytest.fixture(scope="session")
def labelled_world(tmp_path_factory) -> Path:
    """Small labelled synthetic data sets in the layout of GEO-Bench."""
    from multimae_eo.data.synthetic import generate_downstream

    return generate_downstream(tmp_path_factory.mktemp("labelled"), tiles=60, tile_px=16, seed=3)
