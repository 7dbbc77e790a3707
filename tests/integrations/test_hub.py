"""The Hub, offline: local folders, and the layout of its cache; the conventions of PyTorchModelHubMixin."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin

import multimae_eo
from multimae_eo import MODALITIES, MultiMAE, sized
from multimae_eo.config import TaskConfig
from multimae_eo.errors import CheckpointError
from multimae_eo.integrations.hub import HubEncoder, HubModel, HubPredictor

REVISION = "0123456789abcdef0123456789abcdef01234567"
RGB = {"bands": ["B04", "B03", "B02"], "units": "dn", "product": "L2A"}


def make(kind, product="L2A"):
    torch.manual_seed(0)
    config = sized("demo")
    if kind is HubPredictor:
        classes = MODALITIES["land_cover"].classes[:3]
        about = {"classes": classes, "dataset": "mine", "products": {"rgb": product}}
        return kind(config, TaskConfig("segmentation", "linear_dense", ("rgb",), **about)).eval()
    return kind(config).eval()


def in_cache(folder: Path, cache: Path, name: str = "someone/demo") -> None:
    """A folder as the Hub's cache holds a repository."""
    place = cache / ("models--" + name.replace("/", "--"))
    shutil.copytree(folder, place / "snapshots" / REVISION)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)


@pytest.mark.parametrize("kind", [HubEncoder, HubModel, HubPredictor])
def test_there_and_back(kind, tmp_path):
    model = make(kind)
    assert isinstance(model, PyTorchModelHubMixin)
    model.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = kind.from_pretrained(tmp_path / "model")
    assert type(loaded) is kind
    assert not loaded.training
    assert loaded.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    images = torch.randint(200, 3000, (1, 3, 16, 16))
    encoder = model if kind is HubEncoder else model.encoder
    with torch.no_grad():
        assert torch.equal(multimae_eo.load(tmp_path / "model")(images, **RGB), encoder(images, **RGB))


def test_what_the_core_saves_is_what_the_hub_loads(tmp_path):
    model = MultiMAE(sized("demo"))
    multimae_eo.save(model, tmp_path / "model", extra={"steps": 12})
    loaded = HubModel.from_pretrained(str(tmp_path / "model"))
    assert loaded.extra == {"steps": 12}
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert HubEncoder.from_pretrained(tmp_path / "model").config.dim == 96
    with pytest.raises(CheckpointError, match="without a head"):
        HubPredictor.from_pretrained(tmp_path / "model")
    encoder = multimae_eo.load(tmp_path / "model")
    multimae_eo.save(encoder, tmp_path / "encoder")
    assert torch.equal(multimae_eo.load(tmp_path / "encoder").global_tokens, encoder.global_tokens)
    with pytest.raises(CheckpointError, match=r"decoders.*missing"):
        multimae_eo.load_model(tmp_path / "encoder")


def test_from_the_layout_of_the_hub(tmp_path, monkeypatch):
    """Offline, a repository that was downloaded before; by name, by revision, through every way in."""
    model = make(HubModel)
    model.save_pretrained(tmp_path / "model")
    in_cache(tmp_path / "model", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    loaded = HubModel.from_pretrained("someone/demo", cache_dir=tmp_path / "cache")
    assert torch.equal(loaded.encoder.global_tokens, model.encoder.global_tokens)
    for name in ("someone/demo", f"someone/demo@{REVISION}", "someone/demo@main"):
        assert torch.equal(multimae_eo.load(name).global_tokens, model.encoder.global_tokens)
    assert multimae_eo.load_model("someone/demo").config == model.config
    for name in ("someone/other", "someone/demo@v2"):
        with pytest.raises(CheckpointError, match=r"is no folder, and no model.*docs/weights.md"):
            multimae_eo.load(name)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        multimae_eo.load(tmp_path / "nothing")


def test_push(tmp_path, monkeypatch):
    """What push_to_hub uploads, put where the Hub would put it, is what a user then loads."""
    asked = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})())

    def upload(self, *, repo_id, folder_path, **options):
        asked.append(options)
        in_cache(Path(folder_path), tmp_path / "cache", repo_id)

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = make(HubEncoder)
    model.push_to_hub("someone/demo", model_card_kwargs={"data": "MMEarth64", "license": "cc-by-4.0"})
    assert len(asked) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert torch.equal(multimae_eo.load("someone/demo").global_tokens, model.global_tokens)
    card = ModelCard.load(tmp_path / "cache" / "models--someone--demo" / "snapshots" / REVISION / "README.md")
    assert card.data.license == "cc-by-4.0"


def test_the_card_says_what_goes_in(tmp_path):
    make(HubModel).save_pretrained(
        tmp_path, model_card_kwargs={"data": "MMEarth64", "license": "cc-by-4.0", "limits": "10 m only"}
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "multimae-eo"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "| `rgb` | B04 B03 B02 | reflectance x 10000 | L1C, L2A | 10 m |" in card.text
    assert "| `land_cover` | worldcover | class, 11 classes | WorldCover | 40 m |" in card.text
    assert "Trained on: MMEarth64" in card.text
    assert "10 m only" in card.text
    tuned = make(HubPredictor)
    card = tuned.generate_model_card()
    assert card.data.pipeline_tag == "image-segmentation"
    assert "3 classes: Tree cover, Shrubland, Grassland" in card.text
    assert "Licence of the weights: not stated" in card.text
    assert "Trained on: mine" in card.text
    other = make(HubPredictor, "L1C").generate_model_card().text
    assert "| `rgb` | B04 B03 B02 | reflectance x 10000 | L1C | 10 m |" in other
    assert 'product="L1C"' in other


@pytest.mark.parametrize("kind", [HubModel, HubPredictor])
def test_the_code_of_the_card_runs(kind, tmp_path):
    make(kind).save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("NAME", str(tmp_path / "model"))
    exec(compile(code, "card", "exec"), {"images": torch.randint(200, 3000, (1, 3, 16, 16))})


def test_a_model_is_saved_over_the_files_that_it_was_loaded_from(tmp_path):
    make(HubEncoder).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    HubEncoder.from_pretrained(tmp_path).save_pretrained(tmp_path)  # its weights are mapped from the file
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_an_existing_readme_is_kept_and_other_files_too(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    make(HubEncoder).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1
