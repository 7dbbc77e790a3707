"""The command line: options are typed dataclasses, work is imported only when it starts, user errors exit with 2."""

import difflib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from multimae_eo import __version__
from multimae_eo.data.import_options import ImportOptions
from multimae_eo.errors import IncompleteError, MultiMAEError, reason
from multimae_eo.finetune_options import EvaluateOptions, FinetuneOptions, GeobenchOptions, ProbeOptions
from multimae_eo.maps.options import EmbedOptions, FillOptions, PredictOptions, ReportOptions
from multimae_eo.modalities import PAPER_INPUTS, get_modality, parse_view
from multimae_eo.options import PretrainOptions, demo_options


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
class SynthesizeOptions:
    """Write a synthetic world; needs no download.

    Args:
        out: folder to write the data set into.
        layout: mmearth, for pre-training; geobench: three labelled data sets over the same tiles of another world;
            scene: GeoTIFFs of one place, to make maps of.
        name: of the data set or scene; those of geobench have names of their own.
        tiles: number of tiles; a scene is one.
        tile_px: edge of a tile, or of the scene, in pixels of 10 m.
        seed: decides the world.
        workers: processes; default: one per core.
    """

    out: Path = Path("data")
    layout: Literal["mmearth", "geobench", "scene"] = "mmearth"
    name: str = "synthetic"
    tiles: int = 1000
    tile_px: int = 64
    seed: int = 0
    workers: int | None = None


@dataclass
class PackOptions:
    """Write a copy of a data set that trains faster: only the bands that are needed, uncompressed, in large files.

    Goes on where it was stopped; a complete copy is only checked.

    Args:
        data: folder of a data set in the MMEarth layout.
        out: folder to write the copy into, which gets the name of the data set.
        modalities: what is kept; default: the paper's six.
        tiles_per_shard: tiles in one file.
    """

    data: Path
    out: Path
    modalities: list[str] = field(default_factory=lambda: list(PAPER_INPUTS))
    tiles_per_shard: int = 4096


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
    """A line that says how many tiles are done, and how long the rest will take."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def __call__(self, done: int, of: int) -> None:
        passed = time.perf_counter() - self.began
        left = passed * (of - done) / max(1, done)
        text = f"\r{done}/{of} tiles, {passed:.0f} s, {left:.0f} s left "
        print(text, end="" if done < of else "\n", file=sys.stderr, flush=True)


def _synthesize(options: SynthesizeOptions) -> None:
    from multimae_eo.data.synthetic import generate, generate_downstream, generate_scene

    if options.layout == "scene":
        print(f"Wrote {generate_scene(options.out, options.name, seed=options.seed, tile_px=options.tile_px)}.")
        return
    world = {key: getattr(options, key) for key in ("tiles", "tile_px", "seed", "workers")}
    if options.layout == "geobench":
        print(f"Wrote {generate_downstream(options.out, **world, progress=TimeLeft())}.")
    else:
        print(f"Wrote {generate(options.out, options.name, **world, progress=TimeLeft())}.")


def _demo(options: DemoOptions) -> None:
    from multimae_eo.tasks.demo import demo

    demo(options.out, options.tiles, options.labelled_tiles, options.pretrain)


def _finetune(options: FinetuneOptions) -> None:
    from multimae_eo.tasks.finetune import finetune

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
    "convert": (ConvertOptions, _convert),
    "import": (ImportOptions, _import),
    "pack": (PackOptions, _pack),
    "synthesize": (SynthesizeOptions, _synthesize),
    "demo": (DemoOptions, _demo),
}


# What a command may lack, and the extra that brings it.
EXTRAS = {"h5py": "data", "isal": "data", "rasterio": "geo", "lightning": "train", "torchmetrics": "train"}
EXTRAS |= {"sklearn": "train", "matplotlib": "train", "tqdm": "geo", "upath": "remote"}


class Parser(ArgumentParser):
    """A parser whose errors take few lines, suggest the nearest option, and exit with 2."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        print(f"error: {shorten(message, options_of(self))}", file=sys.stderr)
        raise SystemExit(2)


def options_of(parser: ArgumentParser) -> list[str]:
    """The names of all options of a parser and its commands."""
    names = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    commands = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {})
    return names + [name for command in commands.values() for name in options_of(command)]


def shorten(message: str, known: list[str]) -> str:
    """The lines of a parser's message that say something, with the nearest option for one that is unknown."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines[:8])
    unknown = re.search(r"(?:[Kk]ey|option) ['\"]([\w.]+)['\"]|[Uu]nrecognized arguments: --([\w.]+)", text)
    name = unknown and (unknown.group(1) or unknown.group(2))
    if name and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        leaf = difflib.get_close_matches(name.split(".")[-1], [k.split(".")[-1] for k in known], n=1, cutoff=0.6)
        guess = near or [k for k in known if leaf and k.split(".")[-1] == leaf[0]][:1]
        if guess:
            text += f" Did you mean '{guess[0]}'?"
    return text


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="multimae-eo", allow_abbrev=False, description="Multi-modal masked autoencoders for Earth observation."
    )
    parser.add_argument("--version", action="version", version=f"multimae-eo {__version__}")
    commands = parser.add_subcommands(metavar="COMMAND", help="see multimae-eo COMMAND --help")
    for name, (options, _) in COMMANDS.items():
        command = Parser(allow_abbrev=False, description=(options.__doc__ or "").split("\n")[0])
        command.add_argument("--config", action="config", help="a YAML file with any of the options below")
        command.add_class_arguments(options, None, as_positional=True)
        commands.add_subcommand(name, command, help=(options.__doc__ or "").split("\n")[0])
    return parser


def as_parsed(arguments: list[str]) -> list[str]:
    """Arguments as jsonargparse spells them: options with underscores, repeated ones with +, flags with a value.

    A source, `--source NAME=PATH`, is spelt out, and the second word of a command that maps is its scene.
    """
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--source" and "=" in "".join(arguments[i + 1 : i + 2]):
            name, _, path = arguments[i + 1].partition("=")
            arguments[i : i + 2] = [f"--source.{name}.path={path}", ""]
    arguments = [a for a in arguments if a]
    if arguments[:1] in (["embed"], ["fill"]) and len(arguments) > 2 and not arguments[2].startswith("-"):
        arguments.insert(2, "--scene")
    spelt = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("--source."):
            pass  # names of sources are the user's own
        elif name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            name += "+" * (name == "--drop")
            if name == "--all_subsets" and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        spelt.append(name + equals + value)
    return spelt


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `multimae-eo` command."""
    parser = build_parser()
    parsed = parser.parse_args(as_parsed(sys.argv[1:] if arguments is None else arguments))
    name = parsed.subcommand
    chosen: Namespace = parser.instantiate(parsed)[name]
    chosen.pop("config", None)
    options, run = COMMANDS[name]
    try:
        run(options(**{key: getattr(chosen, key) for key in vars(chosen)}))
    except IncompleteError as error:
        print(f"incomplete: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except MultiMAEError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        need = f"{name} needs {error.name}, which is not installed: pip install 'multimae-eo[{extra}]'."
        print(f"error: {need}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
