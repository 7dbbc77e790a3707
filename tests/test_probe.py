"""Frozen features and probes: against naive computations, kept on disk once, baselines by hand, and end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bad_inputs import fails
from batches import demo_config, random_batch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import StandardScaler
from test_finetune import QUIET, pretrained, save_model  # noqa: F401
from test_samples import CLASSES, toy, toy_setup

from multimae_eo import checkpoint
from multimae_eo.data.labelled import Description, numbered_classes
from multimae_eo.errors import ConfigError, DataError, UnknownNameError
from multimae_eo.finetune_options import LabelledOptions, ProbeOptions
from multimae_eo.tasks import probe as probes
from multimae_eo.tasks.features import BandStatistics, Extractor, Frozen, RandomConvolutions, extractor, frozen_features
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import LabelSummary
from multimae_eo.tasks.probe import TEMPERATURE, linear, nearest, probe_task
from multimae_eo.tasks.probe_run import probe
from multimae_eo.tasks.samples import LabelledExamples, collate

K = 4


def described(task: str, number: int = K):
    about = Description("own", task, ("B04",), numbered_classes([f"class {i}" for i in range(number)]))
    config = probe_task(about, LabelSummary(), ("rgb",))
    return task_for(config), config


def drawn(task: str, sizes=(60, 30, 40), seed: int = 0, noise: float = 1.0) -> dict[str, Frozen]:
    """Features that show the label, more or less."""
    random = np.random.default_rng(seed)
    axes = random.standard_normal((K, 8))
    features = {}
    for split, number in zip(("train", "valid", "test"), sizes, strict=True):
        if task == "multilabel":
            label = random.integers(0, 2, (number, K)).astype(np.float32)
            values = label @ axes
        else:
            label = random.integers(0, K, number)
            values = axes[label]
        values = (values + noise * random.standard_normal(values.shape)).astype(np.float32)
        known = np.ones(number, bool)
        features[split] = Frozen(values, label, known, np.ones((number, 1), bool))
    return features


# k nearest neighbours


def naive_shares(features: dict[str, Frozen], votes: np.ndarray, k: int) -> np.ndarray:
    shares = []
    for value in features["test"].values.astype(float):
        others = features["train"].values.astype(float)
        cosine = others @ value / np.linalg.norm(others, axis=1) / np.linalg.norm(value)
        near = sorted(range(len(others)), key=lambda i: -cosine[i])[:k]
        weight = [np.exp(cosine[i] / TEMPERATURE) if k > 5 else 1.0 for i in near]
        shares.append(sum(w * votes[i] for w, i in zip(weight, near, strict=True)) / sum(weight))
    return np.array(shares)


def test_nearest_neighbours_equal_a_naive_search():
    task, config = described("classification")
    features = drawn("classification")
    found = nearest(task, config, features)
    assert [one.protocol for one in found] == ["knn-5", "knn-20"]
    for k, one in zip((5, 20), found, strict=True):
        shares = naive_shares(features, np.eye(K)[features["train"].label], k)
        assert one.evidence[:, 0].tolist() == shares.argmax(axis=1).tolist()
        assert one.evidence[:, 1].tolist() == features["test"].label.tolist()
        assert (one.settings["k"], one.warnings) == (k, ())
        assert task.score(one.evidence)["accuracy"] > 0.5
    assert found[0].evidence.tolist() != found[1].evidence.tolist()


def test_nearest_neighbours_of_several_labels():
    task, config = described("multilabel")
    features = drawn("multilabel")
    for k, one in zip((5, 20), nearest(task, config, features), strict=True):
        want = naive_shares(features, features["train"].label, k).clip(1e-7, 1 - 1e-7)
        assert one.evidence[:, :K].numpy() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_labels_that_are_not_known_teach_nothing(task):
    _, config = described(task)
    features = drawn(task)
    spoilt = {
        split: part._replace(label=part.label.copy(), known=part.known.copy()) for split, part in features.items()
    }
    kept = {}
    for split, part in spoilt.items():
        part.label[::3], part.known[::3] = 0, False
        kept[split] = part.rows(part.known)
    found, wanted = (probes.run_probes(config, None, given, ("knn", "linear")) for given in (spoilt, kept))
    assert all(torch.equal(one.evidence, other.evidence) for one, other in zip(found, wanted, strict=True))


def test_few_training_images_are_a_warning():
    task, config = described("classification")
    five, twenty = nearest(task, config, drawn("classification", sizes=(7, 5, 9)))
    assert five.warnings == ()
    assert twenty.warnings == ("7 training images, fewer than 20 neighbours",)


def test_no_neighbours_for_labels_of_pixels():
    task, config = described("segmentation")
    with pytest.raises(ConfigError, match="k-NN needs one label per image; choose the protocol linear"):
        nearest(task, config, drawn("classification"))


# Linear probe


def fitted(strength: float, values: np.ndarray, label: np.ndarray):
    scaler = StandardScaler().fit(values)
    model = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(values), label)
    return lambda others: model.predict(scaler.transform(others))


def test_the_strength_of_the_linear_probe_is_chosen_on_valid():
    task, config = described("classification")
    features = drawn("classification", noise=1.5)
    train, valid, test = features.values()
    accuracies = {
        c: accuracy_score(valid.label, fitted(c, train.values, train.label)(valid.values)) for c in probes.STRENGTHS
    }
    best = max(accuracies, key=accuracies.__getitem__)  # the strongest regularisation of equals
    assert len(set(accuracies.values())) > 2
    found = linear(task, config, features)
    assert found.settings["C"] == best
    assert found.settings["valid_accuracy"] == pytest.approx(accuracies[best], abs=1e-6)
    assert found.evidence[:, 0].tolist() == fitted(best, train.values, train.label)(test.values).tolist()
    assert task.score(found.evidence)["accuracy"] > 0.5
    others = {**features, "test": test._replace(label=(test.label + 1) % K)}
    assert linear(task, config, others).settings == found.settings


def test_refitting_on_valid():
    task, config = described("classification")
    features = drawn("classification", noise=1.5)
    train, valid, test = features.values()
    plain, refitted = (linear(task, config, features, refit_on_valid=flag) for flag in (False, True))
    assert plain.settings == {**refitted.settings, "refit_on_valid": False}
    both = (np.concatenate([a, b]) for a, b in ((train.values, valid.values), (train.label, valid.label)))
    want = fitted(refitted.settings["C"], *both)(test.values)
    assert refitted.evidence[:, 0].tolist() == want.tolist()
    assert plain.evidence.tolist() != refitted.evidence.tolist()


def test_a_class_that_training_lacks_is_never_predicted():
    task, config = described("classification")
    features = drawn("classification")
    train = features["train"]
    features["train"] = train.rows(np.flatnonzero(train.label != 1))
    for one in (linear(task, config, features), *nearest(task, config, features)):
        predicted = one.evidence[:, 0].long()
        assert 1 not in predicted
        assert (one.evidence[:, 1] == 1).any()
        assert task.score(one.evidence)["accuracy"] > 0.4


def test_a_linear_probe_of_several_labels():
    task, config = described("multilabel")
    features = drawn("multilabel")
    features["train"].label[:, 2] = 0  # a label that training lacks
    found = linear(task, config, features)
    probability = found.evidence[:, :K]
    assert probability[:, 2].max() < 1e-6
    assert ((probability >= 0) & (probability <= 1)).all()
    right = (probability > 0.5) == (found.evidence[:, K:] > 0.5)
    assert right[:, [0, 1, 3]].double().mean() > 0.75
    assert "valid_f1_micro" in found.settings


def test_a_linear_probe_of_a_single_label():
    task, config = described("multilabel", 1)
    features = {s: f._replace(label=f.label[:, :1]) for s, f in drawn("multilabel").items()}
    found = linear(task, config, features)
    assert found.evidence.shape == (40, 2)
    assert task.score(found.evidence)["f1_micro"] > 0.7


def test_the_end_of_the_grid_is_a_warning(monkeypatch):
    task, config = described("classification")
    features = drawn("classification", noise=1.5)
    assert not any("end of its grid" in note for note in linear(task, config, features).warnings)
    monkeypatch.setattr(probes, "STRENGTHS", (1e-5, linear(task, config, features).settings["C"]))
    assert any("is at the end of its grid" in note for note in linear(task, config, features).warnings)


# Features on disk


class Counted:
    """Features of a batch: the mean of every band; counts its calls and can fail."""

    def __init__(self, fail_at: int | None = None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, batch) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return torch.cat([raster.values.mean(dim=(2, 3)) for raster in batch.values()], dim=1)


def made_features(setup, folder, function, key="one"):
    return frozen_features(setup, Extractor(function, key), QUIET, folder=folder, workers=0)


def test_features_are_computed_once(tmp_path):
    setup, function = toy_setup(sizes=(70, 5, 6)), Counted()
    first = made_features(setup, tmp_path, function)
    assert function.calls == 2 + 1 + 1
    again = made_features(toy_setup(sizes=(70, 5, 6)), tmp_path, function)
    assert function.calls == 4
    for split, frozen in first.items():
        assert frozen.values.shape == (len(setup.source.ids[split]), 7)
        for one, two in zip(frozen[:4], again[split][:4], strict=True):
            assert np.array_equal(one, two)
    want = setup.source.read("train/69")
    assert np.allclose(first["train"].values[69], want.values.mean(axis=(1, 2)), rtol=1e-5)
    assert first["train"].label.tolist() == [int(setup.source.label(i).values) for i in setup.source.ids["train"]]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"key": "two"},
        {"data": {"inputs": ["rgb"]}},
        {"data": {"statistics": "model"}},
        {"seed": 1},
        {"classes": ("a", "b", "c")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_features_of_other_weights_data_or_inputs_are_other_files(other, tmp_path):
    sizes, function = (6, 5, 4), Counted()
    made_features(toy_setup(sizes=sizes), tmp_path, function)
    key = other.pop("key", "one")
    made_features(toy_setup(sizes=sizes, **other), tmp_path, function, key)
    assert function.calls == 6
    assert len(list(tmp_path.iterdir())) == 6


def test_statistics_decide_about_features(tmp_path):
    sizes, function = (6, 5, 4), Counted()
    given = toy(sizes=sizes).statistics()
    made_features(toy_setup(sizes=sizes, statistics=given), tmp_path, function)
    other = {**given, "B04": (given["B04"][0] + 500, given["B04"][1])}
    made_features(toy_setup(sizes=sizes, statistics=other), tmp_path, function)
    assert function.calls == 6


def test_a_write_that_is_killed_leaves_nothing_under_its_name(tmp_path):
    setup = toy_setup(sizes=(70, 5, 6))
    with pytest.raises(KeyboardInterrupt):
        made_features(setup, tmp_path, Counted(fail_at=2))
    assert not list(tmp_path.glob("[!.]*"))
    for left in tmp_path.glob(".*"):  # of another process, as after a real kill
        left.rename(left.with_name(f"{left.name}9"))
    function = Counted()
    assert len(made_features(setup, tmp_path, function)["train"].values) == 70
    assert function.calls == 4


def test_what_a_checkpoint_is_decides_about_the_key_of_its_features(tmp_path):
    one, two = (save_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    setup = toy_setup()
    keys = [extractor(setup, place, "pretrained", seed=0).key for place in (one, two, one)]
    assert keys[0] == keys[2] != keys[1]
    random = [extractor(setup, one, "random", seed=seed) for seed in (0, 1)]
    assert random[0].key != random[1].key != keys[0]
    batch = collate([LabelledExamples(setup, "test")[0, 0]]).batch
    answers = [made.function(batch) for made in (*random, extractor(setup, one, "pretrained", seed=0))]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])
    assert torch.equal(answers[0], extractor(setup, one, "random", seed=0).function(batch))


# Baselines


def small_setup():
    setup = toy_setup()
    config = demo_config()
    inputs = ("rgb", "land_cover")
    return replace(setup, config=config, inputs=inputs, products=dict.fromkeys(inputs, 0)), config


def test_statistics_of_bands_by_hand():
    setup, config = small_setup()
    batch = {name: random_batch(config, pixels=16, invalid=0.3)[name] for name in setup.inputs}
    batch["rgb"].valid[1, 2] = False
    batch["rgb"].values[~batch["rgb"].valid] = float("nan")
    found = BandStatistics(setup)(batch)
    assert found.shape == (2, 4 * (3 + 11))
    for sample in range(2):
        product = batch["rgb"].product[sample]
        moments = list(config.modalities["rgb"].statistics.values())[product]
        for band in range(3):
            known = batch["rgb"].valid[sample, band]
            values = (batch["rgb"].values[sample, band][known].double() - moments.mean[band]) / moments.std[band]
            want = [0.0] * 4
            if len(values):
                want = [values.mean(), values.std(correction=0), values.min(), values.max()]
            assert found[sample, band:12:3].tolist() == pytest.approx([float(x) for x in want], abs=1e-4)
        cover, known = batch["land_cover"].values[sample, 0], batch["land_cover"].valid[sample, 0]
        shares = [float((cover[known] == code).double().mean()) for code in config.modalities["land_cover"].codes]
        assert found[sample, 12:23].tolist() == pytest.approx(shares, abs=1e-5)


def test_random_convolutions_by_hand():
    setup, config = small_setup()
    batch = {name: random_batch(config, pixels=16)[name] for name in setup.inputs}
    convolutions = RandomConvolutions(setup, seed=3)
    found = convolutions(batch)
    moments = list(config.modalities["rgb"].statistics.values())
    images = []
    for sample in range(2):
        m = moments[batch["rgb"].product[sample]]
        colours = (batch["rgb"].values[sample] - torch.tensor(m.mean)[:, None, None]) / torch.tensor(m.std)[
            :, None, None
        ]
        cover = batch["land_cover"].values[sample]
        classes = torch.cat([(cover == code).float() for code in config.modalities["land_cover"].codes])
        images.append(torch.cat([colours, torch.kron(classes, torch.ones(1, 4, 4))]))
    answers = F.conv2d(torch.stack(images), convolutions.weight, padding=1)
    want = torch.cat([answers.clamp(min=0).mean(dim=(2, 3)), -answers.clamp(max=0).mean(dim=(2, 3))], dim=1)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    assert found.shape == (2, 512)
    assert torch.equal(found, RandomConvolutions(setup, seed=3)(batch))
    assert not torch.equal(found, RandomConvolutions(setup, seed=4)(batch))


# End to end


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 20)
    monkeypatch.setattr(probes, "DENSE_STEPS", 60)


def asked(pretrained, out, **fields) -> ProbeOptions:  # noqa: F811
    data = LabelledOptions(workers=0)
    return ProbeOptions(**{"checkpoint": pretrained, "out": out, "data": data, "trainer": QUIET, **fields})


@pytest.mark.parametrize("init", ["pretrained", "random", "band_statistics", "random_convolutions"])
def test_probes_beat_chance_and_are_kept(init, pretrained, tmp_path):  # noqa: F811
    rows = probe(asked(pretrained, tmp_path, init=init), toy())
    assert [row["protocol"] for row in rows] == ["knn-5", "knn-20", "linear"]
    for row in rows:
        value, low, high = row["metrics"]["accuracy"]
        assert value > 0.5
        assert low <= value <= high
        assert (row["init"], row["inputs"], row["statistics"]) == (init, "rgb+swir+nir", "toy")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(rows))


def test_a_fine_tuned_model_can_be_probed_too(pretrained, tmp_path):  # noqa: F811
    from multimae_eo.config import TaskConfig
    from multimae_eo.predictor import Predictor

    config = checkpoint.load_config(pretrained)
    task = TaskConfig("classification", "linear", ("rgb",), numbered_classes(CLASSES))
    place = checkpoint.save(Predictor(config, task), tmp_path / "tuned")
    assert len(probe(asked(place, tmp_path / "out", protocols="knn"), toy())) == 2


@pytest.mark.parametrize(("task", "metric", "chance"), [("segmentation", "miou", 0.4), ("regression", "r2", 0.15)])
def test_a_dense_probe_learns(task, metric, chance, pretrained, tmp_path):  # noqa: F811
    (row,) = probe(asked(pretrained, tmp_path, protocols="linear"), toy(task))
    assert row["metrics"][metric][0] > chance
    assert row["settings"]["lr"] in probes.RATES
    (again,) = probe(asked(pretrained, tmp_path, protocols="linear"), toy(task))
    assert again["metrics"] == row["metrics"]


def test_dense_features_need_images_of_one_size(pretrained, tmp_path):  # noqa: F811
    source = toy("segmentation", sizes=(70, 3, 3))
    items = source._splits["train"]
    images, masks = (list(items.columns[name]) for name in ("image", "mask"))
    images[66], masks[66] = images[66][:, :, :8].repeat(4, axis=2), masks[66][:, :8].repeat(4, axis=1)
    items.columns.update(image=images, mask=masks)
    with pytest.raises(DataError, match="images differ in size; frozen features of pixels need one size"):
        probe(asked(pretrained, tmp_path, protocols="linear"), source)
    assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name]


def test_wrong_protocols_and_inits(pretrained, tmp_path, capfd):  # noqa: F811
    with pytest.raises(UnknownNameError, match=r"unknown protocol 'linaer'\. Did you mean 'linear'"):
        probe(asked(pretrained, tmp_path, protocols="knn,linaer"), toy())
    with pytest.raises(ConfigError, match="name at least one protocol: knn, linear"):
        probe(asked(pretrained, tmp_path, protocols=","), toy())
    with pytest.raises(ConfigError, match="has a label per pixel: choose --protocols linear"):
        probe(asked(pretrained, tmp_path), toy("segmentation"))
    fails(["probe", "--checkpoint", str(pretrained), "--init", "ranom"], ["init"], capfd)
