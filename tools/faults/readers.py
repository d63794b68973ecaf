"""Thirty readers who start at once on one server."""

from __future__ import annotations

import time
from pathlib import Path

from tools.faults import server
from tools.faults.processes import Child, Tell, give_away, give_rights_up
from tools.faults.trials import Trial, expect, fault

READERS = 30
DOWNLOAD_S = 1.0


def read(tell: Tell, source: tuple[str, str], go: str, locks: str, rights: str) -> tuple[str, str, str]:
    """Load the small CIFAR-10 once the file `go` is there; returns name, fingerprint and source."""
    import fcntl

    from deploykit import contents
    from deploykit.data import load_dataset

    if locks == "do nothing":
        fcntl.flock = fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    if rights == "none":
        give_rights_up()
    server.stand_in(*source)
    arrange = contents.arrange

    def counted(*arguments: object) -> contents.Contents:
        tell("built")
        return arrange(*arguments)  # type: ignore[arg-type]

    contents.arrange = counted  # type: ignore[assignment]
    while not Path(go).exists():
        time.sleep(0.01)
    dataset = load_dataset("cifar10")
    return dataset.name, dataset.fingerprint, dataset.source


def thirty(trial: Trial, data: Path, *, locks: str = "work", shared: bool = False) -> tuple[list[int], int]:
    """Let thirty readers load it; returns the bytes that requests began at, and how many prepared the images.

    Raises:
        UnmetError: one failed, or has other images than another.
    """
    own = {"DEPLOYKIT_HOME": str(data), "DEPLOYKIT_DATA": None, "DEPLOYKIT_CACHE": None}
    go = trial.folder / f"go-{shared}"
    with server.serving(seconds=DOWNLOAD_S) as served:
        readers = [
            Child(
                read, (served.url, server.sha256()), str(go), locks, "none" if shared else "all", folder=trial.folder,
                variables=own | {"XDG_CACHE_HOME": str(trial.folder / f"home-{number}")},
            )
            for number in range(READERS)
        ]  # fmt: skip
        go.touch()
        ended = [reader.finish() for reader in readers]
    errors = [one.error or one.stderr[-300:] for one in ended if one.error or one.status]
    expect(not errors, f"{len(errors)} of {READERS} readers failed, the first with {errors[:1]}")
    expect(len({one.value for one in ended}) == 1, "not all readers have the same images")
    return served.asked, sum(one.told.count("built") for one in ended)


@fault(
    "thirty readers at once",
    done="thirty processes load CIFAR-10 (a small stand-in) into one empty data folder at the same moment",
    expected="no error; one download, and the images are prepared once",
    times=3,
    short=1,
)
def thirty_readers(trial: Trial) -> str:
    """With locks that work."""
    return _into_an_empty_folder(trial, locks="work")


@fault(
    "thirty readers at once, locks that hold nobody back",
    done="the same, with flock made to do nothing, as on some network drives",
    expected="no error; one download, and the images are prepared once",
    times=3,
    short=1,
)
def thirty_readers_without_flock(trial: Trial) -> str:
    """With locks that do not."""
    return _into_an_empty_folder(trial, locks="do nothing")


def _into_an_empty_folder(trial: Trial, *, locks: str) -> str:
    data = trial.folder / "course"
    (data / "data").mkdir(parents=True)
    asked, built = thirty(trial, data, locks=locks)
    expect(asked == [0], f"the server was asked {len(asked)} times")
    expect(built == 1, f"the images were prepared {built} times")
    left = sorted(str(path.relative_to(data / "data")) for path in (data / "data").rglob("*") if path.is_file())
    expect(
        left == ["cache/cifar10-archive.safetensors", "cifar-10-binary.tar.gz"], f"in the data folder there is {left}"
    )
    return "one download, prepared once, no error"


@fault(
    "thirty readers at once, data folder of somebody else",
    done="a teacher's data folder, read-only, with the archive and the prepared images in it; thirty processes without "
    "rights load it at the same moment",
    expected="no error; no download; the teacher's prepared images are used and nothing is written",
    times=1,
    short=1,
)
def thirty_readers_of_a_teacher(trial: Trial) -> str:
    """Share what a teacher prepared."""
    data = trial.folder / "course"
    (data / "data").mkdir(parents=True)
    thirty(trial, data)  # who comes first prepares it
    whose = give_away(data)
    asked, built = thirty(trial, data, shared=True)
    expect((asked, built) == ([], 0), f"{len(asked)} downloads; the images were prepared {built} times")
    copies = [path for path in trial.folder.glob("home-*/**/*") if path.is_file()]
    expect(not copies, f"{len(copies)} readers keep a copy of their own")
    return f"{whose}: no error, no copy"
