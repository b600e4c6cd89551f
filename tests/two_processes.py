"""A command started twice, as torchrun starts it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence


def started_twice(command: Sequence[object], *, timeout: float = 200) -> list[subprocess.CompletedProcess[str]]:
    """Both processes after their end, the first one first; each is asked for what it wrote."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = []
    for process in running:
        out, told = process.communicate(timeout=timeout)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, told))
    return ended
