"""The training step: nothing in it waits for the device, it compiles as one graph, no option changes its numbers."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("h5py")
pytest.importorskip("lightning")

from batches import demo_config, random_batch
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import write_world

from multimae_eo.encoder import Encoder
from multimae_eo.masking import mask_from_hidden, sample_mask
from multimae_eo.options import DataOptions, MaskOptions, ModelOptions, OptimOptions, PretrainOptions
from multimae_eo.raster import Raster
from multimae_eo.tasks.examples import TRAIN
from multimae_eo.tasks.pretrain import Pending
from multimae_eo.tasks.run import build

# What waits for a device, because the host looks at a value, a size depends on one, or a constant is copied there.
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "lift_fresh", "bincount")


class NoWaiting(TorchDispatchMode):
    """Raises where an operation would make the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert not name.startswith(WAITING), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            kinds = [i.dtype for i in args[1] if i is not None]
            assert torch.bool not in kinds, f"{name} by a mask has a size that depends on values"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), tiles=24, val=6)


def options(folder, **mask) -> PretrainOptions:
    return PretrainOptions(
        model=ModelOptions(size="demo"),
        mask=MaskOptions(**mask),
        data=DataOptions(root=folder, workers=0),
        optim=OptimOptions(batch_size=8),
    )


@pytest.mark.parametrize("short", ["error", "mask"])
def test_no_operation_of_a_step_waits_for_the_device(folder, short):
    task, data = build(options(folder, short_samples=short))
    examples = data.examples(TRAIN).__getitems__([(0, row) for row in range(8)])
    optimizer = task.configure_optimizers()
    with NoWaiting():
        batch, mask, samples = task.begin(examples)
        losses = task.totals(batch, mask) / samples.clamp(min=1)
        losses.sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in task.parameters()])
        optimizer.found_inf = (~norm.isfinite()).float()
    optimizer.step()  # its fused kernel is the device's own
    assert norm > 0


def test_what_waits_is_found():
    x = torch.arange(4.0)
    for work in (lambda: x.sum().item(), lambda: x[x > 1], lambda: torch.tensor([1, 2]), lambda: x.nonzero()):
        with NoWaiting(), pytest.raises(AssertionError, match=r"waits|depends on values"):
            work()


@pytest.mark.parametrize("keys", [False, True])
def test_visible_tokens_are_those_of_all_tokens(keys):
    """Projecting the visible patches alone gives what projecting all and choosing gives."""
    config = demo_config(inputs=("rgb", "nir", "elevation:sample", "land_cover"))
    encoder, batch = Encoder(config).eval(), random_batch(config, size=3, invalid=0.1)
    del batch["nir"]
    valid = encoder.valid_tokens(batch)
    mask = sample_mask(valid, 20, generator=np.random.default_rng(0))
    mask = mask._replace(real=torch.ones_like(mask.visible, dtype=torch.bool)) if keys else mask
    with torch.no_grad():
        visible, _ = encoder._sequence(batch, mask)
        everything, _ = encoder._sequence(
            batch | {"nir": Raster(*(t[:, :2] if t.ndim > 1 else t for t in batch["rgb"]))}, None
        )
    expected = everything.gather(1, mask.visible[..., None].expand(-1, -1, config.dim))
    assert not ((mask.visible >= 49) & (mask.visible < 98)).any()  # none of the absent modality
    torch.testing.assert_close(visible[:, :-1], expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_number():
    config = demo_config(drop_path=0.3)
    batch = random_batch(config)
    hidden = torch.ones(2, 6, 49, dtype=torch.bool)
    hidden[:, :, :8] = False
    mask, gradients = mask_from_hidden(hidden), []
    for wanted in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(config).train()
        encoder.grad_checkpointing = wanted
        encoder(batch, mask).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_figures_on_their_way_are_written_once_and_before_a_state_is_saved(folder, monkeypatch):
    task, _ = build(options(folder))
    written, waited = [], []

    class Event:
        def synchronize(self):
            waited.append(len(written))

    monkeypatch.setattr(task, "_write", lambda values, step: written.append((step, values["train/loss"])))
    monkeypatch.setattr(task, "learning_rate", lambda step: 0.0)
    figures = torch.tensor([*range(len(task.names)), 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    task._pending = Pending(40, figures, task.skipped_steps, Event())
    task.on_save_checkpoint({})
    task.on_validation_start()
    task.on_train_end()
    assert written == [(40, sum(range(len(task.names))))]
    assert waited == [0]


COMPILED = """
import sys, torch
from multimae_eo.config import SIZES
from multimae_eo.options import DataOptions, MaskOptions, ModelOptions, OptimOptions, PretrainOptions, TrainerOptions
from multimae_eo.tasks.examples import TRAIN
from multimae_eo.tasks.run import build
backend, short = sys.argv[2:4]
# The real compiler takes several minutes for all views and blocks.
views = {"inputs": ["rgb", "elevation:sample"], "targets": ["rgb:patch", "land_cover"]}
if backend == "inductor":
    SIZES["demo"]["depth"] = 1
torch._dynamo.config.error_on_recompile = True
options = PretrainOptions(
    model=ModelOptions(size="demo", **(views if backend == "inductor" else {})), mask=MaskOptions(short_samples=short),
    data=DataOptions(root=sys.argv[1], workers=0), optim=OptimOptions(batch_size=8),
    trainer=TrainerOptions(compile=backend == "inductor"),
)
task, data = build(options)
begin, totals = task._begin, task._totals
if backend != "inductor":
    how = {"fullgraph": True, "dynamic": False, "backend": backend}
    begin, totals = torch.compile(task.begin, **how), torch.compile(task.totals, **how)
for step in range(3):
    examples = data.examples(TRAIN).__getitems__([(step, row) for row in range(step, step + 8)])
    found = []
    for prepare, losses in ((task.begin, task.totals), (begin, totals)):
        batch, mask, samples = prepare(examples)
        task.zero_grad()
        total = losses(batch, mask)
        (total / samples).sum().backward()
        found.append((mask.visible, total.detach(), {n: p.grad.clone() for n, p in task.named_parameters()}))
    (mask, total, grads), (other_mask, other_total, other_grads) = found
    assert torch.equal(mask, other_mask)
    torch.testing.assert_close(total, other_total, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        scale = max(1e-3, float(grad.abs().max()))
        torch.testing.assert_close(grad, other_grads[name], rtol=0, atol=2e-4 * scale, msg=lambda m: name + m)
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "short"),
    [("aot_eager", "mask"), ("inductor", "error")],
)
def test_a_step_compiles_as_one_graph_once(folder, backend, short):
    """In a process of its own: the checks of shapes of the other tests are no graph."""
    environment = {**os.environ, "MULTIMAE_EO_UNCHECKED": "1"}
    command = [sys.executable, "-c", COMPILED, str(folder), backend, short]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("same\n"), done.stderr[-3000:]
