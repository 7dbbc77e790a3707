"""Missing layers: a modality that is not there, or the gaps of one that is, from all others, with its uncertainty."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multimae_eo import checkpoint
from multimae_eo.errors import ConfigError, UnknownNameError
from multimae_eo.maps.feeding import bands_of, feed_of, product_index
from multimae_eo.maps.layers import Window, open_file
from multimae_eo.maps.mapping import Feed, TileRows, device_of, tiling_for
from multimae_eo.maps.options import FillOptions, SourceOptions
from multimae_eo.maps.predict import NO_SHARE, STEPS
from multimae_eo.maps.run import Encode, about, map_scene, prepared, sources_of
from multimae_eo.maps.scene import Scene, open_scene
from multimae_eo.maps.writing import Layout
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Categorical, Modality, parse_view
from multimae_eo.model import Decoder, MultiMAE
from multimae_eo.raster import Batch, Raster
from multimae_eo.tasks.examples import philox

FILL = 4  # what this randomness is for; a part of its key
ENOUGH = 16  # known pixels of a tile that its level and scale can be taken from
RELATIVE = "standard deviations of a tile"


def fill_scene(options: FillOptions) -> Path:
    """Write the layer that some options describe; returns its path. Errors as of `predict_map`."""
    if options.masks < 1 or not 0 < options.visible <= 1:
        raise ConfigError(f"masks must be 1 or more and visible in (0, 1]; got {options.masks} and {options.visible}.")
    with prepared(options.tiles):
        model = checkpoint.load_model(options.checkpoint)
        config, view = model.config, view_of(model, options.target)
        decoder = dict(model.views())[view]
        target = config.modalities[decoder.modality]
        tiling = tiling_for(options.tiles, config)
        sources, wanted = sources_of(options, config.modalities), bands_of(config.input_modalities, config.modalities)
        scene = open_scene(sources, [*wanted, *(b for b in target.bands if b not in wanted)], options.grid)
        known = None
        if set(target.bands) & set(scene.bands):
            known = open_scene(sources, target.bands, scene.grid)  # files of its own, for another thread
        feed = feed_of(scene.bands, scene.product_of, config, None)
        if set(feed.modalities) <= {target.name}:
            raise ConfigError(f"the scene has nothing but {target.name} to fill it in from; add a source.")
        anchor = open_anchor(options.anchor, view, target, scene) if options.anchor is not None else None
        filling = Filling(
            model.to(device_of(options.tiles.device)), view, options, product_for(target, scene, feed), known, anchor
        )
        rows = TileRows(
            scene.read, feed, tiling, filling, outputs=filling.outputs, config=config, options=options.tiles, least=0
        )
        layout, encode = filling.layout()
        title = f"{target.name}, filled in" if not filling.relative else f"relative relief ({view})"
        layout = dataclasses.replace(layout, tags={"TITLE": title, "ANCHOR": str(options.anchor or ""), **layout.tags})
        return map_scene(scene, rows, options.out, layout, encode, about=about(options, scene), tiles=options.tiles)


def view_of(model: MultiMAE, target: str) -> str:
    """The view that a target means: of a modality the one by its statistics, else the one per sample.

    Raises UnknownNameError where the model does not predict it, ConfigError for views per patch, which know no level.
    """
    views = [view for view, _ in model.views()]
    whole = [view for view in views if parse_view(view, model.config.modalities).standardize != "patch"]
    if not target:
        raise ConfigError(f"--target is not set: what is to be filled in? One of {', '.join(whole)}.")
    if target in views and target not in whole:
        raise ConfigError(f"target '{target}' knows no level of its patches; take one of {', '.join(whole)}.")
    for name in (target, f"{target}:sample"):
        if name in whole:
            return name
    raise UnknownNameError("target of the checkpoint", target, whole)


def is_relative(view: str, target: Modality) -> bool:
    """Whether a view of a target is standardised per sample, so that it knows neither level nor scale."""
    return parse_view(view, {target.name: target}).standardize == "sample"


def product_for(target: Modality, scene: Scene, feed: Feed) -> int:
    """The product that a target is predicted as: its own, or that of modalities of the same products."""
    alike = [feed.products[n] for n, m in feed.modalities.items() if m.products == target.products]
    return alike[0] if alike else product_index(scene.product_of, target, None)


def open_anchor(path: Path, view: str, target: Modality, scene: Scene) -> "Anchor":
    """A coarse raster of the target on the scene's grid; raises ConfigError where its bands or the view do not fit."""
    with open_file(path) as dataset:
        if dataset.count != len(target.bands):
            raise ConfigError(f"anchor '{path}' has {dataset.count} bands, {target.name} has {len(target.bands)}.")
    if not is_relative(view, target):
        raise ConfigError(
            f"anchor '{path}': '{view}' is predicted in its unit and takes none. Leave it out, or fill in a view per "
            f"sample, {target.name}:sample, of a checkpoint that predicts one."
        )
    given = {"anchor": SourceOptions(str(path), bands=list(target.bands), product=target.products[0])}
    opened = open_scene(given, target.bands, scene.grid, scene.damage)
    return Anchor(opened, pixels_of(opened))


def random_part(valid: Tensor, order: Tensor, share: float) -> TokenMask:
    """The mask that shows of each sample a share of its valid tokens, those that come first in some order.

    valid: bool [b, m, n]; order: [b, m, n], from 0 to 1. A sample with fewer valid tokens shows fewer.
    """
    first = torch.where(valid, order, 2.0).flatten(1).argsort(dim=1)
    number = (share * valid.flatten(1).sum(dim=1)).ceil().clamp(min=1)
    most = max(1, -int(-share * valid[0].numel() // 1))
    return TokenMask(first[:, :most], torch.arange(most, device=valid.device) < number[:, None])


def pixels_of(scene: Scene) -> int:
    """How many pixels of the scene one of its first source spans, an odd number."""
    place = next(iter(scene.sources[0].found.places.values()))
    with open_file(place.where) as dataset:
        own = abs(dataset.transform.a) * (111_320 if dataset.crs.is_geographic else dataset.crs.linear_units_factor[1])
    return max(1, round(own / abs(scene.grid.transform.a))) // 2 * 2 + 1


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Values of the target; pixels: how many of the scene's one of its own spans."""

    scene: Scene
    pixels: int


class Filling:
    """A model's decoder of one view as a function of tiles: mean and spread over several random masks.

    known: the target where the scene has it; anchor: a coarse one. A view per sample takes the scale of a tile from
    these, by least squares of values on what is predicted at the anchor's resolution. Where the anchor has a value,
    the detail that it cannot resolve is added to it, in the share of the anchor's variance that the fit explains;
    elsewhere the fit gives the level. Without any anchor it stays relative.
    """

    def __init__(
        self,
        model: MultiMAE,
        view: str,
        options: FillOptions,
        product: int,
        known: Scene | None,
        anchor: Anchor | None,
    ):
        self.model, self.view, self.options, self.product = model.eval(), view, options, product
        self.decoder: Decoder = dict(model.views())[view]
        self.target = model.config.modalities[self.decoder.modality]
        self.known = known
        whole = known is not None and set(self.target.bands) <= set(known.bands)
        self.anchor = anchor or (Anchor(known, 1) if known is not None and whole else None)
        self.per_sample = is_relative(view, self.target)
        self.relative = self.per_sample and self.anchor is None

    @property
    def outputs(self) -> int:
        """Numbers per pixel: shares of classes, or means and standard deviations of bands."""
        return self.target.channels if isinstance(self.target, Categorical) else 2 * self.target.channels

    def __call__(self, batch: Batch, places: Sequence[tuple[int, int]]) -> Tensor:
        valid = self.model.encoder.valid_tokens(batch)
        predicted = torch.stack([self._predict(batch, valid, places, n) for n in range(self.options.masks)])
        stride = self.target.stride
        if isinstance(self.target, Categorical):
            shares = predicted.softmax(dim=2).mean(dim=0)
            return shares.repeat_interleave(stride, dim=-1).repeat_interleave(stride, dim=-2)
        if not self.per_sample:
            product = torch.full((predicted.shape[1],), self.product, device=predicted.device)
            like = Raster(predicted[0], torch.zeros_like(predicted[0], dtype=torch.bool), product)
            predicted = torch.stack([self.decoder.codec.decode(one, like) for one in predicted])
        mean, spread = predicted.mean(dim=0), predicted.std(dim=0, correction=0)
        if self.anchor is not None and self.per_sample:
            mean, slope = self._anchored(mean, places, self.anchor)
            spread = slope * spread
        return torch.cat([mean, spread], dim=1)

    def _predict(self, batch: Batch, valid: Tensor, places: Sequence[tuple[int, int]], number: int) -> Tensor:
        """Network numbers [b, c, h, w] from one random choice of visible tokens, which depends on the place alone."""
        seeds = [((top + (1 << 20)) << 24) + left + (1 << 20) for top, left in places]
        drawn = [philox(self.options.seed, FILL, number, s).random(valid.shape[1:], np.float32) for s in seeds]
        mask = random_part(valid, torch.from_numpy(np.stack(drawn)).to(valid.device), self.options.visible)
        return self.model(batch, mask, only=(self.view,))[self.view].float()

    def _anchored(self, mean: Tensor, places: Sequence[tuple[int, int]], anchor: Anchor) -> tuple[Tensor, Tensor]:
        """Predictions [b, c, h, w] in the anchor's unit, NaN where too little is known, and the scale of each tile."""
        edge = mean.shape[-1]
        windows = [anchor.scene.read(Window(top, left, edge, edge), self.target.bands) for top, left in places]
        values, there = (torch.from_numpy(np.stack(part)).to(mean.device) for part in zip(*windows, strict=True))
        pixels = min(anchor.pixels, edge // 2 * 2 - 1)
        smooth = F.avg_pool2d(mean, pixels, stride=1, padding=pixels // 2, count_include_pad=False)
        number = there.sum(dim=(-2, -1), keepdim=True)

        def average(x: Tensor) -> Tensor:
            return x.masked_fill(~there, 0.0).sum(dim=(-2, -1), keepdim=True) / number.clamp(min=1)

        x, y = average(smooth), average(values)
        spread, wanted = average((smooth - x).square()).clamp(min=1e-6), average((values - y).square()).clamp(min=1e-6)
        common = average((smooth - x) * (values - y)).clamp(min=0)
        slope, explained = common / spread, common.square() / (spread * wanted)
        level = torch.where(number >= ENOUGH, y - slope * x, torch.nan)
        detail = explained * slope * (mean - smooth)
        return torch.where(there, values + detail, slope * mean + level), slope

    def layout(self) -> tuple[Layout, Encode]:
        """What the file looks like, and how blended results become what it stores."""
        if isinstance(self.target, Categorical):
            return self._classes(self.target)
        bands, number = self.target.bands, f"standard deviation over {self.options.masks} masks"
        names = ["relative relief", number] if self.relative else [*bands, *(f"{b}: {number}" for b in bands)]
        units = [RELATIVE if self.relative else self.target.unit] * len(names)

        def encode(results: np.ndarray, valid: np.ndarray, window: Window) -> np.ndarray:
            stored = np.where(valid, results, np.nan).astype(np.float32)
            return self._kept(stored, window) if not self.relative else stored

        return Layout("float32", float("nan"), names, units=units), encode

    def _kept(self, stored: np.ndarray, window: Window) -> np.ndarray:
        """With the values that the scene has, whose deviation is 0."""
        if self.known is None or not self.options.keep:
            return stored
        values, there = self.known.read(window, self.target.bands)
        number = len(self.target.bands)
        stored[:number] = np.where(there, values, stored[:number])
        stored[number:] = np.where(there, 0, stored[number:])
        return stored

    def _classes(self, target: Categorical) -> tuple[Layout, Encode]:
        codes = np.array(target.codes)

        def encode(results: np.ndarray, valid: np.ndarray, window: Window) -> np.ndarray:
            best = np.where(valid, codes[results.argmax(axis=0)], 0)
            unsure = np.where(valid, np.rint((1 - results.max(axis=0)) * STEPS), NO_SHARE)
            if self.known is not None and self.options.keep:
                values, there = self.known.read(window, self.target.bands)
                best, unsure = np.where(there[0], values[0], best), np.where(there[0], 0, unsure)
            return np.stack([np.where(best == 0, NO_SHARE, best), unsure]).astype(np.uint8)

        about = {
            "CLASSES": {c.code: c.name for c in target.classes},
            "COLORS": {c.code: c.color for c in target.classes},
        }
        tags = {name: json.dumps(table) for name, table in about.items()}
        bands, scales = ["class", "1 - share of the class"], [1.0, 1 / STEPS]
        return Layout("uint8", NO_SHARE, bands, tags, scales=scales, offsets=[0.0, 0.0], average=False), encode
