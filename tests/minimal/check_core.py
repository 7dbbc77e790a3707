"""The wheel alone: what it depends on, and that it embeds, predicts, explains and says what it lacks. No pytest here.

Run in an environment that holds nothing but torch and the wheel: `python tests/minimal/check_core.py`.
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, distributions
from pathlib import Path

import numpy as np

import multimae_eo
from multimae_eo import MODALITIES, MultiMAE, Predictor, sized
from multimae_eo.config import TaskConfig

CORE = {"torch", "numpy", "safetensors", "huggingface-hub"}
ABSENT = {"jaxtyping", "lightning", "h5py", "rasterio", "matplotlib", "scikit-learn", "xarray", "timm", "pytest"}


def named(requirement: str) -> str:
    return re.split(r"[ ;<>=!~\[(]", requirement)[0].lower().replace("_", "-")


def check_dependencies() -> None:
    """Four libraries and at most two tiny ones in pure Python, which need nothing of their own."""
    own = {named(r) for r in distribution("multimae-eo").requires or () if "extra ==" not in r}
    tiny = own - CORE
    assert own >= CORE, own
    assert len(tiny) <= 2, tiny
    installed = {named(d.metadata["Name"]) for d in distributions()}
    for name in tiny:
        files = distribution(name).files or []
        size = sum(f.locate().stat().st_size for f in files if f.locate().exists())
        needs = {named(r) for r in distribution(name).requires or () if "extra ==" not in r}
        assert not any(str(f).endswith((".so", ".pyd")) for f in files), f"{name} is compiled"
        assert size < 2e6, f"{name} has {size} bytes"
        assert needs <= {"pyyaml"}, f"{name} needs {needs}"
        print(f"{name}: {size / 1e6:.2f} MB, pure Python")
    assert not installed & ABSENT, installed & ABSENT
    print(f"{len(installed)} distributions in all")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([Path(sys.executable).with_name("multimae-eo"), *words], capture_output=True, text=True)


def check_use(folder: Path) -> None:
    """From arrays to vectors, labels and reconstructions; the commands that need nothing else."""
    model = MultiMAE(sized("demo")).eval()
    multimae_eo.save(model, folder / "model")
    encoder = multimae_eo.load(folder / "model")
    images = np.random.default_rng(0).integers(200, 3000, (2, 4, 56, 56)).astype(np.uint16)
    stated = {"bands": ["blue", "green", "red", "B08"], "units": "dn", "product": "L2A"}
    assert encoder(images, **stated).shape == (2, 99, 96)
    assert encoder.see(images, **stated).mean().shape == (2, 96)
    batch = encoder.read(images, **stated)
    mask = multimae_eo.sample_mask(encoder.valid_tokens(batch), 9, generator=np.random.default_rng(0))
    assert multimae_eo.load_model(folder / "model").reconstruct(batch, mask)["rgb"].shape == (2, 3, 56, 56)
    task = TaskConfig("segmentation", "convnext", ("rgb",), classes=MODALITIES["land_cover"].classes)
    multimae_eo.save(Predictor(model.config, task), folder / "tuned")
    assert multimae_eo.load_predictor(folder / "tuned").predict(batch).shape == (2, 56, 56)
    for words in (["--help"], ["pretrain", "--help"], ["finetune", "--help"], ["predict", "--help"]):
        assert command(*words).returncode == 0, words
    explained = command("inspect", str(folder / "model"))
    assert "B04 B03 B02" in explained.stdout, explained.stderr
    lacking = {"pretrain --data.root x": "train", "synthesize": "data", "completion bash": "completion"}
    for words, extra in lacking.items():
        done = command(*words.split())
        assert done.returncode == 2, words
        assert f"pip install 'multimae-eo[{extra}]'" in done.stderr, done.stderr


if __name__ == "__main__":
    check_dependencies()
    with tempfile.TemporaryDirectory() as folder:
        check_use(Path(folder))
    print(f"multimae-eo {multimae_eo.__version__} embeds with torch, numpy, safetensors and huggingface_hub")
