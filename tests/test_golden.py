"""Parity with the paper's arithmetic: every folder of golden files, to the tolerance of its source."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file

from multimae_eo import reference
from multimae_eo.checkpoint import load_tensors
from multimae_eo.codecs import Standardize
from multimae_eo.config import with_statistics
from multimae_eo.losses import reconstruction_losses
from multimae_eo.masking import mask_from_hidden
from multimae_eo.modalities import Continuous, Statistics
from multimae_eo.model import MultiMAE
from multimae_eo.raster import Raster

GOLDEN = Path(os.environ.get("MULTIMAE_EO_GOLDEN", SHARED / "golden"))
FOLDERS = sorted(p.parent.name for p in GOLDEN.glob("*/config.json"))
NAMES = {paper: ours.partition(":")[0] for paper, ours in reference.INPUTS.items()}
# Network inputs are given, so the per-sample step is left out here; it has a test of its own.
VIEWS = {paper: ours.replace(":sample", "") for paper, ours in reference.TARGETS.items()}

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"no golden files in {GOLDEN} (set MULTIMAE_EO_GOLDEN)")


class Case:
    def __init__(self, name: str):
        folder = GOLDEN / name
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "cases.safetensors")
        (weights,) = [p for p in folder.iterdir() if p.suffix in (".pth", ".safetensors") and p.stem != "cases"]
        self.reference = reference.read(weights)
        config = reference.config_of(self.reference)
        identity = {
            m.name: with_statistics(m, {"L2A": Statistics((0.0,) * len(m.bands), (1.0,) * len(m.bands))})
            for m in config.modalities.values()
        }
        plain = {"inputs": [v.replace(":sample", "") for v in config.inputs]}
        plain["targets"] = [v.replace(":sample", "") for v in config.targets]
        config = replace(config, modalities=identity, **{k: tuple(v) for k, v in plain.items()})
        self.model = MultiMAE(config)
        tensors = reference.translate(self.reference, reference.config_of(self.reference))
        load_tensors(self.model, {k.replace(":sample", ""): v for k, v in tensors.items()}, source=name)
        self.everything = {NAMES[p]: self._raster(p) for p in NAMES if f"input.{p}" in self.tensors}
        self.inputs = {NAMES[p]: self.everything[NAMES[p]] for p in NAMES if p not in self.config["absent_inputs"]}
        self.mask = mask_from_hidden(torch.stack([self._hidden(n) for n in config.input_modalities], dim=1))

    def _raster(self, paper: str) -> Raster:
        values = self.tensors[f"input.{paper}"]
        if values.dtype == torch.int64:
            codes = self.model.config.modalities[NAMES[paper]].codes
            values = torch.tensor(codes)[values][:, None]
        return Raster(values, torch.ones_like(values, dtype=torch.bool), torch.zeros(len(values), dtype=torch.int64))

    def _hidden(self, name: str) -> torch.Tensor:
        paper = next(p for p, n in NAMES.items() if n == name)
        if paper in self.config["absent_inputs"]:
            height, width, patch = (self.config[k] for k in ("image_height", "image_width", "patch_size"))
            return torch.ones(self.config["batch"], height * width // patch**2, dtype=torch.bool)
        return self.tensors[f"mask.{paper}"].bool()

    def close(self, ours: torch.Tensor, key: str) -> None:
        theirs = self.tensors[key]
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()
        if theirs.isnan().all():  # the reference divides 0 by 0 where a sample sees all of a modality; ours may not
            return
        error = (ours.detach() - theirs).abs().max().item()
        assert error <= 1e-5 * max(1.0, theirs.abs().max().item()), f"{key}: error {error:.2e}"


@cache
def case(name: str) -> Case:
    return Case(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_predictions_and_losses(name):
    c = case(name)
    predicted = c.model(c.inputs, c.mask)
    order = list(c.model.decoders)
    masked = reconstruction_losses(c.model, predicted, c.everything, c.mask).mean()
    total = reconstruction_losses(c.model, predicted, c.everything, None).mean()
    for paper, view in VIEWS.items():
        c.close(predicted[view], f"pred.{paper}")
        c.close(masked[order.index(view)][None], f"loss_masked.{paper}")
        c.close(total[order.index(view)][None], f"loss_all.{paper}")


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_gradient_norms(name):
    c = case(name)
    c.model.zero_grad()
    losses = reconstruction_losses(c.model, c.model(c.inputs, c.mask), c.everything, c.mask)
    losses.mean().sum().backward()
    ours = {k: p.grad for k, p in c.model.named_parameters()}
    mine = unfolded_gradients(c, ours)
    expected = {k.removeprefix("gradnorm.") for k in c.tensors if k.startswith("gradnorm.")}
    assert len(expected) > 100
    for key in expected:
        c.close(mine.pop(key).norm().reshape(c.tensors[f"gradnorm.{key}"].shape), f"gradnorm.{key}")
    assert all(grad is None or not grad.any() for grad in mine.values()), "a gradient that the reference has not"


def unfolded_gradients(c: Case, ours: dict) -> dict:
    """Gradients under the reference's names; that of the folded projection through the chain rule of the fold."""
    result = {}
    for name in c.reference.tensors:
        section, _, rest = name.partition(".")
        key, _, part = rest.partition(".")
        if part == "pos_emb":
            continue
        view = VIEWS.get(key, "")
        if name == "global_tokens":
            result[name] = ours["encoder.global_tokens"]
        elif section == "encoder":
            result[name] = ours[f"encoder.blocks.{rest}"]
        elif section == "input_adapters":
            grad = ours[f"encoder.tokenizers.{view}.proj.{'bias' if part == 'proj.bias' else 'weight'}"]
            embedding = c.reference.tensors.get(f"input_adapters.{key}.class_emb.weight")
            if embedding is not None and part != "proj.bias":
                proj = c.reference.tensors[f"input_adapters.{key}.proj.weight"]
                grad = grad.reshape(len(proj), len(embedding), *proj.shape[-2:])
                if part == "proj.weight":
                    grad = torch.einsum("dkxy,ke->dexy", grad, embedding)
                else:
                    grad = torch.einsum("dkxy,dexy->ke", grad, proj)
            result[name] = grad
        elif part.startswith("task_embeddings"):
            row = c.model.config.input_modalities.index(NAMES[part.split(".")[1]])
            result[name] = ours[f"decoders.{view}.modality_embeddings"][row]
        else:
            head, _, tail = part.partition(".")
            own = ".".join(filter(None, (reference._DECODER_PARTS[head], tail)))
            result[name] = ours[f"decoders.{view}.{own}"]
    return result


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_encoder_of_every_subset_and_depth(name):
    c = case(name)
    keys = [k for k in c.tensors if k.startswith("encoder.")]
    assert len(keys) >= 5
    for key in keys:
        listed = [NAMES[p] for p in key.removeprefix("encoder.").split("+")]
        outputs = c.model.encoder.intermediates({n: c.everything[n] for n in reversed(listed)})
        number = outputs[0].shape[1] - c.config["num_global_tokens"]
        each = number // len(listed)
        own = [n for n in c.model.config.input_modalities if n in listed]
        parts = [torch.arange(each) + own.index(n) * each for n in listed]
        order = torch.cat([*parts, torch.arange(number, outputs[0].shape[1])])
        c.close(torch.stack([x[:, order] for x in outputs]), key)


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_elevation_standardised_per_sample(name):
    c = case(name)
    modality = c.model.config.modalities[NAMES["depth"]]
    assert isinstance(modality, Continuous)
    codec = Standardize(modality, "sample", 1)
    c.close(codec.encode(c.everything[modality.name]).values, "depth_standardized")


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_masks_are_right_sample_by_sample(name):
    c = case(name)
    together = c.model(c.inputs, c.mask)
    for i in range(c.config["batch"]):
        one = {n: Raster(*(part[i : i + 1] for part in r)) for n, r in c.inputs.items()}
        alone = c.model(one, c.mask._replace(visible=c.mask.visible[i : i + 1]))
        for view, predicted in alone.items():
            torch.testing.assert_close(predicted[0], together[view][i], atol=2e-6, rtol=1e-5)
