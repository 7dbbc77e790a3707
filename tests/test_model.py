"""The model and its losses: any subset, validity, order, gradients, sizes, roles, positions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import demo_config, nowhere, random_batch
from torch import nn

from multimae_eo.config import SIZES, sized
from multimae_eo.encoder import Encoder, Tokenizer
from multimae_eo.errors import BatchError, ConfigError, SizeError, UnknownNameError
from multimae_eo.losses import UncertaintyWeights, count_samples, reconstruction_losses
from multimae_eo.masking import sample_mask
from multimae_eo.modalities import MODALITIES, Categorical
from multimae_eo.model import MultiMAE
from multimae_eo.raster import Raster

ALL = (*demo_config().inputs, "sar", "canopy_height")


def build(seed=0, **fields):
    torch.manual_seed(seed)
    return MultiMAE(demo_config(**fields)).eval()


def draw(model, batch, budget=20, seed=0):
    return sample_mask(model.encoder.valid_tokens(batch), budget, generator=np.random.default_rng(seed))


def loss_and_gradients(model, batch, mask):
    model.zero_grad()
    losses = reconstruction_losses(model, model(batch, mask), batch, mask)
    losses.mean().sum().backward()
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and all(
        torch.equal(a[1][n], b[1][n]) for n in a[1]
    )


@pytest.mark.parametrize("junk", [float("nan"), float("-inf"), 1e30])
def test_values_under_invalid_pixels_change_no_bit_of_loss_or_gradient(junk):
    model = build(targets=(*demo_config().targets, "elevation"))
    batch = {n: r._replace(values=r.values.float()) for n, r in random_batch(model.config, invalid=0.3).items()}
    spoiled = {n: r._replace(values=torch.where(r.valid, r.values, junk)) for n, r in batch.items()}
    mask = draw(model, batch)
    assert torch.equal(mask.visible, draw(model, spoiled).visible)
    assert same(loss_and_gradients(model, batch, mask), loss_and_gradients(model, spoiled, mask))


@pytest.mark.parametrize("name", demo_config().input_modalities)
def test_an_absent_modality_equals_one_that_is_valid_nowhere(name):
    model = build()
    batch = random_batch(model.config)
    absent = {n: r for n, r in batch.items() if n != name}
    invalid = {**batch, name: nowhere(batch[name])}
    mask = draw(model, absent)
    assert torch.equal(mask.visible, draw(model, invalid).visible)
    one, two = loss_and_gradients(model, absent, mask), loss_and_gradients(model, invalid, mask)
    assert same(one, two)
    torch.testing.assert_close(
        model.encoder(absent)[:, -1], model.encoder(invalid)[:, -1], rtol=1e-4, atol=1e-5
    )  # without a mask: shorter sequence against key mask


@pytest.mark.parametrize("name", demo_config().input_modalities)
def test_every_parameter_has_a_gradient_and_those_of_an_absent_modality_are_zero(name):
    model = build()
    batch = {n: r for n, r in random_batch(model.config).items() if n != name}
    _, gradients = loss_and_gradients(model, batch, draw(model, batch))
    assert set(gradients) == {n for n, _ in model.named_parameters()}
    own = [g for n, g in gradients.items() if f"tokenizers.{name}." in n or f"decoders.{name}" in n]
    assert own
    assert not any(g.any() for g in own)


def test_the_order_of_the_caller_s_dict_is_irrelevant():
    model = build()
    batch = random_batch(model.config)
    turned = dict(reversed(batch.items()))
    mask = draw(model, batch)
    assert same(loss_and_gradients(model, batch, mask), loss_and_gradients(model, turned, mask))
    assert torch.equal(model.encoder(batch), model.encoder(turned))


def test_samples_of_one_batch_may_lack_different_modalities():
    model = build()
    batch = random_batch(model.config, size=3)
    for row, name in enumerate(model.config.input_modalities[:3]):
        batch[name].valid[row] = False
    mask = draw(model, batch)
    together = model(batch, mask)
    for row in range(3):
        alone = {n: Raster(*(p[row : row + 1] for p in r)) for n, r in batch.items()}
        part = model(alone, mask._replace(visible=mask.visible[row : row + 1]))
        for view in together:
            torch.testing.assert_close(part[view][0], together[view][row], rtol=1e-4, atol=1e-5)
        encoded = model.encoder(alone)[0, -1]
        torch.testing.assert_close(encoded, model.encoder(batch)[row, -1], rtol=1e-4, atol=1e-5)


def test_places_that_a_short_sample_cannot_fill_change_nothing():
    model = build()
    batch = random_batch(model.config, size=2)
    full = draw(model, batch, 20)
    padded = torch.cat([full.visible, torch.zeros(2, 5, dtype=torch.int64)], dim=1)
    real = torch.arange(25).expand(2, -1) < 20
    for view, predicted in model(batch, full).items():
        other = model(batch, type(full)(padded, real))[view]
        torch.testing.assert_close(other, predicted, rtol=1e-4, atol=1e-5)


def test_roles_input_only_target_only_both():
    model = build(inputs=("rgb", "sar"), targets=("rgb", "land_cover", "elevation:sample"))
    batch = random_batch(model.config)
    mask = draw(model, {n: batch[n] for n in ("rgb", "sar")})
    losses = reconstruction_losses(model, model(batch, mask), batch, mask)
    assert (losses.samples == 2).all()
    assert losses.mean().isfinite().all()
    targets_only = {n: r for n, r in batch.items() if n in ("land_cover",)}
    with pytest.raises(BatchError, match="no input"):
        model.encoder(targets_only)


def test_sentinel1_and_canopy_height_are_modalities_like_others():
    model = build(inputs=ALL, targets=(*ALL, "rgb:patch"))
    batch = random_batch(model.config)
    losses, gradients = loss_and_gradients(model, batch, draw(model, batch))
    assert (losses.samples == 2).all()
    assert all(g.any() for n, g in gradients.items() if "tokenizers.sar.proj.weight" in n or "decoders.canopy" in n)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    with torch.device("meta"):
        model = MultiMAE(sized(size))
    number = sum(p.numel() for p in model.parameters()) / 1e6
    low, high = {"demo": (0.5, 1.5), "tiny": (8, 10), "small": (24, 28), "base": (88, 96), "large": (305, 320)}[size]
    assert low < number < high


@pytest.mark.parametrize("pixels", [56, 64, (48, 96)])
@pytest.mark.parametrize("positions", ["resized", "fixed_pitch"])
def test_any_size_that_the_patch_divides(pixels, positions):
    model = build(positions=positions)
    batch = random_batch(model.config, pixels=96)
    height, width = pixels if isinstance(pixels, tuple) else (pixels, pixels)
    strides = {n: m.stride for n, m in model.config.modalities.items()}
    cut = {
        n: Raster(
            r.values[..., : height // strides[n], : width // strides[n]],
            r.valid[..., : height // strides[n], : width // strides[n]],
            r.product,
        )
        for n, r in batch.items()
    }
    for view, predicted in model(cut, draw(model, cut)).items():
        stride = strides[view.split(":")[0]]
        assert predicted.shape[-2:] == (height // stride, width // stride)


def test_fixed_pitch_keeps_the_meaning_of_a_step_and_equals_resized_at_the_training_size():
    fixed, resized = build(positions="fixed_pitch").encoder, build(positions="resized").encoder
    for mode in ("bicubic", "bilinear"):
        torch.testing.assert_close(fixed.positions[mode]((7, 7)), resized.positions[mode]((7, 7)))
        large = fixed.positions[mode]((12, 9)).unflatten(0, (12, 9))[:7, :7].flatten(0, 1)
        torch.testing.assert_close(large, fixed.positions[mode]((7, 7)), atol=1e-5, rtol=0)
        assert (resized.positions[mode]((14, 14)) - fixed.positions[mode]((14, 14))).abs().max() > 0.1


def test_one_hot_projection_equals_embedding_and_convolution():
    config = demo_config()
    view = next(v for v in config.input_views if isinstance(config.modalities[v.modality], Categorical))
    tokenizer = Tokenizer(view, config)
    modality, patch = config.modalities[view.modality], tokenizer.patch
    embedding, conv = nn.Embedding(modality.channels, 64), nn.Conv2d(64, config.dim, patch, patch)
    with torch.no_grad():
        tokenizer.proj.weight.copy_(torch.einsum("dexy,ke->dkxy", conv.weight, embedding.weight).flatten(1))
        tokenizer.proj.bias.copy_(conv.bias)
        raster = random_batch(config)[view.modality]
        index = (raster.values[:, 0, ..., None] == torch.tensor(modality.codes)).int().argmax(-1)
        expected = conv(embedding(index).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokenizer(raster)[0], expected, rtol=1e-4, atol=1e-5)


def test_class_tokens_start_at_the_scale_of_image_tokens():
    torch.manual_seed(0)
    model = MultiMAE(replace(sized("tiny"), dim=768, heads=12, depth=1))
    batch = random_batch(model.config, size=8)
    std = {n: model.encoder.tokenizers[n](batch[n])[0].std().item() for n in ("rgb", "land_cover")}
    assert std["land_cover"] == pytest.approx(std["rgb"], rel=0.15)
    assert std["rgb"] == pytest.approx(0.63, rel=0.1)


def test_the_loss_averages_per_sample_first():
    model = build(inputs=("rgb",), targets=("rgb",))
    batch = random_batch(model.config, size=2)
    batch["rgb"].valid[0, :, 4:] = False
    target = model.decoders["rgb"].codec.encode(batch["rgb"])
    losses = reconstruction_losses(model, {"rgb": torch.zeros_like(target.values)}, batch, None)
    errors = target.values.square().mean(1)
    expected = torch.stack([errors[0, :4].mean(), errors[1].mean()])
    torch.testing.assert_close(losses.mean()[0], expected.mean())
    assert torch.equal(losses.samples, count_samples(model, batch, None))


def test_uncertainty_weights_ignore_absent_views():
    weights = UncertaintyWeights(3)
    nn.init.constant_(weights.log_variance, 0.7)
    out = weights(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([True, True, False]))
    out.sum().backward()
    torch.testing.assert_close(out[:2], torch.tensor([1.0, 2.0]) * np.exp(-0.7).astype("float32") + 0.7)
    assert out[2] == 0
    assert weights.log_variance.grad[2] == 0


def test_mixed_precision_keeps_classes_in_float32():
    model = build()
    batch = random_batch(model.config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = model(batch, draw(model, batch))
    kinds = {v: p.dtype for v, p in predicted.items()}
    assert kinds["land_cover"] == torch.float32
    assert kinds["rgb"] == torch.bfloat16


def test_bad_batches_and_configs_are_named():
    model = build()
    batch = random_batch(model.config)
    mask = draw(model, batch)
    with pytest.raises(UnknownNameError, match="Did you mean 'rgb'"):
        model({"rgbb": batch["rgb"]}, mask)
    with pytest.raises(SizeError, match="not a multiple of the patch size"):
        model.encoder({"rgb": Raster(*(p[..., :50, :50] if p.ndim > 1 else p for p in batch["rgb"]))})
    with pytest.raises(SizeError, match="one frame"):
        model.encoder(
            {"rgb": batch["rgb"], "nir": Raster(*(p[..., :48, :48] if p.ndim > 1 else p for p in batch["nir"]))}
        )
    with pytest.raises(BatchError, match=r"expected 2 bands \('B8A', 'B08'\), got 3"):
        model.encoder({"nir": batch["rgb"]})
    with pytest.raises(BatchError, match="empty"):
        model.encoder({})
    with pytest.raises(ConfigError, match="multiple of 4 that divides 224"):
        demo_config(patch_size=12)
    with pytest.raises(ConfigError, match="more than once"):
        demo_config(inputs=("elevation", "elevation:sample"))
    with pytest.raises(UnknownNameError, match="Did you mean 'elevation'"):
        demo_config(inputs=("elevatoin",))
    with pytest.raises(UnknownNameError, match="Did you mean 'sample'"):
        demo_config(inputs=("elevation:sampel",))
    with pytest.raises(ConfigError, match="classes are not standardised"):
        demo_config(inputs=("land_cover:patch",))


def test_an_encoder_stands_alone():
    config = demo_config()
    encoder = Encoder(config)
    batch = random_batch(config)
    for names in (("rgb",), ("nir", "land_cover"), tuple(MODALITIES)[:6]):
        tokens = encoder({n: batch[n] for n in names})
        assert tokens.shape == (2, 49 * len(names) + 1, config.dim)
