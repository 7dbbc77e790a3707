"""Trivial predictors against plain loops, and pictures that show what they should."""

import numpy as np
import pytest
import torch
from batches import demo_config, random_batch
from PIL import Image

from multimae_eo.masking import sample_mask
from multimae_eo.model import MultiMAE
from multimae_eo.tasks.baselines import class_priors, nearest_visible, trivial_losses
from multimae_eo.visualize import HIDDEN, MISSING, Strip, _cover, save_curves, save_panels


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    model = MultiMAE(demo_config())
    batch = random_batch(model.config, size=3, invalid=0.1)
    batch["rgb"].valid[0] = False
    mask = sample_mask(model.encoder.valid_tokens(batch), 20, generator=np.random.default_rng(0))
    return model, batch, mask


def test_nearest_visible_with_ties_by_index():
    visible = torch.zeros(2, 12, dtype=torch.bool)
    visible[0, [1, 6, 11]] = True
    nearest = nearest_visible(visible, (3, 4))
    assert nearest[1].tolist() == [-1] * 12
    places = [divmod(i, 4) for i in range(12)]
    for i, (r, c) in enumerate(places):
        best = min([1, 6, 11], key=lambda j: ((places[j][0] - r) ** 2 + (places[j][1] - c) ** 2, j))
        assert nearest[0, i] == best


@pytest.mark.parametrize("view", ["rgb", "nir", "elevation:sample", "land_cover"])
def test_trivial_predictors_against_loops(drawn, view):
    model, batch, mask = drawn
    priors = class_priors(model, [batch])
    got = trivial_losses(model, batch, mask, priors)[view]
    decoder = model.decoders[view]
    name, patch = decoder.modality, decoder.patch
    target = decoder.codec.encode(batch[name])
    hidden = mask.hidden(6, 49)[:, model.config.input_modalities.index(name)]
    expected = {n: [] for n in got}
    for sample in range(3):
        values = target.values[sample].numpy()
        valid = target.valid[sample].expand(len(values), -1, -1).numpy()
        windows = [
            (slice(None), slice(patch * i, patch * i + patch), slice(patch * j, patch * j + patch))
            for i in range(7)
            for j in range(7)
        ]
        shown = [t for t in range(49) if not hidden[sample, t]]

        def mean(tokens, values=values, valid=valid, windows=windows):
            out = []
            for channel in range(len(values)):
                seen = np.concatenate([values[windows[t]][channel][valid[windows[t]][channel]] for t in tokens] or [[]])
                out.append(seen.mean() if len(seen) else np.nan)
            mixed = np.array(out)
            if name in priors:
                prior = priors[name].numpy()
                return np.log(np.where(np.isnan(mixed), prior, 0.9 * mixed + 0.1 * prior))
            return np.nan_to_num(mixed)

        def near(t, shown=shown):
            ranked = sorted(((t // 7 - k // 7) ** 2 + (t % 7 - k % 7) ** 2, k) for k in shown)
            return [ranked[0][1]] if ranked else []

        means = {"band_mean": lambda t: mean([]), "visible_mean": lambda t, s=shown: mean(s)}
        means["nearest_patch"] = lambda t: mean(near(t))
        for kind, predict in means.items():
            errors = []
            for t in range(49):
                if not hidden[sample, t]:
                    continue
                window, guess = windows[t], predict(t)
                v, ok = values[window], valid[window]
                for i, j in np.ndindex(patch, patch):
                    if name in priors:
                        if ok[0, i, j]:
                            errors.append(-guess[v[:, i, j].argmax()])
                    elif ok[:, i, j].any():
                        difference = (guess - v[:, i, j])[ok[:, i, j]]
                        squared = model.config.modalities[name].loss == "squared"
                        errors.append((difference**2 if squared else np.abs(difference)).mean())
            if errors:
                expected[kind].append(np.mean(errors))
    for kind, (total, samples) in got.items():
        assert float(samples) == len(expected[kind])
        assert float(total) == pytest.approx(sum(expected[kind]), rel=1e-4)


def test_panels_and_curves_are_pictures_with_content(drawn, tmp_path):
    model, batch, mask = drawn
    save_panels(model, batch, mask, tmp_path / "panels.png", names=["a", "b", "c"], title="three samples")
    rows = "step,kind,train/loss,train/rgb,val/loss,val/rgb\n0,val,,,2,2\n5,train,1,1,,\n5,val,,,1,1\n"
    (tmp_path / "metrics.csv").write_text(rows)
    save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    for name, least in (("panels.png", 1000), ("curves.png", 300)):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > least
            assert len(picture.convert("RGB").getcolors(10**7)) > 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.csv", "panels.png"]


def test_hidden_and_missing_pixels_have_their_greys():
    target = np.zeros((4, 4, 3))
    valid, hidden = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    valid[0, 0], hidden[1, 1] = False, True
    modality = demo_config().modalities["rgb"]
    strip = Strip(modality, np.zeros((3, 4, 4)), valid, hidden, np.zeros((3, 4, 4)))
    shown = _cover(strip, target, target + 0.5, target + 0.2)
    assert tuple(shown[0][0, 0]) == tuple(shown[1][0, 0]) == tuple(shown[3][0, 0]) == MISSING
    assert tuple(shown[1][1, 1]) == HIDDEN
    assert tuple(shown[0][1, 1]) == (0, 0, 0)
    assert (shown[2] == 0.5).all()
