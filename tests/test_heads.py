"""Heads and fine-tuned models: any subset, any size, any order of modalities; checkpoints of them; layer decay."""

import json
from dataclasses import replace

import pytest
import torch
from batches import demo_config, nowhere, random_batch, without
from torch import nn

from multimae_eo import checkpoint
from multimae_eo.config import HEADS, TaskConfig
from multimae_eo.data.labelled import numbered_classes
from multimae_eo.encoder import Seen, TokenLayout
from multimae_eo.errors import BatchError, CheckpointError, ConfigError
from multimae_eo.heads import ConvNeXtHead, Slots
from multimae_eo.model import MultiMAE
from multimae_eo.optim import parameter_groups
from multimae_eo.predictor import Predictor
from multimae_eo.raster import Batch, Raster

INPUTS = ("rgb", "nir", "elevation", "land_cover")
CLASSES = numbered_classes(("water", "forest", "field"))
KINDS = [(task, head) for task, heads in HEADS.items() for head in heads]
every_kind = pytest.mark.parametrize(("task", "head"), KINDS)
# One task for each of the four heads.
every_head = pytest.mark.parametrize(
    ("task", "head"),
    [
        ("classification", "linear"),
        ("multilabel", "attentive"),
        ("segmentation", "convnext"),
        ("regression", "linear_dense"),
    ],
)


def predictor(task: str, head: str, **fields) -> Predictor:
    torch.manual_seed(0)
    classes = () if task == "regression" else CLASSES
    described = TaskConfig(task=task, head=head, inputs=INPUTS, classes=classes, **fields)
    model = Predictor(demo_config(), described).eval()
    for parameter in model.head.parameters():  # biases and norms that are not trivial
        nn.init.normal_(parameter, std=0.3) if parameter.ndim < 2 else None
    return model


def small_batch(size: int = 3, pixels: int = 24, invalid: float = 0.3) -> Batch:
    batch = random_batch(without(demo_config(), "red_edge", "swir"), size, pixels, invalid=invalid)
    return {name: batch[name] for name in INPUTS}


def same(one: torch.Tensor, two: torch.Tensor) -> None:
    assert one.shape == two.shape
    assert one.isfinite().all()
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


@every_kind
def test_shapes_and_what_predict_gives(task, head):
    model, batch = predictor(task, head), small_batch()
    number = 1 if task == "regression" else 3
    out, found = model(batch), model.predict(batch)
    assert out.shape == ((3, number, 24, 24) if model.task.dense else (3, number))
    if task == "multilabel":
        torch.testing.assert_close(found, out.sigmoid())
    elif task == "regression":
        assert torch.equal(found, out[:, 0])
    else:
        assert torch.equal(found, out.argmax(dim=1))
        assert found.dtype == torch.int64


@every_head
def test_absent_equals_valid_nowhere(task, head):
    model, batch = predictor(task, head), small_batch()
    for gone in INPUTS:
        present = {**batch, gone: nowhere(batch[gone])}
        same(model({n: r for n, r in batch.items() if n != gone}), model(present))
    assert (model(batch) - model({**batch, "nir": nowhere(batch["nir"])})).abs().max() > 1e-3


@every_head
def test_each_sample_of_a_batch_equals_the_sample_alone_with_its_own_modalities(task, head):
    model, batch = predictor(task, head), small_batch()
    subsets = (("rgb", "nir"), ("elevation",), ("land_cover", "nir", "rgb"))
    mixed = {
        name: raster._replace(valid=raster.valid & torch.tensor([name in s for s in subsets])[:, None, None, None])
        for name, raster in batch.items()
    }
    together = model(mixed)
    for i, subset in enumerate(subsets):
        alone = {name: Raster(*(part[i : i + 1] for part in batch[name])) for name in subset}
        same(together[i : i + 1], model(alone))


@every_head
def test_nan_where_nothing_was_measured_changes_no_bit_and_no_gradient(task, head):
    model, batch = predictor(task, head), small_batch()
    measured = {n: r for n, r in batch.items() if n != "land_cover"}
    poisoned = {n: r._replace(values=r.values.masked_fill(~r.valid, float("nan"))) for n, r in measured.items()}
    gradients = []
    for given in (measured, poisoned):
        model.zero_grad()
        out = model(given)
        out.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert torch.equal(model(measured), model(poisoned))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@every_head
def test_gradients_are_finite_also_where_a_sample_has_no_valid_token(task, head):
    model, batch = predictor(task, head).train(), small_batch()
    for raster in batch.values():
        raster.valid[1] = False
        raster.values[1] = 0 if raster.values.dtype == torch.int64 else float("nan")
    out = model(batch)
    assert out.isfinite().all()
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    untouched = {n.split(".")[2] for n, p in model.named_parameters() if p.grad is None}
    assert untouched == {"red_edge", "swir"}  # the tokenizers of what the task is not fed


@every_head
def test_the_order_of_the_batch_does_not_matter_and_strangers_are_ignored(task, head):
    model, batch = predictor(task, head), small_batch()
    assert torch.equal(model(batch), model(dict(reversed(batch.items()))))
    more = random_batch(model.config, size=3, pixels=24)
    assert torch.equal(model(batch), model({"red_edge": more["red_edge"], **batch, "chm": more["rgb"]}))
    with pytest.raises(BatchError, match=r"expected any of rgb, nir, elevation, land_cover"):
        model({"red_edge": more["red_edge"]})


@every_head
def test_sizes_that_the_patch_does_not_divide_are_padded_and_cropped_back(task, head):
    model, batch = predictor(task, head), small_batch()
    cut, padded = {}, {}
    for name, (values, valid, product) in batch.items():
        rows, columns = (6, 5) if name == "land_cover" else (21, 19)  # of the 40 and the 10 m grid
        cut[name] = Raster(values[..., :rows, :columns], valid[..., :rows, :columns], product)
        inside = torch.zeros_like(valid)
        inside[..., :rows, :columns] = True
        padded[name] = Raster(values, valid & inside, product)
    want = model(padded)
    same(model(cut), want[..., :21, :19] if model.task.dense else want)


def test_regression_predicts_in_the_unit_of_the_labels():
    plain, scaled = predictor("regression", "convnext"), predictor("regression", "convnext", mean=12.0, std=7.0)
    batch = small_batch()
    torch.testing.assert_close(scaled(batch), plain(batch) * 7 + 12)


def test_a_large_mean_keeps_its_digits_in_half_precision():
    about = TaskConfig("regression", "linear_dense", ("rgb",), unit="K", mean=290.0, std=5.0)
    torch.manual_seed(0)
    model = Predictor(demo_config(), about).eval()
    batch = {"rgb": random_batch(model.config)["rgb"]}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model.predict(batch)
    assert half.unique().numel() > 100  # the numbers of bfloat16 lie 2 apart there
    assert (half - model.predict(batch)).abs().max() < 0.2


def test_slots_are_keyed_by_name_and_filled_where_nothing_is_valid():
    slots = Slots(("nir", "swir", "rgb"), 2)
    seen = Seen(
        torch.arange(20.0).reshape(1, 10, 2),
        torch.ones(1, 10, dtype=torch.bool),
        layout := TokenLayout(("rgb", "nir"), (2, 2)),
    )
    seen.valid[0, layout.start("nir") + 3] = False
    found = slots(seen)
    assert found.shape == (1, 4, 6)
    assert torch.equal(found[0, :, 4:], seen.tokens[0, :4])
    assert torch.equal(found[0, :3, :2], seen.tokens[0, 4:7])
    assert torch.equal(found[0, 3, :2], slots.absent[0])
    assert torch.equal(found[0, :, 2:4], slots.absent[1].expand(4, 2))


def test_the_sizes_of_the_convnext_head_are_the_papers():
    head = ConvNeXtHead(("rgb", "nir"), 768, 16, 5)
    assert head.widen.weight.shape == (6144, 2 * 768)
    assert len(head.blocks) == 4
    for block in head.blocks:
        assert block.depthwise.weight.shape == (384, 1, 7, 7)
        assert block.fc1.weight.shape == (4 * 384, 384)
        assert block.norm.normalized_shape == (384,)
    assert head.out.weight.shape == (5, 384, 1, 1)
    cells = []
    head.blocks.register_forward_pre_hook(lambda _, given: cells.append(given[0]))
    layout = TokenLayout(("rgb", "nir"), (2, 3))
    tokens = torch.zeros(1, 13, 768)
    tokens[0, 4] = 1.0  # of rgb, in the second row and column
    with torch.no_grad():
        out = head(Seen(tokens, torch.ones(1, 13, dtype=torch.bool), layout))
    assert out.shape == (1, 5, 32, 48)
    assert cells[0].shape == (1, 384, 8, 12)
    assert cells[0][..., 4:8, 4:8].abs().amax(dim=1).min() > 0
    cells[0][..., 4:8, 4:8] = 0
    assert not cells[0].any()


def test_a_head_must_fit_its_task():
    with pytest.raises(ConfigError, match="head 'convnext' does not fit multilabel; expected linear or attentive"):
        TaskConfig(task="multilabel", head="convnext", inputs=("rgb",))
    with pytest.raises(ConfigError, match="name at least one modality"):
        TaskConfig(task="multilabel", head="linear", inputs=())


# Checkpoints


@every_kind
def test_a_saved_model_is_the_same_when_loaded(task, head, tmp_path):
    model = predictor(task, head, dataset="own", products={"rgb": "L2A"}, bands=("B04",), mean=3.0, std=2.0)
    place = checkpoint.save(model, tmp_path / "model", extra={"step": 7})
    content = json.loads((place / "config.json").read_text())
    assert (content["task"]["head"], content["task"]["inputs"]) == (head, list(INPUTS))
    loaded = checkpoint.load_predictor(place)
    assert not loaded.training
    assert (loaded.task, loaded.config) == (model.task, model.config)
    assert loaded.task.products == {"rgb": "L2A"}
    assert torch.equal(loaded(small_batch()), model(small_batch()))


def test_the_encoder_of_a_fine_tuned_model_can_be_loaded_alone(tmp_path):
    model = predictor("segmentation", "convnext")
    place = checkpoint.save(model, tmp_path / "model")
    encoder = checkpoint.load(place)
    own = model.encoder.state_dict()
    assert encoder.state_dict().keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match=r"has no decoders\. .*load_predictor"):
        checkpoint.load_model(place)


def test_a_pretrained_model_has_no_head(tmp_path):
    place = checkpoint.save(MultiMAE(demo_config()), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"pre-trained model without a head.*the folder best"):
        checkpoint.load_predictor(place)


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("head", "bogus", "entry 'task.head': expected one of"),
        ("head", "convnext", "describes no task: head 'convnext' does not fit classification"),
        ("mean", "high", "entry 'task.mean': expected a number, got 'high'"),
        ("inputs", "rgb", "entry 'task.inputs': expected a list, got 'rgb'"),
        ("classes", [{"code": 0}], r"entry 'task.classes\[0\]': missing entries \['color', 'name'\]"),
        ("more", 1, r"entry 'task': unknown entries \['more'\]"),
        ("task", None, r"entry 'task': missing entries \['task'\]"),
        (None, ["linear"], r"entry 'task': expected an object, got \['linear'\]"),
        ("classes", [], r"'head.out.weight' has shape \[3, 32\], expected \[1, 32\]"),
    ],
)
def test_a_damaged_description_of_the_task_is_named(entry, value, says, tmp_path):
    place = checkpoint.save(predictor("classification", "linear"), tmp_path / "model")
    content = json.loads((place / "config.json").read_text())
    if entry is None:
        content["task"] = value
    elif value is None:
        del content["task"][entry]
    else:
        content["task"][entry] = value
    (place / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load_predictor(place)


def test_statistics_of_the_data_travel_with_the_model(tmp_path):
    config = demo_config()
    rgb = config.modalities["rgb"]
    own = replace(rgb, statistics={**rgb.statistics, "own": replace(rgb.statistics["L2A"], mean=(1.0, 2.0, 3.0))})
    config = replace(config, modalities={**config.modalities, "rgb": own})
    model = Predictor(config, TaskConfig("classification", "linear", ("rgb",), CLASSES)).eval()
    loaded = checkpoint.load_predictor(checkpoint.save(model, tmp_path / "model"))
    assert loaded.config.modalities["rgb"].statistics["own"].mean == (1.0, 2.0, 3.0)
    batch = {"rgb": random_batch(demo_config(), pixels=16)["rgb"]._replace(product=torch.tensor([2, 2]))}
    assert torch.equal(loaded(batch), model(batch))


# Groups of parameters


@every_head
def test_layer_decay_scales_every_layer_and_spares_norms_biases_and_tokens(task, head):
    model = predictor(task, head)
    groups = parameter_groups(model, 0.05, layer_decay=0.5, depth=2)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(found) == len(list(model.parameters()))
    scales = {"head": 1.0, "encoder.blocks.1": 0.5, "encoder.blocks.0": 0.25, "encoder.tokenizers": 0.125}
    scales["encoder.global_tokens"] = 0.125
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, parameter in model.named_parameters():
        (scale,) = {s for prefix, s in scales.items() if name.startswith(f"{prefix}.") or name == prefix}
        assert found[id(parameter)] == (scale, 0.05 if id(parameter) in decayed else 0.0), name


def test_without_layer_decay_there_are_two_groups():
    model = predictor("segmentation", "convnext")
    groups = parameter_groups(model, 0.05, layer_decay=1.0, depth=2)
    assert [(g["weight_decay"], g["lr_scale"]) for g in groups] == [(0.05, 1.0), (0.0, 1.0)]
    plain = parameter_groups(model, 0.05)
    assert [list(map(id, g["params"])) for g in groups] == [list(map(id, g["params"])) for g in plain]
