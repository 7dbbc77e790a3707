"""Question 6 on real pixels (illustration): filling in each modality of a place from all others.

    multimae-eo import --config configs/import_terramesh.yaml --root TERRAMESH --out data
    multimae-eo pretrain --config configs/pretrain_terramesh.yaml --data.root data/terramesh
    python benchmarks/study/places.py runs/terramesh

RUN is a run of pre-training; its validation tiles are of places that it was not trained on. The simple predictors are
fitted to its training tiles, as in `filling.py`. Prints errors, single figures without intervals: reflectance in per
cent, relief in metres, radar in dB, classes in per cent wrong; and draws RUN/filling.png.
"""

import argparse
from pathlib import Path

import torch
from filling import FILLING, SHOWN, draw, errors
from show import turned

from multimae_eo import checkpoint
from multimae_eo.cli import parse
from multimae_eo.options import PretrainOptions


def main(run: Path) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    options = PretrainOptions(**vars(parse(["pretrain", "--config", str(run / "config.yaml")])[1]))
    root = Path(str(options.data.root))
    columns: dict[str, list[str]] = {}
    for arm in (FILLING.base, *(arm for arm in FILLING.arms if "predictor" in arm.changes)):
        found = errors(arm.changes.get("predictor", "fill"), run / "checkpoint", options, {"": root}, 0)
        columns.setdefault("error", [target for _, target in found])
        columns[arm.name] = [f"{value:.2f}" for value in found.values()]
    print(turned(columns))
    print(draw(SHOWN, checkpoint.load_model(run / "checkpoint"), options, root, run / "filling.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    main(parser.parse_args().run)
