"""Memory of a loader's worker over many samples: it must not grow, neither with the epoch nor with the data set.

    python benchmarks/memory.py [--json FILE] [--samples 100000] [--tiles 2000] [--batch 128]

One worker process reads `samples` samples of a synthetic world, from the HDF5 file and from a packed copy; its private
memory (Linux: RssAnon and RssShmem of /proc) is read every tenth of the way. The first tenth warms up.
"""

import re
import tempfile
from pathlib import Path

import torch
from measure import Table, arguments
from torch.utils.data import DataLoader

from multimae_eo.data.mmearth import MMEarth
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import generate
from multimae_eo.options import DataOptions, ModelOptions, OptimOptions, PretrainOptions
from multimae_eo.tasks.examples import TRAIN, Steps, as_read
from multimae_eo.tasks.run import build


def main(samples: int, tiles: int, batch: int, path: Path | None) -> None:
    """Print the table."""
    table = Table(f"Private memory of one worker over {samples} samples")
    with tempfile.TemporaryDirectory() as folder:
        world = generate(folder, tiles=tiles)
        options = PretrainOptions(model=ModelOptions(size="demo"), optim=OptimOptions(batch_size=batch))
        modalities = list(options.model.config().modalities.values())
        packed = pack(world, Path(folder) / "packed", MMEarth(world, modalities).modalities)
        for name, root in (("packed", packed), ("HDF5", world)):
            options.data = DataOptions(root=root)
            megabytes = over_time(options, samples // batch)
            first, last = megabytes[0], megabytes[-1]
            table.value(f"{name}: after a tenth", first, "MB")
            table.value(f"{name}: at the end", last, "MB")
            table.value(f"{name}: most, over that after a tenth", max(megabytes) / first, "")
    table.finish(path)


def over_time(options: PretrainOptions, steps: int) -> list[float]:
    """Private memory of the worker in MB, after each tenth of the steps."""
    task, data = build(options)
    del task
    order = Steps(data.rows["train"], batch_size=options.optim.batch_size, steps=steps, seed=0)
    loader = DataLoader(data.examples(TRAIN), batch_sampler=order, collate_fn=as_read, num_workers=1)
    stream, found = iter(loader), []
    for step, _ in enumerate(stream, 1):
        if step * 10 % steps < 10:
            found.append(private(stream._workers[0].pid))
    return found


def private(pid: int) -> float:
    """Memory in MB that a process does not share with files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(re.search(rf"{kind}:\s+(\d+)", status)[1]) for kind in ("RssAnon", "RssShmem")) / 1e3


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = arguments(__doc__, samples=100_000, tiles=2000, batch=128)
    main(given.samples, given.tiles, given.batch, given.json)
