"""Input of the rules: the text of every Python file git would keep, by its path from the project's root."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("classify", "command", "deploy", "detect", "espalier", "experiment", "prune")


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    files = (ROOT / name for name in listed if name)
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files if path.is_file()}


@pytest.fixture(scope="session")
def package_sources(sources: dict[str, str]) -> dict[str, str]:
    return {path: text for path, text in sources.items() if path.startswith(tuple(f"{name}/" for name in PACKAGES))}
