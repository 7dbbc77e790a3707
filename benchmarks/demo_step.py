"""Time one step of the demo's model on the CPU, with one and two threads, and the reading of one example.

    python benchmarks/demo_step.py [DECODER_DIM]

Needs a minute; run it on an idle machine. Prints medians.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from multimae_eo.data.synthetic import generate
from multimae_eo.losses import reconstruction_losses
from multimae_eo.options import demo_options
from multimae_eo.tasks.examples import TRAIN
from multimae_eo.tasks.run import build


def median(work: Callable[[], object], times: int) -> float:
    """Milliseconds of a piece of work, after one that is not counted."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def main(decoder_dim: int | None = None) -> None:
    """Print a line per figure."""
    options = demo_options()
    options.model.decoder_dim = decoder_dim
    with tempfile.TemporaryDirectory() as folder:
        options.data.root = generate(folder, tiles=100)
        task, data = build(options)
        source, chosen = data.examples(TRAIN), [(0, row) for row in data.rows["train"].tolist()[:32]]
        examples = source.__getitems__(chosen)
        optimizer = torch.optim.AdamW(task.parameters(), fused=True)

        def step() -> None:
            batch, mask = task.prepare(examples)
            losses = reconstruction_losses(task.model, task.model(batch, mask), batch, mask)
            losses.mean().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        print(f"one example        {median(lambda: source.__getitems__(chosen), 10) / 32:7.2f} ms")
        for threads in (1, 2):
            torch.set_num_threads(threads)
            print(f"a step, {threads} thread(s) {median(step, 20):7.0f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
