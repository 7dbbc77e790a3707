"""timm itself: the methods its users know, its registry, and one modality as a plain ViT with equal features."""

import pytest
import torch

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, in versions that pip chooses

from multimae_eo import MODALITIES, MultiMAE, Raster, save, sized  # noqa: E402
from multimae_eo.errors import CheckpointError, ConfigError, UnknownNameError  # noqa: E402
from multimae_eo.integrations.backbone import Stated  # noqa: E402
from multimae_eo.integrations.timm import TimmEncoder, standardised, timm_vit  # noqa: E402

BANDS = ["B02", "B03", "B04", "B08", "B8A"]
L2A = {"bands": BANDS, "units": "dn", "product": "L2A"}


def images(height=64, width=64):
    return torch.randint(200, 3000, (2, 5, height, width), generator=torch.Generator().manual_seed(0))


def model(**options):
    torch.manual_seed(0)
    return timm.create_model("multimae_eo_demo", **L2A, **options).eval()


def test_forward_is_head_of_features():
    vit = model(num_classes=7)
    tokens = vit.forward_features(images())
    assert tokens.shape == (2, 1 + 64, 96)
    assert torch.equal(vit(images()), vit.forward_head(tokens))
    assert vit(images()).shape == (2, 7)
    pooled = vit.forward_head(tokens, pre_logits=True)
    assert torch.allclose(pooled, vit.fc_norm(tokens[:, 1:].mean(dim=1)), atol=1e-6)
    vit.reset_classifier(3, "token")
    assert vit(images()).shape == (2, 3)
    assert vit.get_classifier() is vit.head
    vit.reset_classifier(0, "")
    assert torch.equal(vit(images()), tokens)


def test_patches_without_a_measured_pixel_do_not_count():
    vit = model()
    half = images().float()
    half[:, :, 32:] = torch.nan
    tokens = vit.forward_features(half)
    measured = tokens[:, 1:33]
    assert (tokens[:, 33:] == 0).all()
    assert torch.allclose(vit.forward_head(tokens), vit.fc_norm(measured.mean(dim=1)), atol=1e-5)


def test_intermediates_and_feature_info():
    vit = model()
    final, maps = vit.forward_intermediates(images(61, 77), indices=2)
    assert [m.shape for m in maps] == [(2, 96, 8, 10)] * 2
    tokens = vit.forward_features(images(61, 77))
    assert torch.equal(final, tokens)
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:])
    flat = vit.forward_intermediates(images(), indices=[0, -1], output_fmt="NLC", intermediates_only=True)
    assert [f.shape for f in flat] == [(2, 64, 96)] * 2
    (with_prefix,) = vit.forward_intermediates(
        images(), indices=[-1], return_prefix_tokens=True, intermediates_only=True
    )
    assert torch.equal(with_prefix[1], vit.forward_features(images())[:, :1])
    found = vit.forward_intermediates(images(), indices=[1], output_dict=True, return_prefix_tokens=True)
    assert sorted(found) == ["image_features", "image_intermediates", "image_intermediates_prefix"]
    assert vit.feature_info.channels() == [96] * 4
    assert vit.feature_info.reduction() == [8] * 4
    assert dict(vit.named_modules())[vit.feature_info.module_name(2)] is vit.encoder.blocks[2]
    first = vit.forward_intermediates(images(), indices=[1], intermediates_only=True)
    assert vit.prune_intermediate_layers([1]) == [1]
    assert len(vit.encoder.blocks) == 2
    assert torch.equal(vit.forward_intermediates(images(), indices=[1], intermediates_only=True)[0], first[0])
    with pytest.raises(UnknownNameError, match="output_fmt"):
        vit.forward_intermediates(images(), output_fmt="NHWC")


def test_zeros_that_were_measured():
    dark = images().where(torch.arange(64) < 32, 0)
    measured = TimmEncoder(model().encoder, Stated(BANDS, "dn", "L2A", nodata=None))(dark)
    assert torch.allclose(model(nodata=float("nan"))(dark), measured)
    assert not torch.allclose(model()(dark), measured)


def test_modalities_side_by_side():
    torch.manual_seed(0)
    vit = TimmEncoder(MultiMAE(sized("demo")).encoder, Stated(**L2A), merge="concat", num_classes=2)
    assert vit.inputs == ("rgb", "nir")
    assert vit.num_features == 192
    assert vit.forward_features(images()).shape == (2, 65, 192)
    assert vit(images()).shape == (2, 2)


def test_layer_decay_and_checkpointing():
    from timm.optim import param_groups_layer_decay

    vit = model(num_classes=3).train()
    groups = param_groups_layer_decay(
        vit, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=vit.no_weight_decay()
    )
    named = {id(p): n for n, p in vit.named_parameters()}
    scale = {named[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scale) == len(named)
    assert scale["encoder.tokenizers.rgb.proj.weight"] < scale["encoder.blocks.0.attn.qkv.weight"]
    assert scale["encoder.blocks.0.attn.qkv.weight"] < scale["encoder.blocks.3.attn.qkv.weight"] < scale["head.weight"]
    decay = {named[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert decay["encoder.global_tokens"] == 0 < decay["head.weight"]
    gradients = []
    for enable in (False, True):
        vit.set_grad_checkpointing(enable)
        vit.zero_grad()
        vit(images()).sum().backward()
        gradients.append(vit.encoder.blocks[0].attn.qkv.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("name", ["rgb", "land_cover", "nir"])
@pytest.mark.parametrize(("prefix", "size"), [(1, 56), (3, 64)])
def test_one_modality_as_a_plain_vit(name, prefix, size):
    torch.manual_seed(0)
    encoder = MultiMAE(sized("demo", num_global_tokens=prefix)).encoder.eval()
    modality = MODALITIES[name]
    shape = (2, len(modality.bands), size // modality.stride, size // modality.stride)
    values = torch.randint(200, 3000, shape).float()
    if name == "land_cover":
        values = torch.tensor(modality.codes)[torch.randint(len(modality.codes), shape)]
    raster = Raster(values, torch.ones(shape, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
    vit = timm_vit(encoder, name, size)
    assert type(vit) is timm.models.VisionTransformer
    with torch.no_grad():
        ours = encoder({name: raster})
        theirs = vit.forward_features(standardised(encoder, name, raster))
    assert torch.allclose(theirs[:, prefix:], ours[:, :-prefix], atol=1e-5)
    assert torch.allclose(theirs[:, :prefix], ours[:, -prefix:], atol=1e-5)


def test_timm_loads_the_weights_by_itself(tmp_path):
    encoder = MultiMAE(sized("tiny", image_size=64)).encoder
    path = tmp_path / "rgb.pth"
    torch.save(timm_vit(encoder, "rgb").state_dict(), path)
    options = {"img_size": 64, "patch_size": 8, "no_embed_class": True, "final_norm": False, "num_classes": 0}
    vit = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(path), **options)
    assert torch.equal(vit.blocks[3].mlp.fc1.weight, encoder.blocks[3].mlp.fc1.weight)


def test_mistakes(tmp_path):
    encoder = MultiMAE(sized("demo")).encoder
    with pytest.raises(UnknownNameError, match=r"'rbg'\. Did you mean 'rgb'"):
        timm_vit(encoder, "rbg")
    with pytest.raises(ConfigError, match="not a multiple of patch_size 8"):
        timm_vit(encoder, "rgb", 60)
    with pytest.raises(CheckpointError, match="No pre-trained weights come with this package"):
        model(pretrained=True)
    with pytest.raises(UnknownNameError, match="global_pool"):
        model(global_pool="max")
    save(MultiMAE(sized("demo")), tmp_path / "demo")
    with pytest.raises(CheckpointError, match="not of size tiny"):
        timm.create_model("multimae_eo_tiny", checkpoint=str(tmp_path / "demo"))
    assert timm.create_model("multimae_eo_demo", checkpoint=str(tmp_path / "demo"), drop_path_rate=0.1).training
