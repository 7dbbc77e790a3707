"""Writes lock.txt, what CI installs: each package at one version and by its hash. --check: does it fit pyproject.toml?

Run by `make lock` with the Python of the lock; the versions are the newest that pip finds. One file per package, for
Linux on x86-64. torch has the hashes of several builds of one version, those of the old lock among them.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / ".ci" / "lock.txt"
EXTRAS = ("dev", "docs")
PYTHON = (3, 11)
WORDS = ".".join(map(str, PYTHON))
# What installs the others, and what builds the package without an environment of its own.
TOOLS = ("pip", "editables")
HEAD = """\
# Python {python}, Linux on x86-64: what CI installs for the extras {extras}, and what builds the package.
# Written by `make lock`; install with pip's --require-hashes --no-deps. torch: the builds for the CPU and for CUDA,
# whose libraries are further packages.
"""
LINE = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")
Lock = dict[str, tuple[str, list[str]]]


def plain(name: str) -> str:
    """A name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> Lock:
    """Version and hashes by name; every line has both."""
    found = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, f"{path.name}: {line!r} has not one version and its hashes"
            found[match["name"]] = match["version"], match["hashes"].replace(" --hash=sha256:", " ").split()
    return found


def resolved(torch: str) -> Lock:
    """What pip would install into an empty environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [torch, f"{ROOT}[{','.join(EXTRAS)}]", *TOOLS, *project["build-system"]["requires"]]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        how = ["--dry-run", "--ignore-installed", "--quiet", "--only-binary", ":all:", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", "install", *how, *wanted], check=True)
        installed = json.loads(report.read_text())["install"]
    found = {}
    for one in installed:
        name, version = plain(one["metadata"]["name"]), one["metadata"]["version"].partition("+")[0]
        if name != plain(project["project"]["name"]):
            found[name] = version, [one["download_info"]["archive_info"]["hashes"]["sha256"]]
    return found


def write(torch: str) -> None:
    if sys.version_info[:2] != PYTHON or sys.platform != "linux":
        sys.exit(f"The lock is written by Python {WORDS} on Linux; name one: make PYTHON=... lock")
    old, new = read(LOCK) if LOCK.exists() else {}, resolved(torch)
    if "torch" in old and old["torch"][0] == new["torch"][0]:
        new["torch"] = new["torch"][0], sorted({*old["torch"][1], *new["torch"][1]})
    head = HEAD.format(python=WORDS, extras=" and ".join(EXTRAS))
    lines = [f"{name}=={v}" + "".join(f" --hash=sha256:{h}" for h in hashes) for name, (v, hashes) in new.items()]
    LOCK.write_text(head + "\n".join(sorted(lines)) + "\n")
    print(f"Wrote {LOCK.name}: {len(new)} packages.")


def requirements() -> Iterator[str]:
    """What pyproject.toml asks for, of the package, its extras and its build."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, extras, known = file["project"], list(EXTRAS), set()
    yield from (*file["build-system"]["requires"], *project["dependencies"], *TOOLS)
    while extras:
        if (extra := extras.pop()) not in known:
            known.add(extra)
            for text in project["optional-dependencies"][extra]:
                own = re.fullmatch(rf"{project['name']}\[(.+)\]", text)
                extras += own[1].split(",") if own else []
                yield from () if own else (text,)


def check() -> None:
    """Exit with what does not fit."""
    from packaging.requirements import Requirement

    lock, wrong = read(LOCK), []
    for text in requirements():
        wanted = Requirement(text)
        version, _ = lock.get(plain(wanted.name), ("none", []))
        if version == "none" or not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted}: the lock has {version}")
    if wrong:
        sys.exit("\n".join([*wrong, f"{LOCK.name} does not fit pyproject.toml; run `make lock`."]))
    print(f"{LOCK.name}: {len(lock)} packages, fits pyproject.toml.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--torch", default="torch", help="which torch, such as torch==2.13.0")
    options = parser.parse_args()
    check() if options.check else write(options.torch)
