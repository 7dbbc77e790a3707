"""The training step and the whole loop: eager and compiled, against timm's ViT, the matrix rate and the loader.

    python benchmarks/step.py [--json FILE] [--size base] [--batch 16] [--runs 9] [--compile 1] [--device auto]

On a GPU: bf16, and any operation that would make the host wait is an error; try --batch 512. On the CPU: float32.
The rival is the same step (forward, backward, AdamW) of timm's ViT on 50 tokens, allowed (1 + decoder / encoder)
operations; left out where timm is not installed. A few minutes, most of which is compilation.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from measure import Table, arguments, interleaved
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from multimae_eo.config import ModelConfig
from multimae_eo.data.mmearth import MMEarth
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import generate
from multimae_eo.encoder import layout_of
from multimae_eo.masking import TokenMask
from multimae_eo.model import Decoder, MultiMAE, Shared, project
from multimae_eo.options import DataOptions, ModelOptions, OptimOptions, PretrainOptions
from multimae_eo.raster import Batch
from multimae_eo.tasks.examples import TRAIN, Examples, PretrainData, Steps, as_read
from multimae_eo.tasks.pretrain import PretrainTask
from multimae_eo.tasks.run import build


def operations(config: ModelConfig, num_visible: int = 49) -> tuple[float, float]:
    """Floating-point operations of one sample's forward pass: tokens and encoder; decoders.

    A multiplication and an addition count two; matrix products and attention only, and of the tokens only those that
    are visible. The backward pass takes twice as many.
    """
    n, k = (config.image_size // config.patch_size) ** 2, num_visible + config.num_global_tokens
    d, e = config.dim, config.decoder_dim

    def block(tokens: int, width: int) -> int:
        return tokens * width * 24 * width + 4 * tokens * tokens * width

    inputs = sum(
        config.modalities[v.modality].channels * config.patch_edge(v.modality) ** 2 for v in config.input_views
    )
    encoder = 2 * num_visible * inputs * d + config.depth * block(k, d)
    decoders = 0
    for view in config.target_views:
        pixels = config.modalities[view.modality].channels * config.patch_edge(view.modality) ** 2
        cross = 2 * n * e * e + 2 * k * e * 2 * e + 4 * n * k * e + 2 * n * e * e + 2 * n * e * 8 * e
        decoders += 2 * k * d * e + cross + config.decoder_depth * block(n, e) + 2 * n * e * pixels
    return encoder, decoders


def main(size: str, batch: int, runs: int, compiled: bool, device: torch.device, path: Path | None) -> None:
    """Print the table."""
    gpu = device.type == "cuda"
    table = Table(f"The training step: {size}, batch {batch}, {'bf16' if gpu else 'float32'}")
    with tempfile.TemporaryDirectory() as folder:
        task, data = prepared(Path(folder), size, batch)
        task.to(device)
        encoder, decoders = operations(task.model.config)
        per_sample = 3 * (encoder + decoders) / 1e9
        table.value("operations per sample, forward and backward", per_sample, "GFLOP")
        table.value("operations per sample, forward: tokens and encoder", encoder / 1e9, "GFLOP")
        table.value("operations per sample, forward: decoders", decoders / 1e9, "GFLOP")
        table.value("of them in the decoders, over those in the encoder", decoders / encoder, "")
        examples = data.examples(TRAIN).__getitems__([(0, row) for row in data.rows["train"][:batch].tolist()])
        examples = examples.to(device)
        kinds, given = steps(task, compiled), task.begin(examples)
        works = {f"step, {how}": partial(step, *given) for how, (_, step) in kinds.items()}
        works |= {f"preparing a batch, {how}": partial(begin, examples) for how, (begin, _) in kinds.items()}
        works["matrix products"], count = matrix(device)
        if rival := timm_step(size, batch, device):
            works["timm"] = rival
        seconds = interleaved(works, runs=runs, warmup=3)
        table.rate("matrix products", seconds["matrix products"], count / 1e12, "TFLOP/s")
        allowed = [(1 + decoders / encoder) * s for s in seconds.get("timm", [])]
        for how in kinds:
            name, against = f"step, {how}", ("timm ViT, and the decoders' share", allowed, 1.0) if allowed else ()
            table.rate(name, seconds[name], batch, "samples/s", *against)
            shares = [
                batch * per_sample * 1e9 / s * m / count
                for s, m in zip(seconds[name], seconds["matrix products"], strict=True)
            ]
            table.value(f"{name}: share of the matrix rate", statistics.median(shares), "")
            table.rate(f"preparing a batch, {how}", seconds[f"preparing a batch, {how}"], batch, "samples/s")
        table.value("peak memory of the device", torch.cuda.max_memory_allocated() / 1e9 if gpu else None, "GB")
        begin, step = kinds["compiled" if compiled else "eager"]
        loop(table, data, lambda examples: step(*begin(examples.to(device))), examples, runs)
        compare_decoders(table, task.model, examples, task, runs, compiled)
    table.finish(path)


def prepared(folder: Path, size: str, batch: int) -> tuple[PretrainTask, PretrainData]:
    """A task and the packed tiles it trains on."""
    world = generate(folder, tiles=max(64, 4 * batch), val_fraction=0.1)
    options = PretrainOptions(
        model=ModelOptions(size=size), data=DataOptions(root=world), optim=OptimOptions(batch_size=batch)
    )
    modalities = list(options.model.config().modalities.values())
    options.data.root = pack(world, folder / "packed", MMEarth(world, modalities).modalities)
    return build(options)


def autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """bf16 on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def steps(task: PretrainTask, compiled: bool) -> dict[str, tuple[Callable, Callable[..., None]]]:
    """Preparation of a batch (cuts, labels, masks) and step (forward, backward, optimizer), eager and compiled."""
    optimizer = task.configure_optimizers()

    def step(totals: Callable, batch: Batch, mask: TokenMask, samples: Tensor) -> None:
        with no_waiting(samples.device), autocast(samples.device):
            loss = (totals(batch, mask) / samples.clamp(min=1)).sum()
        with no_waiting(samples.device):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    works = {"eager": (task.begin, partial(step, task.totals))}
    if compiled:  # as the trainer does it
        how = {"fullgraph": True, "dynamic": False}
        works["compiled"] = torch.compile(task.begin, **how), partial(step, torch.compile(task.totals, **how))
    return works


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, an operation that makes the host wait is an error."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def matrix(device: torch.device) -> tuple[Callable[[], None], float]:
    """Large matrix products on random numbers, and how many operations they take."""
    edge, kind = (8192, torch.bfloat16) if device.type == "cuda" else (1536, torch.float32)
    a, b = (torch.randn(edge, edge, device=device, dtype=kind) for _ in range(2))

    def work() -> None:
        for _ in range(10):
            a @ b

    return work, 10 * 2.0 * edge**3


def timm_step(size: str, batch: int, device: torch.device) -> Callable[[], None] | None:
    """The rival's step, eager, or None where timm is not installed or has no such size."""
    try:
        import timm

        model = timm.create_model(f"vit_{size}_patch16_224", img_size=112, num_classes=0, global_pool="").to(device)
    except (ImportError, RuntimeError) as error:
        print(f"left out: {error}")
        return None
    images = torch.randn(batch, 3, 112, 112, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def work() -> None:
        with autocast(device):
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def loop(table: Table, data: PretrainData, work: Callable, examples: Examples, runs: int) -> None:
    """Preparation and steps fed by the loader, one worker process, against the same on a batch that is there."""
    batch, device, number = len(examples.rows), examples.rows.device, max(2, runs // 2)
    order = Steps(data.rows["train"], batch_size=batch, steps=10**9, seed=0)
    loader = torch.utils.data.DataLoader(
        data.examples(TRAIN), batch_sampler=order, collate_fn=as_read, num_workers=1, pin_memory=device.type == "cuda"
    )
    stream = iter(loader)
    works = {
        "fed": lambda: [work(next(stream)) for _ in range(number)],
        "alone": lambda: [work(examples) for _ in range(number)],
    }
    seconds = interleaved(works, runs=max(3, runs // 3))
    table.rate("whole loop", seconds["fed"], number * batch, "samples/s", "step alone", seconds["alone"], 0.95)


class Placed(Decoder):
    """A decoder whose place in the sequence is an argument, so that several of one shape can be computed as one."""

    def forward(self, seen: Tensor, shared: Shared, start: Tensor, embedding: Tensor) -> Tensor:
        self._given = start, embedding
        return super().forward(seen, shared)

    def _queries(self, visible: Tensor, shared: Shared) -> Tensor:
        (start, embedding), number = self._given, shared.layout.num_tokens
        place = shared.mask.visible - start
        place = torch.where((place >= 0) & (place < number), place, number)
        queries = self.mask_token.expand(len(visible), number + 1, -1)
        queries = queries.scatter(1, place[..., None].expand_as(visible), visible)[:, :number]
        return queries + embedding @ self.modality_embeddings + shared.table


def compare_decoders(
    table: Table, model: MultiMAE, examples: Examples, task: PretrainTask, runs: int, compiled: bool
) -> None:
    """Forward and backward through all decoders: one by one, those of one shape batched, and compiled."""
    batch, mask = task.prepare(examples)
    layout = layout_of(model.config, batch)
    encoded = torch.randn(len(examples.rows), mask.visible.shape[1] + 1, model.config.dim, device=mask.visible.device)
    shared, views = model._shared(layout, mask), dict(model.views())

    def each(encoded: Tensor) -> dict[str, Tensor]:
        return {v: d(s, shared) for (v, d), s in zip(views.items(), project(encoded, views.values()), strict=True)}

    shapes: dict[int, list[str]] = {}
    for view, decoder in views.items():
        shapes.setdefault(decoder.out.out_features, []).append(view)

    def batched(encoded: Tensor) -> dict[str, Tensor]:
        seen = dict(zip(views, project(encoded, views.values()), strict=True))
        return {v: out for group in shapes.values() for v, out in zip(group, together(group, seen), strict=True)}

    def together(group: list[str], seen: dict[str, Tensor]) -> Tensor:
        base = copy.copy(views[group[0]])
        base.__class__ = Placed
        parameters, _ = stack_module_state([views[v] for v in group])
        places = [layout.names.index(views[v].modality) for v in group]
        starts = torch.tensor(places, device=encoded.device) * layout.num_tokens
        one_hot = torch.eye(len(layout.names), device=encoded.device)[places]

        def one(parameters: dict[str, Tensor], seen: Tensor, start: Tensor, embedding: Tensor) -> Tensor:
            return functional_call(base, parameters, (seen, shared, start, embedding))

        return vmap(one)(parameters, torch.stack([seen[v] for v in group]), starts, one_hot)

    expected, found = each(encoded), batched(encoded)
    for view, values in expected.items():
        torch.testing.assert_close(found[view], values, rtol=1e-4, atol=1e-4)
    works = {"one by one": each, "batched by shape": batched}
    if compiled:
        works["compiled"] = torch.compile(each, fullgraph=True, dynamic=False)

    def backward(work: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[], None]:
        def run() -> None:
            sum(out.square().mean() for out in work(encoded).values()).backward()

        return run

    seconds = interleaved({name: backward(work) for name, work in works.items()}, runs=runs, warmup=3)
    for name in works:
        rival = () if name == "one by one" else ("one by one", seconds["one by one"])
        table.rate(f"decoders, {name}", seconds[name], len(examples.rows), "samples/s", *rival)


if __name__ == "__main__":
    given = arguments(__doc__, size="base", batch=16, runs=9, compile=1, device="auto")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    main(given.size, given.batch, given.runs, bool(given.compile), torch.device(chosen), given.json)
