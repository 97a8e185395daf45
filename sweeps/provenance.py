"""Which source ran, with which libraries."""

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the source that runs, marked if it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """The releases that numbers may depend on."""
    libraries = ("regrow", "torch", "ray", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
