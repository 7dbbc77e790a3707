"""What every error that a user can cause has in common: how a command ends, what it says, and what it leaves."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from multimae_eo import cli


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_message(code: object, err: str, says: Sequence[str]) -> str:
    """What every message of a user error has in common; returns it."""
    assert code == 2, err
    message = err[err.index("error: ") :]
    assert 1 <= len(err.strip().splitlines()) < 10, err
    for word in ("Traceback", 'File "', "Caught ", "site-packages", "Error:", "Error("):
        assert word not in err
    for part in says:
        assert part in message, f"'{part}' is not in: {message}"
    return message


def fails(arguments: Sequence[str], says: Sequence[str], capfd) -> str:
    """Run a command in this process and check how it ends; returns the message."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return check_message(ended.value.code, capfd.readouterr().err, says)
