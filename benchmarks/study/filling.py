"""Question 6: how well a model fills in each modality from all others, against simple predictors.

    python benchmarks/study/filling.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

The model fills in as `multimae-eo fill` does: the mean over eight random masks, each of which shows half of the tokens
of the other modalities. Beside it: a model that was trained for four times as long; the same model shown all of these
at once; the mean of the training tiles (of classes, the most frequent); a linear model per pixel (of classes,
logistic); gradient-boosted trees per pixel. The last three are fitted to pixels of the model's own training tiles, and
are told of a pixel what the model is told of the tile: all other modalities, relief per sample and in metres. Judged on
tiles of another world, and of a shifted one. The true level and scale of the relief of a tile is given to all
predictors alike. Prints a table, draws docs/study_filling.png and puts the table into docs/results.md.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from show import Question
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from study import LONG, PAPER, Arm, Budget, Place, arguments, folder_of, model, options_of, tiles_elsewhere

from multimae_eo import checkpoint
from multimae_eo.codecs import codec_for
from multimae_eo.config import ModelConfig
from multimae_eo.data.packed import open_tiles
from multimae_eo.maps.fill import random_part, view_of
from multimae_eo.maps.options import FillOptions
from multimae_eo.modalities import Categorical, Modality, parse_view
from multimae_eo.model import MultiMAE
from multimae_eo.options import PretrainOptions
from multimae_eo.raster import Batch, Raster
from multimae_eo.tasks.examples import VALIDATE, ExampleSource, Prepare, spread
from multimae_eo.visualize import save_figure

KINDS = ()  # no labelled worlds
WORLDS = {"other": "another world", "shifted": "shifted"}
FITTED, PIXELS = 2_000, 50  # tiles that the simple predictors are fitted to, and pixels of each
BATCH = 32

# From rasters to the network numbers of one view.
Predictor = Callable[[Batch], torch.Tensor]


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """{"WORLD TARGET": error}: RMSE in per cent of reflectance, of relief in metres; of classes, per cent wrong."""
    trained = Arm(arm.name, {name: value for name, value in arm.changes.items() if name != "predictor"})
    directory, options = model(trained, place, budget, seed)
    roots = {kind: tiles_elsewhere(place, budget, shifted=kind == "shifted") for kind in WORLDS}
    found = errors(arm.changes.get("predictor", "fill"), directory, options, roots, seed)
    return {f"{kind} {target}": value for (kind, target), value in found.items()}


def errors(
    predictor: str, directory: Path, options: PretrainOptions, roots: Mapping[str, Path], seed: int
) -> dict[tuple[str, str], float]:
    """The errors of a predictor of a model's targets on the validation tiles of some data sets; see `measure`."""
    mae = checkpoint.load_model(directory).eval()
    found = {}
    for target, view in targets_of(mae).items():
        predict = predictor_of(predictor, mae, view, options, seed)
        for kind, root in roots.items():
            found[kind, target] = error_of(predict, mae, view, examples(root, mae.config, options))
    return found


def targets_of(mae: MultiMAE) -> dict[str, str]:
    """The view in which each modality is filled in, of all that a model predicts."""
    return {decoder.modality: view_of(mae, decoder.modality) for _, decoder in mae.views()}


def predictor_of(name: str, mae: MultiMAE, view: str, options: PretrainOptions, seed: int) -> Predictor:
    """The predictor that a name means, of one view of a model, fitted where it has to be."""
    if name == "fill":
        return Filled(mae, view, FillOptions.masks, FillOptions.visible, seed)
    return Filled(mae, view, 1, 1.0, seed) if name == "all" else PerPixel(name, mae, view, options)


def examples(root: Path, config: ModelConfig, options: PretrainOptions, number: int | None = None) -> Iterator[Batch]:
    """The validation tiles of a data set, or some of its training tiles, as rasters on their own grids."""
    tiles = open_tiles(root, list(config.modalities.values()))
    data = options.data
    splits = tiles.splits(val_fraction=data.val_fraction, block_degrees=data.val_block_degrees, seed=options.seed)
    rows = spread(splits["train"], number) if number else [int(row) for row in splits["val"]]
    source, prepare = ExampleSource(tiles, config, options, VALIDATE), Prepare(config)
    for start in range(0, len(rows), BATCH):
        read = source.__getitems__([(0, row) for row in rows[start : start + BATCH]])
        yield prepare(read.batch, read.window)


class Filled:
    """A model's decoder of a view, shown the other modalities: the mean over some random masks."""

    def __init__(self, mae: MultiMAE, view: str, masks: int, visible: float, seed: int):
        self.mae, self.view, self.masks, self.visible = mae, view, masks, visible
        self.hidden = parse_view(view, mae.config.modalities).modality
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Numbers [b, c, h, w]; of classes, shares."""
        valid = self.mae.encoder.valid_tokens(batch).clone()
        if self.hidden in self.mae.config.input_modalities:
            valid[:, self.mae.config.input_modalities.index(self.hidden)] = False
        found = []
        for _ in range(self.masks):
            order = torch.from_numpy(self.random.random(valid.shape, np.float32))
            numbers = self.mae(batch, random_part(valid, order, self.visible), only=(self.view,))[self.view].float()
            classes = isinstance(self.mae.config.modalities[self.hidden], Categorical)
            found.append(numbers.softmax(dim=1) if classes else numbers)
        return torch.stack(found).mean(dim=0)


class PerPixel:
    """Three kinds, "mean", "linear" and "boosted", fitted to pixels of training tiles; see the head of this file."""

    def __init__(self, name: str, mae: MultiMAE, view: str, options: PretrainOptions):
        self.mae, self.view, random = mae, view, np.random.default_rng(0)
        self.decoder = dict(mae.views())[view]
        self.classes = isinstance(mae.config.modalities[self.decoder.modality], Categorical)
        assert options.data.root is not None
        features, truth = [], []
        for batch in examples(Path(options.data.root), mae.config, options, FITTED):
            x, encoded = self.features(batch), self.decoder.codec.encode(batch[self.decoder.modality])
            y, known = encoded.values, encoded.valid.all(dim=1)
            for one in range(len(x)):
                places = np.flatnonzero(known[one].numpy())
                chosen = random.choice(places, min(PIXELS, len(places)), replace=False)
                features.append(x[one].flatten(1).T.numpy()[chosen])
                truth.append(y[one].flatten(1).T.numpy()[chosen])
        self.fitted = self._fit(name, np.concatenate(features), np.concatenate(truth))

    def _fit(self, name: str, x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        if name == "mean":
            mean = y.mean(axis=0)
            return lambda x: np.broadcast_to(mean, (len(x), len(mean)))
        if self.classes:
            label = y.argmax(axis=1)
            fitted: Any = HistGradientBoostingClassifier(random_state=0)
            if name == "linear":
                fitted = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
                x = np.nan_to_num(x)
            fitted.fit(x, label)

            def shares(x: np.ndarray) -> np.ndarray:
                found = np.zeros((len(x), y.shape[1]), np.float32)
                found[:, fitted.classes_] = fitted.predict_proba(np.nan_to_num(x) if name == "linear" else x)
                return found

            return shares
        if name == "linear":
            line = LinearRegression().fit(np.nan_to_num(x), y)
            return lambda x: line.predict(np.nan_to_num(x)).reshape(len(x), -1)
        each = [HistGradientBoostingRegressor(random_state=0).fit(x, column) for column in y.T]
        return lambda x: np.stack([one.predict(x) for one in each], axis=1)

    def features(self, batch: Batch) -> torch.Tensor:
        """What the model is fed, as network numbers on the target's grid [b, f, h, w]; NaN where nothing is valid.

        Of modalities per sample, the numbers by the statistics too.
        """
        config, parts = self.mae.config, []
        edge = batch[self.decoder.modality].values.shape[-1]
        for view in config.input_views:
            if view.modality == self.decoder.modality or view.modality not in batch:
                continue
            codec = codec_for(config.modalities[view.modality], view.standardize, config.patch_edge(view.modality))
            encoded = codec.encode(batch[view.modality])
            parts.append(at(edge, encoded.values, encoded.valid))
            if view.standardize != "band":
                raster = batch[view.modality]
                parts.append(at(edge, raster.values.float(), raster.valid.expand_as(raster.values)))
        return torch.cat(parts, dim=1)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Numbers [b, c, h, w]; of classes, shares."""
        x = self.features(batch)
        found = np.ascontiguousarray(self.fitted(x.permute(0, 2, 3, 1).flatten(0, 2).numpy()))
        return torch.from_numpy(found).float().unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)


def at(edge: int, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Values on a grid of another edge, as means of those that are valid or repeated; NaN where none is."""
    values, there = values.masked_fill(~valid, 0.0), valid.expand_as(values).float()
    if values.shape[-1] > edge:
        factor = values.shape[-1] // edge
        values, there = (F.avg_pool2d(part, factor) for part in (values, there))
    elif values.shape[-1] < edge:
        factor = edge // values.shape[-1]
        values, there = (part.repeat_interleave(factor, -1).repeat_interleave(factor, -2) for part in (values, there))
    return torch.where(there > 0, values / there, torch.nan)


def error_of(predict: Predictor, mae: MultiMAE, view: str, batches: Iterator[Batch]) -> float:
    """The error over all valid pixels and bands, in the units of `measure`."""
    decoder = dict(mae.views())[view]
    modality = mae.config.modalities[decoder.modality]
    classes = isinstance(modality, Categorical)
    total, number = 0.0, 0
    for batch in batches:
        raster = batch[decoder.modality]
        predicted = decoder.codec.decode(predict(batch), raster)
        valid = decoder.codec.valid(raster)
        wrong = (predicted != raster.values).double() if classes else (predicted - raster.values).double().square()
        total += float(wrong.masked_fill(~valid, 0.0).sum())
        number += int(valid.sum())
    if classes:
        return 100 * total / number
    return (total / number) ** 0.5 * (0.01 if modality.unit == "reflectance x 10000" else 1.0)


@torch.no_grad()
def draw(predictors: Mapping[str, str], mae: MultiMAE, options: PretrainOptions, root: Path, path: Path) -> Path:
    """Draw a validation tile of a data set: a row per modality, what is there, and what each predictor makes of it.

    predictors: {title: name}. Bands have the same stretch in a row; of more than three, or two, the first is shown.
    """
    batch = next(examples(root, mae.config, options))
    one: Batch = {name: Raster(*(part[:1] for part in raster)) for name, raster in batch.items()}
    views = targets_of(mae)
    figure = Figure(figsize=(1.5 * (len(predictors) + 1) + 1.4, 1.5 * len(views) + 0.6), dpi=110, layout="constrained")
    axes = figure.subplots(len(views), len(predictors) + 1, squeeze=False)
    for row, (name, view) in zip(axes, views.items(), strict=True):
        decoder, modality = dict(mae.views())[view], mae.config.modalities[name]
        maps = {"measured": one[name].values[0].float()}
        for title, predictor in predictors.items():
            predict = predictor_of(predictor, mae, view, options, 0)
            maps[title] = decoder.codec.decode(predict(one), one[name])[0].float()
        for axis, (title, values) in zip(row, maps.items(), strict=True):
            axis.imshow(painted(values.numpy(), maps["measured"].numpy(), modality), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if name == next(iter(views)):
                axis.set_title(title, fontsize=8)
        row[0].set_ylabel(name.replace("_", " "), fontsize=8)
    known = [m for m in mae.config.modalities.values() if isinstance(m, Categorical)]
    handles = [Patch(color=c.color, label=c.name) for m in known for c in m.classes]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=6, frameon=False)
    return save_figure(figure, path)


def painted(values: np.ndarray, measured: np.ndarray, modality: Modality) -> np.ndarray:
    """Values [c, h, w] as colours [h, w, 3], stretched as what was measured."""
    if isinstance(modality, Categorical):
        colors = {c.code: matplotlib.colors.to_rgb(c.color) for c in modality.classes}
        return np.array([[colors.get(int(code), (0.45, 0.45, 0.45)) for code in row] for row in values[0]])
    shown = [0, 1, 2] if len(values) == 3 else [0]
    low, high = np.percentile(measured[shown], (1, 99))
    scaled = np.clip((values[shown] - low) / max(high - low, 1e-6), 0, 1)
    if len(shown) == 3:
        return scaled.transpose(1, 2, 0)
    return matplotlib.colormaps[modality.colormap](scaled[0])[..., :3]


NAMES = {
    "rgb": "RGB, %",
    "red_edge": "red edge, %",
    "swir": "SWIR, %",
    "nir": "NIR, %",
    "elevation": "relief, m",
    "land_cover": "land cover, % wrong",
}

FILLING = Question(
    name="filling",
    title="Filling in a modality from all others",
    base=Arm("fill"),
    arms=(
        Arm("fill, four times the steps", LONG.changes),
        Arm("all tokens at once", {"predictor": "all"}),
        Arm("mean of the training tiles", {"predictor": "mean"}),
        Arm("linear per pixel", {"predictor": "linear"}),
        Arm("boosted trees per pixel", {"predictor": "boosted"}),
    ),
    confirmed=("all tokens at once", "mean of the training tiles", "linear per pixel", "boosted trees per pixel"),
    measures={f"{kind} {target}": f"{word}: {name}" for kind, word in WORLDS.items() for target, name in NAMES.items()},
    deciding=len(NAMES),  # those of another world
    battery="filling",
    scale=1.0,
    unit="error: RMSE of reflectance in %, of relief in m; wrong classes in %",
    digits=2,
    same_axis=False,
)

SHOWN = {"filled in": "fill", "all tokens at once": "all", "linear": "linear", "boosted trees": "boosted"}

if __name__ == "__main__":
    FILLING.answer(__doc__)
    place, budget, seeds = arguments(__doc__)
    trained = folder_of(PAPER, place, budget, seeds[0]) / "checkpoint"
    if trained.exists() and not place.dry:
        options, tiles = options_of(PAPER, place, budget, seeds[0]), tiles_elsewhere(place, budget, shifted=False)
        print(draw(SHOWN, checkpoint.load_model(trained), options, tiles, place.picture("study_filling_tile")))
