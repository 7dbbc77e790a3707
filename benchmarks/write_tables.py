"""Put the tables of benchmarks into a page, each between its markers.

    python benchmarks/write_tables.py runs/bench docs/performance.md

FOLDER/NAME.md goes between the lines `<!-- NAME -->` and `<!-- end of NAME -->`; what has no file there stays.
"""

import re
import sys
from pathlib import Path


def main(folder: Path, page: Path) -> None:
    """Rewrite the page."""
    text = page.read_text()
    for name in re.findall(r"<!-- end of (\w+) -->", text):
        table = folder / f"{name}.md"
        if table.is_file():
            start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, rest = text.split(start)
            text = f"{before}{start}\n{table.read_text()}\n{end}{rest.split(end)[1]}"
    page.write_text(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
