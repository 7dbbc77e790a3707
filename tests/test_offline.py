"""Nothing asks the network by itself: not at import, not in a command that works on local files. No telemetry."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py")
pytest.importorskip("lightning")
pytest.importorskip("rasterio")

# Runs first in a process: notes what asks for a name or an address other than this machine's, and refuses.
WATCH = """
import json, sys

ASKED = []
NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.connect", "socket.sendto")


def watch(event, args):
    if event not in (*NAMES, "urllib.Request"):
        return
    where = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
    if isinstance(where, (str, bytes)) and event == "socket.connect":
        return  # a file of this machine
    host = where[0] if isinstance(where, tuple) else where
    if host not in ("127.0.0.1", "::1", "localhost", None):
        ASKED.append(f"{event} {where}")
        raise OSError("the network is not to be used")


sys.addaudithook(watch)
"""
REPORT = """
strangers = ("wandb", "mlflow", "gradio", "sentry_sdk", "posthog", "analytics", "opentelemetry")
found = sorted({m.split(".")[0] for m in sys.modules} & {*strangers})
print("REPORT" + json.dumps({"asked": ASKED, "strangers": found}))
"""


def watched(code: str, folder: Path) -> dict[str, list[str]]:
    """What a process of its own asked of the network, and which modules that talk by themselves it has loaded."""
    command = [sys.executable, "-c", WATCH + code + REPORT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.rpartition("REPORT")[2])


def test_the_watch_sees_what_is_asked_and_swallowed(tmp_path):
    code = """
import contextlib, socket, urllib.request
with contextlib.suppress(OSError):
    socket.create_connection(("example.invalid", 80), timeout=1)
with contextlib.suppress(OSError):
    urllib.request.urlopen("http://192.0.2.1/")
with contextlib.suppress(OSError):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 9))
"""
    asked = watched(code, tmp_path)["asked"]
    assert [line.split()[0] for line in asked] == ["socket.getaddrinfo", "urllib.Request", "socket.sendto"]


@pytest.mark.slow
def test_no_module_asks_at_import_and_no_command_on_local_files(tmp_path):
    """Every module whose packages are installed; then from a world to a map, with the default loggers."""
    code = """
import importlib, pkgutil, multimae_eo
from multimae_eo.cli import main
from multimae_eo.errors import ConfigError
missing = []
for module in pkgutil.walk_packages(multimae_eo.__path__, "multimae_eo."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        missing.append(error.name.split(".")[0])
assert {*missing} <= {"timm", "terratorch", "torchgeo", "torchgeo_bench"}, missing
for name in multimae_eo.__all__:
    getattr(multimae_eo, name)
try:
    main(["--help"])
except SystemExit:
    pass
import torch
torch.set_num_threads(1)
from multimae_eo.tasks import task
task.RESAMPLES = 5

def run(line):
    main(line.split())

cpu = "--trainer.accelerator cpu --trainer.progress false"
run("synthesize --out data --tiles 12 --workers 1")
run("synthesize --out data --layout geobench --tiles 10 --tile_px 16 --workers 1")
run("synthesize --out data --layout scene --name scene --tile_px 64")
small = "--model.size demo --optim.steps 2 --optim.batch_size 4 --data.workers 1 --trainer.panels 0"
run(f"pretrain --data.root data/synthetic --out run --trainer.devices 1 {small} {cpu} --data.val_fraction 0.2")
labels = "--data.root data --data.name synthetic-class --data.workers 0"
run(f"finetune --checkpoint run/checkpoint --out tuned {labels} --optim.steps 2 {cpu}")
run(f"evaluate tuned/best {cpu}")
run("inspect run/checkpoint")
run("inspect data/synthetic")
scene = "--source s2=data/scene/s2.tif --source dem=data/scene/dem.tif --source lc=data/scene/worldcover.tif"
tiles = "--tiles.device cpu --tiles.progress false"
run(f"embed run/checkpoint {scene} {tiles} --out run/embeddings.tif")
run(f"predict tuned/best {scene} --source s1=data/scene/s1.tif --allow-missing true {tiles} --out run/map.tif")
run("report run")
encoder = multimae_eo.load("run/checkpoint")
images = torch.randint(200, 3000, (1, 3, 56, 56))
encoder(images, bands=["B04", "B03", "B02"], units="dn", product="L2A")
"""
    assert watched(code, tmp_path) == {"asked": [], "strangers": []}
    assert (tmp_path / "run" / "tensorboard").is_dir()
    assert (tmp_path / "run" / "map.tif").is_file()
