"""The README's commands, in order, in an empty folder; then its Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LEFT_OUT = {
    "make ": "sets up an environment, and takes minutes",
    "python3 -m venv ": "needs the network",
    ".venv/bin/pip ": "needs the network",
    "source ": "this environment is already active",
    "mkdir ": "the test makes this folder itself",
    "sentinode check CAMELYON17 ": "needs the slides of the challenge",
    "sentinode run CAMELYON17/": "needs the slides of the challenge",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every line of the shell blocks, continued lines joined."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def is_left_out(command: str) -> bool:
    return command.startswith(tuple(LEFT_OUT))


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S602  (they are shell commands)


def test_whatever_is_left_out_is_in_the_readme() -> None:
    for start in LEFT_OUT:
        assert any(command.startswith(start) for command in commands()), start


@pytest.mark.long
def test_the_readme_runs_as_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "try"
    folder.mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    kappas = []
    for command in commands():
        if is_left_out(command):
            continue
        start = time.perf_counter()
        done = shell(command, folder)
        print(f"{time.perf_counter() - start:6.1f} s  {command}", flush=True)  # noqa: T201  (to be seen with pytest -s)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, f"{command}\n{done.stderr}"
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                kappas += [found["kappa"]] if command.startswith("sentinode score kappa others") else []
    assert len(kappas) == 2
    assert min(kappas) > 0.5, "README says 0.8 or more, but not on every kind of processor"
    for source in blocks("python"):
        done = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    pictures = list(folder.rglob("*.png"))
    assert len(pictures) > 40
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
