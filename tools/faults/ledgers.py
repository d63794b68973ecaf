"""What can happen to the ledger's rows, and to a reader who may not write where the data is."""

from __future__ import annotations

from pathlib import Path

from tools.faults import server
from tools.faults.processes import Child, SmallDisk, Tell, give_away, give_rights_up, succeed
from tools.faults.trials import Trial, expect, fault


def write_rows(tell: Tell) -> None:
    """Append rows for as long as one lives, and tell of each that is written."""
    from deploykit import ledger

    for number in range(1_000_000):
        ledger.record("trial", kind="fault", number=number)
        tell(number)


def one_row(_: Tell, number: int) -> list[int]:
    """Append one row; returns the numbers of all rows there are."""
    from deploykit import ledger

    ledger.record("trial", kind="fault", number=number)
    return [int(found) for found in ledger.rows()["number"]]


@fault(
    "kill -9 in writing the ledger",
    done="SIGKILL at a random moment of a process that appends rows as fast as it can; then another appends one",
    expected="every row that was written is there, and whole; so is the new one",
    times=30,
    short=4,
)
def ledger_killed(trial: Trial) -> str:
    """Kill the writer, count its rows."""
    variables = {"DEPLOYKIT_LEDGER": str(trial.folder / "ledger")}
    child = Child(write_rows, folder=trial.folder, variables=variables)
    child.kill_after(trial.random.uniform(0, 0.5))
    told = child.finish().told
    found = succeed(one_row, -1, folder=trial.folder, **variables)
    lost = set(told) - set(found)
    expect(not lost, f"{len(lost)} of {len(told)} rows are lost")
    # at most one had been written and not yet told of
    expect(sorted(found) == list(range(-1, max(found) + 1)), f"the rows are {sorted(found)}")
    expect(max(found) <= len(told), f"{len(told)} rows were told of and there are {len(found) - 1}")
    return "no row lost"


@fault(
    "full disk, ledger",
    done="the disk is full when a row is appended; then there is room again",
    expected="an error that names the disk or the bytes; every earlier row there; then the new one",
    times=2,
    short=1,
)
def ledger_on_a_full_disk(trial: Trial) -> str:
    """Append rows until none fits."""
    variables = {"DEPLOYKIT_LEDGER": str(trial.folder)}
    return succeed(_ledger_on_a_full_disk, str(trial.folder), folder=trial.folder, **variables)


def _ledger_on_a_full_disk(tell: Tell, folder: str) -> str:
    disk = SmallDisk(Path(folder), kib=256)
    written: list[int] = one_row(tell, 0)
    (file,) = Path(folder).glob("*.jsonl")
    with disk.full(but_kib=4, grows=file):
        try:
            write_rows(written.append)
        except OSError as error:
            said = str(error)
        expect("disk full" in said or "space left" in said or "too large" in said, f"the error is {said}")
    found = one_row(tell, -1)
    lost = set(written) - set(found)
    expect(not lost, f"{len(lost)} of {len(written)} rows are lost")
    expect(-1 in found, "the row written after there was room is lost")
    return f"{disk.how}: an error, no row lost"


@fault(
    "missing permission, data folder of somebody else",
    done="the data folder belongs to somebody else and is read-only, with the archive in it: images are loaded, twice, "
    "and a row is written",
    expected="it works: cache and ledger go to the reader's own folder, which is said; nothing is downloaded",
    times=1,
    short=1,
)
def data_of_somebody_else(trial: Trial) -> str:
    """Work in a checkout that one may not write."""
    shared, own = trial.folder / "shared", trial.folder / "own"
    (shared / "data").mkdir(parents=True)
    (shared / "data" / "cifar-10-binary.tar.gz").write_bytes(server.archive())
    whose, before = give_away(shared), sorted(shared.rglob("*"))
    variables = {
        "DEPLOYKIT_HOME": str(shared), "XDG_CACHE_HOME": str(own),
        "DEPLOYKIT_DATA": None, "DEPLOYKIT_CACHE": None, "DEPLOYKIT_LEDGER": None,
    }  # fmt: skip
    ended = Child(_use_data_of_somebody_else, folder=trial.folder, variables=variables).finish()
    expect(not ended.error, ended.error)
    expect("cannot be written; rows go to" in ended.stderr, f"it does not say where the rows go: {ended.stderr}")
    expect(sorted(shared.rglob("*")) == before, "something was written into the shared folder")
    kept = {path.suffix for path in own.rglob("*") if path.is_file()}
    expect(kept == {".safetensors", ".jsonl"}, f"in the reader's own folder there is {kept}")
    return f"{whose}: it works"


def _use_data_of_somebody_else(tell: Tell) -> None:
    from deploykit.data import load_dataset

    give_rights_up()
    server.stand_in("http://127.0.0.1:9/nobody-listens", server.sha256())
    for _ in range(2):
        expect(load_dataset("cifar10").name == "cifar10", "another dataset was loaded")
    expect(one_row(tell, 0) == [0], "the row is lost")
