"""What the commands of the command line take, as typed dataclasses, and do; work is imported only when it starts."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from multimae_eo.data.import_options import ImportOptions
from multimae_eo.data.options import DownloadOptions, PackOptions, SynthesizeOptions, VerifyOptions
from multimae_eo.finetune_options import EvaluateOptions, FinetuneOptions, GeobenchOptions, ProbeOptions
from multimae_eo.maps.options import EmbedOptions, FillOptions, PredictOptions, ReportOptions
from multimae_eo.modalities import get_modality, parse_view
from multimae_eo.options import PretrainOptions, demo_options

# So many faults are printed.
SHOWN = 20


@dataclass
class ConvertOptions:
    """Convert weights in the public layout of the paper's code into a checkpoint directory.

    Args:
        checkpoint: a .pth or .safetensors file; a .pth is read without executing it.
        out_dir: the directory to write.
    """

    checkpoint: Path
    out_dir: Path


@dataclass
class ReconstructOptions:
    """Draw what a checkpoint makes of some tiles of a data set.

    Args:
        checkpoint: a checkpoint directory.
        root: folder of a data set in the MMEarth layout.
        split: which tiles.
        tiles: how many, evenly spread over the split.
        num_visible: visible tokens per tile.
        seed: decides the masks.
        out: the picture.
    """

    checkpoint: Path
    root: Path
    split: Literal["train", "val", "test"] = "val"
    tiles: int = 3
    num_visible: int = 49
    seed: int = 0
    out: Path = Path("reconstruction.png")


@dataclass
class InspectOptions:
    """Explain a checkpoint, a run, a data set or a scene: what it holds, what it lacks, and what to do with it.

    Args:
        path: a checkpoint or run; a data set in the layout of MMEarth or GEO-Bench, or packed; a raster.
        out: of a data set in the MMEarth layout: a picture of where and in which months its tiles are.
    """

    path: Path
    out: Path | None = None


@dataclass
class ExportOptions:
    """Write a checkpoint as a program: ONNX, or torch.export's, for some inputs and any number of samples.

    Args:
        checkpoint: a checkpoint directory, pre-trained or fine-tuned.
        out: the file to write, .onnx or .pt2.
        inputs: comma-separated modalities; all by default.
        product: what their values are of, such as L2A; several with commas.
        image_size: edge of the images in pixels of 10 m; that of training by default.
    """

    checkpoint: Path
    out: Path = Path("model.onnx")
    inputs: str | None = None
    product: str | None = None
    image_size: int | None = None


@dataclass
class DemoOptions:
    """Pre-train a small model on a synthetic world, and try it on labelled tiles of another one.

    Args:
        out: folder of the run; an earlier demo there is replaced.
        tiles: of the world that is pre-trained on.
        labelled_tiles: of the world that the encoder is tried on.
        pretrain: options of the run; data.root and out are set by the demo.
    """

    out: Path = Path("runs/demo")
    tiles: int = 1000
    labelled_tiles: int = 800
    pretrain: PretrainOptions = field(default_factory=demo_options)


def _pretrain(options: PretrainOptions) -> None:
    from multimae_eo.tasks.run import pretrain

    if options.dry_run:
        from multimae_eo.tasks.plan import plan_pretrain

        print(plan_pretrain(options))
        return
    began = time.perf_counter()
    pretrain(options)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # what other processes of the run would say again
        return
    print(f"Done in {time.perf_counter() - began:.0f} s. The model is in {options.out}/checkpoint.")
    if options.trainer.panels > 0:
        print(f"Look at {options.out}/reconstruction.png and curves.png.")


def _reconstruct(options: ReconstructOptions) -> None:
    from multimae_eo.tasks.run import reconstruct

    picture = reconstruct(
        options.checkpoint,
        options.root,
        split=options.split,
        tiles=options.tiles,
        num_visible=options.num_visible,
        seed=options.seed,
        out=options.out,
    )
    print(f"Look at {picture}.")


def _convert(options: ConvertOptions) -> None:
    from multimae_eo.reference import convert

    print(convert(options.checkpoint, options.out_dir))
    print(f"Wrote {options.out_dir}.")


def _import(options: ImportOptions) -> None:
    from multimae_eo.data.geotiff import import_geotiffs

    import_geotiffs(options)


def _pack(options: PackOptions) -> None:
    from multimae_eo.data.mmearth import read_statistics
    from multimae_eo.data.packing import pack

    chosen = dict.fromkeys(parse_view(text).modality for text in options.modalities)
    modalities = read_statistics(options.data, [get_modality(name) for name in chosen]).values()
    try:
        folder = pack(
            options.data, options.out, list(modalities), tiles_per_shard=options.tiles_per_shard, progress=TimeLeft()
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e9:.2f} GB, complete and checked. Train on it with --data.root {folder}.")


class TimeLeft:
    """A line that says how much is done, and how long the rest will take."""

    def __init__(self, unit: str = "tiles", per: float = 1) -> None:
        self.began, self.unit, self.per = time.perf_counter(), unit, per
        self.first: int | None = None  # what an earlier run had done took no time

    def __call__(self, done: int, of: int) -> None:
        self.first = done if self.first is None else min(self.first, done)
        passed = time.perf_counter() - self.began
        left = passed * (of - done) / max(1, done - self.first)
        shown = [f"{n / self.per:.2f}" if self.per > 1 else str(n) for n in (done, of)]
        text = f"\r{'/'.join(shown)} {self.unit}, {passed:.0f} s, {left:.0f} s left "
        print(text, end="" if done < of else "\n", file=sys.stderr, flush=True)


def _download(options: DownloadOptions) -> None:
    from multimae_eo.data.download import download

    try:
        place = download(
            options.what,
            options.out,
            only=options.only,
            workers=options.workers,
            base=options.base,
            progress=TimeLeft("GB", 1e9),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    print(f"Wrote {place}, complete and checked. Look at it: multimae-eo inspect {place}")


def _verify(options: VerifyOptions) -> None:
    from multimae_eo.data.verify import verify
    from multimae_eo.errors import ConfigError, IncompleteError

    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"workers must be 1 or more; got {options.workers}.")
    report = verify(options.data, workers=options.workers, progress=TimeLeft())
    if options.out is not None:
        report.write(options.out)
    if not report.faults:
        print(f"{options.data}: {report.total} tiles or images, all of them whole.")
        return
    for fault in report.faults[:SHOWN]:
        what = " ".join(filter(None, (fault.row and f"row {fault.row}", fault.name)))
        print(f"  {what} of {fault.where}: {fault.cause}")
    more = len(report.faults) - SHOWN
    listed = (
        f" Listed in {options.out}." if options.out else f" And {more} more; --out FILE lists all." if more > 0 else ""
    )
    raise IncompleteError(
        f"'{options.data}': {len(report.faults)} faults among {report.total} tiles or images.{listed} Fetch or pack "
        "these anew, take them out of the splits, or train without them: --data.max_unread."
    )


def _inspect(options: InspectOptions) -> None:
    from multimae_eo.explain.kinds import explain

    print(explain(options.path, out=options.out))


def _export(options: ExportOptions) -> None:
    from multimae_eo.integrations.export import export, program_of

    inputs, product = (None if text is None else text.split(",") for text in (options.inputs, options.product))
    program = program_of(options.checkpoint, inputs, product=product, image_size=options.image_size)
    written = export(program, options.out)
    print(f"Wrote {written}: {', '.join(program.inputs)} in, {', '.join(program.outputs)} out.")


def _synthesize(options: SynthesizeOptions) -> None:
    from multimae_eo.data.synthetic import SHIFTED, generate, generate_downstream, generate_scene

    seed = options.seed + (SHIFTED if options.shifted else 0)
    if options.layout == "scene":
        print(f"Wrote {generate_scene(options.out, options.name, seed=seed, tile_px=options.tile_px)}.")
        return
    world: dict[str, Any] = {key: getattr(options, key) for key in ("tiles", "tile_px", "workers")} | {"seed": seed}
    if options.layout == "geobench":
        print(f"Wrote {generate_downstream(options.out, **world, progress=TimeLeft())}.")
    else:
        print(f"Wrote {generate(options.out, options.name, **world, progress=TimeLeft())}.")


def _demo(options: DemoOptions) -> None:
    from multimae_eo.tasks.demo import demo

    demo(options.out, options.tiles, options.labelled_tiles, options.pretrain)


def _finetune(options: FinetuneOptions) -> None:
    from multimae_eo.tasks.finetune import finetune

    if options.dry_run:
        from multimae_eo.tasks.plan import plan_finetune

        print(plan_finetune(options))
        return
    result = finetune(options)
    for name, found in (("best", result.best), ("last", result.last)):
        print(f"{name} checkpoint on test: " + in_words(found.metrics))
    if result.facts["warnings"]:
        print(f"warning: {result.facts['warnings']}")
    print(f"Look at {options.out}: results.json, curves.png, best, last.")


def in_words(metrics: dict[str, tuple[float, float, float]]) -> str:
    """Metrics with their 95 % intervals."""
    return ", ".join(f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in metrics.items())


def _evaluate(options: EvaluateOptions) -> None:
    from multimae_eo.tasks.evaluate import evaluate, table_in_words

    print(table_in_words(evaluate(options)))
    if options.out is not None:
        print(f"Wrote {options.out}.")


def _probe(options: ProbeOptions) -> None:
    from multimae_eo.tasks.probe_run import probe

    for row in probe(options):
        print(f"{row['protocol']}: {in_words(row['metrics'])}")
    print(f"Wrote {options.out}/results.json.")


def _geobench(options: GeobenchOptions) -> None:
    if options.dry_run:
        from multimae_eo.tasks.plan import plan_geobench

        print(plan_geobench(options))
        return
    from multimae_eo.tasks.geobench import run_geobench

    print(f"Wrote {run_geobench(options)}; look at {options.out}/report.html.")


def _predict(options: PredictOptions) -> None:
    from multimae_eo.maps.predict import predict_map

    print(f"Wrote {predict_map(options)}.")


def _embed(options: EmbedOptions) -> None:
    from multimae_eo.maps.embed import embed_scene

    written = embed_scene(options)
    print(f"Wrote {written}." + (f" Look at {options.out.with_suffix('.png')}." if options.preview else ""))


def _fill(options: FillOptions) -> None:
    from multimae_eo.maps.fill import fill_scene

    print(f"Wrote {fill_scene(options)}.")


def _report(options: ReportOptions) -> None:
    from multimae_eo.maps.report import write_report

    print(f"Wrote {write_report(options)}.")


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "pretrain": (PretrainOptions, _pretrain),
    "reconstruct": (ReconstructOptions, _reconstruct),
    "finetune": (FinetuneOptions, _finetune),
    "evaluate": (EvaluateOptions, _evaluate),
    "probe": (ProbeOptions, _probe),
    "geobench": (GeobenchOptions, _geobench),
    "predict": (PredictOptions, _predict),
    "embed": (EmbedOptions, _embed),
    "fill": (FillOptions, _fill),
    "report": (ReportOptions, _report),
    "inspect": (InspectOptions, _inspect),
    "verify": (VerifyOptions, _verify),
    "export": (ExportOptions, _export),
    "convert": (ConvertOptions, _convert),
    "download": (DownloadOptions, _download),
    "import": (ImportOptions, _import),
    "pack": (PackOptions, _pack),
    "synthesize": (SynthesizeOptions, _synthesize),
    "demo": (DemoOptions, _demo),
}
