"""What can happen to a download: the archive is absent or complete, and what was fetched is kept."""

from __future__ import annotations

from pathlib import Path

from tools.faults import server
from tools.faults.processes import KILLED, Child, SmallDisk, Tell, succeed
from tools.faults.trials import Trial, UnmetError, expect, fault, names

DOWNLOAD_S = 0.4


def download(_: Tell, url: str, target: str) -> None:
    """Download the small archive."""
    from deploykit.download import Pace
    from deploykit.download import download as fetch

    fetch(url, Path(target), sha256=server.sha256(), pace=Pace())


@fault(
    "kill -9 in a download",
    done="SIGKILL at a random moment of a download; then the same again, undisturbed",
    expected="the file absent or complete; the next run fetches only the rest, and leaves the file and nothing else",
    times=30,
    short=4,
)
def download_killed(trial: Trial) -> str:
    """Kill it once, look, go on."""
    target = trial.folder / "archive.tar.gz"
    with server.serving(seconds=DOWNLOAD_S) as served:
        child = Child(download, served.url, str(target), folder=trial.folder)
        child.kill_after(trial.random.uniform(0, 1.3 * DOWNLOAD_S))
        status = child.finish().status
        was_there = target.exists()
        expect(status == KILLED or was_there, f"it ended with status {status} and without the file")
        expect(not was_there or target.read_bytes() == server.archive(), "an incomplete file has the name")
        kept = max((p.stat().st_size for p in trial.folder.glob(f"{target.name}.partial-*")), default=0)
        del served.asked[:]
        succeed(download, served.url, str(target), folder=trial.folder)
    expect(target.read_bytes() == server.archive(), "the file is another one")
    # with all bytes kept, a server is asked for the byte behind the last
    expect(served.asked == ([] if was_there else [kept]), f"{kept:,} bytes were kept, and it asked for {served.asked}")
    expect(names(trial.folder) == {target.name}, f"there is also {names(trial.folder) - {target.name}}")
    return "complete" if was_there else "absent, then resumed" if kept else "absent, then begun"


@fault(
    "full disk, download",
    done="the disk is full in the middle of a download; then there is room and the same runs again",
    expected="an error that names the disk; no file under the name; the next run fetches only the rest",
    times=2,
    short=1,
)
def download_on_a_full_disk(trial: Trial) -> str:
    """Let a part of the archive fit."""
    with server.serving(seconds=DOWNLOAD_S) as served:
        said = succeed(_download_on_a_full_disk, served.url, str(trial.folder), folder=trial.folder)
    expect(len(served.asked) == 2 and served.asked[1] > 0, f"it asked for the bytes from {served.asked}")  # noqa: PLR2004
    return said


def _download_on_a_full_disk(tell: Tell, url: str, folder: str) -> str:
    disk, target = SmallDisk(Path(folder), kib=4096), Path(folder) / "archive.tar.gz"
    with disk.full(but_kib=100):
        try:
            download(tell, url, str(target))
        except OSError as error:
            expect("space left" in str(error) or "too large" in str(error), f"the error does not name it: {error}")
        else:
            raise UnmetError("it succeeded without a place to write to")
        expect(not target.exists(), "an incomplete file has the name")
    download(tell, url, str(target))
    expect(target.read_bytes() == server.archive(), "the file is another one")
    expect(names(target.parent) == {target.name}, f"there is also {names(target.parent) - {target.name}}")
    return f"{disk.how}: an error, no file; then resumed"
