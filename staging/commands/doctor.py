"""``sentinode doctor``: what this machine has, what is used of it, and how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from staging.commands.outputs import guarded


@guarded
def doctor(
    folder: Annotated[
        Path, typer.Argument(help="A folder on the file system to look at, as of the slides or the output.")
    ] = Path(),
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Time nothing, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what this machine has for sentinode, what is used and why not the rest, and time it (a few seconds).

    To time the file system, a file of 64 MB is written in the folder and removed again.

    Example: sentinode doctor results
    """
    from staging.errors import ConfigurationError  # noqa: PLC0415  (slow import)
    from staging.machine import examine  # noqa: PLC0415

    if not folder.is_dir():
        raise ConfigurationError(folder, "is no folder", mend="name one that exists")
    found = examine(folder, measure=not quick)
    typer.echo(json.dumps(found) if as_json else _text(found))


def _text(found: dict[str, Any]) -> str:
    """A paragraph for each subject, a line for each fact."""
    system, cores, memory, disk = (found[name] for name in ("system", "cores", "memory_gb", "disk"))
    granted = "" if memory["granted"] is None else f", {memory['granted']:g} GB granted"
    size = "unknown" if memory["machine"] is None else f"{memory['machine']:g} GB{granted}"
    kind = disk["file_system"] or "unknown file system"
    lines = [
        ", ".join(f"{name} {system[key]}" for key, name in _SYSTEM.items()),
        system["platform"],
        f"cores: {cores['usable']} usable of {cores['machine']}",
        f"memory: {size}",
        f"disk: {disk['free_gb']:,.1f} of {disk['size_gb']:,.1f} GB free at {disk['folder']} ({kind})",
    ]
    lines += [
        f"GPU: {gpu['name']}, {gpu['memory_gb']:g} GB, compute capability {gpu['capability']}" for gpu in found["gpus"]
    ]
    lines += ["", "used", *(f"  {what}: {how}" for what, how in found["uses"].items())]
    installed = ((name, one) for name, one in found["packages"].items() if one is not None)
    lines += ["", "packages", "  " + ", ".join(f"{name} {one}" for name, one in installed)]
    if found["notes"]:
        lines += ["", "not used", *(f"  {note}" for note in found["notes"])]
    if "speeds" in found:
        lines += ["", "speed, on one core unless it says otherwise"]
        lines += [f"  {_NAMES[name][0]}: {value:,g} {_NAMES[name][1]}" for name, value in found["speeds"].items()]
    return "\n".join(lines)


_SYSTEM = {"sentinode": "sentinode", "python": "Python", "openslide": "OpenSlide", "torch": "torch"}
_NAMES = {
    "jpeg_megapixels_per_s": ("decoding JPEG tiles of 512 px", "megapixels/s"),
    "part_of_jpeg_megapixels_per_s": ("decoding a quarter of each", "megapixels/s shown"),
    "write_mb_per_s": ("writing a file", "MB/s"),
    "read_mb_per_s": ("reading it", "MB/s"),
    "network_cpu_megapixels_per_s": ("the small network", "megapixels/s"),
    "network_gpu_megapixels_per_s": ("the small network on the GPU", "megapixels/s"),
}
