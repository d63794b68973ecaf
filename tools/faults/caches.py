"""What can happen to the file in which prepared images are kept."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.faults.processes import KILLED, Child, SmallDisk, Tell, little_memory, succeed
from tools.faults.trials import Trial, expect, fault, names

BIG, SMALL = 3000, 300  # images, 3 KiB each


def build_cache(tell: Tell, images: int, state: str = "x") -> str:
    """Have a dataset prepared and kept, or take the one that is kept; returns a digest of it.

    Tells "built" when the images are prepared and only their file is missing.
    """
    import numpy as np

    from deploykit.contents import arrange, cached

    def build() -> Any:
        pixels = np.random.default_rng(images).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(images) % 10
        contents = arrange((pixels, labels), (pixels[:50], labels[:50]), "abcdefghij")
        tell("built")
        return contents

    found = cached("trial", state, build)
    digest = hashlib.sha256(repr(found.facts).encode())
    for _name, tensor in sorted(found.tensors.items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def undisturbed() -> tuple[str, float, float]:
    """Return the digest of an undisturbed build, and the seconds that preparing and keeping the images take."""
    with tempfile.TemporaryDirectory() as name:
        found: tuple[str, float, float] = succeed(_timed_build, folder=Path(name), DEPLOYKIT_CACHE=f"{name}/cache")
        return found


def _timed_build(_: Tell) -> tuple[str, float, float]:
    built: list[float] = []
    begun = time.monotonic()
    digest = build_cache(lambda _: built.append(time.monotonic()), BIG)
    return digest, built[0] - begun, time.monotonic() - built[0]


@fault(
    "kill -9 in building a cache",
    done="SIGKILL at a random moment while images are prepared, or while their file is written; then the same again, "
    "undisturbed",
    expected="the file absent or complete; the next run has the same images, and leaves the file and nothing else",
    times=30,
    short=4,
)
def cache_killed(trial: Trial) -> str:
    """Kill it once, look, go on."""
    from safetensors import safe_open

    digest, preparing_s, keeping_s = undisturbed()
    folder = trial.folder / "cache"
    file = folder / "trial.safetensors"
    child = Child(build_cache, BIG, folder=trial.folder, variables={"DEPLOYKIT_CACHE": str(folder)})
    word, seconds = trial.random.choice([(None, preparing_s), ("built", keeping_s)])
    child.kill_after(trial.random.uniform(0, seconds), word=word)
    status = child.finish().status
    was_there = file.exists()
    expect(status == KILLED or was_there, f"it ended with status {status} and without the file")
    if was_there:
        with safe_open(file, framework="np") as stored:  # refuses a file that is shorter than its header says
            expect(stored.get_tensor("train.images").shape[0] == 0.9 * BIG, "an incomplete file has the name")
    debris = names(folder) - {file.name}
    again = succeed(build_cache, BIG, folder=trial.folder, DEPLOYKIT_CACHE=str(folder))
    expect(again == digest, "the next run has other images")
    expect(names(folder) == {file.name}, f"there is also {names(folder) - {file.name}}")
    return ("complete" if was_there else "absent") + (", debris cleaned by the next run" if debris else "")


@fault(
    "full disk, cache of images",
    done="the disk is full when a new cache is written over the old one; then there is room again",
    expected="the images all the same, and a word; the old file as it was; no debris; then the new one",
    times=2,
    short=1,
)
def cache_on_a_full_disk(trial: Trial) -> str:
    """Write a cache of which only a part fits."""
    variables = {"DEPLOYKIT_CACHE": str(trial.folder)}
    ended = Child(_cache_on_a_full_disk, str(trial.folder), folder=trial.folder, variables=variables).finish()
    expect(not ended.error, ended.error)
    expect("The prepared images could not be kept" in ended.stderr, f"it says: {ended.stderr}")
    return ended.value


def _cache_on_a_full_disk(tell: Tell, folder: str) -> str:
    disk, file = SmallDisk(Path(folder), kib=16384), Path(folder) / "trial.safetensors"
    build_cache(tell, SMALL)
    before = file.read_bytes()
    with disk.full(but_kib=1024):
        loaded = build_cache(tell, BIG, "y")
        expect(file.read_bytes() == before, "the old file is another one than before")
        left = names(file.parent) - {file.name, "filler"}
        expect(not left, f"there is also {left}")
    expect(build_cache(tell, BIG, "y") == loaded, "other images")
    expect(file.stat().st_size > len(before), "the new images were not kept")
    return f"{disk.how}: loaded, said, the old file kept"


@fault(
    "out of memory in building a cache",
    done="RLIMIT_AS 16 MiB above what is in use; then the same again without it",
    expected="an error that speaks of memory; no file; then the images",
    times=2,
    short=1,
)
def cache_out_of_memory(trial: Trial) -> str:
    """Prepare more images than fit."""
    folder = trial.folder / "cache"
    child = Child(_cache_out_of_memory, folder=trial.folder, variables={"DEPLOYKIT_CACHE": str(folder)})
    said = child.finish().error
    expect("Unable to allocate" in said or "alloc" in said or said.startswith("MemoryError"), f"it ended with {said}")
    expect(names(folder) <= {"trial.safetensors.turn"}, f"there is {names(folder)}")
    again = succeed(build_cache, BIG, folder=trial.folder, DEPLOYKIT_CACHE=str(folder))
    expect(again == undisturbed()[0], "the next run has other images")
    expect(names(folder) == {"trial.safetensors"}, f"there is {names(folder)}")
    return "an error, no file; then the images"


def _cache_out_of_memory(tell: Tell) -> None:
    with little_memory(mib=16):
        build_cache(tell, BIG)
