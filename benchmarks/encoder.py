"""The encoder alone, against timm's ViT of the same size on as many tokens, and the time to a first answer.

    python benchmarks/encoder.py [--json FILE] [--size base] [--batch 16] [--runs 15] [--compile 1]

Both see 49 patches of three bands of 56 px and one more token (global, class). timm and, for the first answer, a new
process of Python per run. Needs timm. A few minutes, most of which is compilation.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import Table, arguments, interleaved

from multimae_eo import Encoder, MultiMAE, Raster, save, sized
from multimae_eo.config import ModelConfig

FIRST = {
    "the same, reading the bytes": "open('{path}', 'rb').read()",
    "load": "import multimae_eo; multimae_eo.load('{folder}')",
}
PROGRAM = """
import time, torch
began = time.perf_counter()
{work}
print(time.perf_counter() - began)
"""


def main(size: str, batch: int, runs: int, compiled: bool, path: Path | None) -> None:
    """Print the table."""
    import timm

    table = Table(f"The encoder alone: {size}, batch {batch}, 50 tokens")
    config = sized(size, inputs=("rgb",), targets=("rgb",))
    ours = Encoder(config).eval()
    theirs = timm.create_model(
        f"vit_{size}_patch16_224", img_size=56, patch_size=8, num_classes=0, global_pool="", class_token=True
    ).eval()
    values = torch.randn(batch, 3, 56, 56)
    fed = {"rgb": Raster(values, torch.ones_like(values, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64))}
    assert ours(fed).shape == theirs(values).shape
    works = {"eager": (ours, theirs)}
    if compiled:
        works["compiled"] = torch.compile(ours, fullgraph=True), torch.compile(theirs, fullgraph=True)
    with torch.inference_mode():
        for how, (mine, other) in works.items():
            pair = {"ours": partial(mine, fed), "timm": partial(other, values)}
            seconds = interleaved(pair, runs=runs, warmup=3)
            table.rate(f"encoder, {how}", seconds["ours"], batch, "images/s", "timm ViT", seconds["timm"], target=1.0)
    first_answer(table, sized(size), runs=max(3, runs // 2))
    table.finish(path)


def first_answer(table: Table, config: ModelConfig, runs: int) -> None:
    """Import and load after `import torch`, against reading the file."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save(MultiMAE(config), Path(folder) / "checkpoint")
        fill = {"folder": saved, "path": saved / "model.safetensors"}
        seconds = {name: list[float]() for name in FIRST}
        for _ in range(runs + 1):
            for name, work in FIRST.items():
                program = PROGRAM.format(work=work.format(**fill))
                done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
                seconds[name].append(float(done.stdout))
    rival, *ours = FIRST
    for name in ours:
        allowed = [s + 0.5 for s in seconds[rival][1:]]
        table.take(f"import and {name}", seconds[name][1:], "s", f"{rival}, and 0.5 s", allowed, target=1.0)


if __name__ == "__main__":
    given = arguments(__doc__, size="base", batch=16, runs=15, compile=1)
    main(given.size, given.batch, given.runs, bool(given.compile), given.json)
