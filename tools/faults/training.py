"""What can happen to a training: whatever it is, the same command ends with the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path

from tools.faults.processes import KILLED, Child, SmallDisk, Tell, give_away, give_rights_up, succeed
from tools.faults.training_runs import (
    NEVER_S,
    STEP_S,
    STEPS,
    STEPS_PER_EPOCH,
    Plan,
    go_on,
    least_kept,
    result_of,
    run,
    train,
    unbroken,
)
from tools.faults.trials import Trial, UnmetError, expect, fault, names


def random_plan(trial: Trial, what: str, *, processes: int = 1) -> Plan:
    """Draw a step, a process, and whether the state is kept at each step or at the end of an epoch."""
    draw = trial.random
    every_s, at, rank = draw.choice([0.0, NEVER_S]), draw.randint(1, STEPS), draw.randrange(processes)
    delay_s = draw.choice([0.0, draw.uniform(0, STEP_S)]) if what == "kill" else 0.0
    return Plan(trial.folder / "state.pt", every_s, processes, at, what, delay_s, rank)


@fault(
    "kill -9 in training, one process",
    done=f"SIGKILL at a random step of {STEPS} and a random moment of it (loss, backward, update, writing the state); "
    "then the same command again",
    expected="the bits of an unbroken run: weights, averages, momenta, log; no more steps done twice than were not "
    "kept; no leftover",
    times=20,
    short=4,
)
def training_killed(trial: Trial) -> str:
    """Kill it once, go on, compare."""
    return kill(random_plan(trial, "kill"), trial.folder)


@fault(
    "kill -9 in training, two processes",
    done="the same with two processes as torchrun starts them, one of which is killed",
    expected="the other one ends too; then the bits of an unbroken run of two processes",
    times=20,
    short=2,
)
def training_killed_of_two(trial: Trial) -> str:
    """Kill one of two, go on with two, compare."""
    return kill(random_plan(trial, "kill", processes=2), trial.folder)


def kill(plan: Plan, folder: Path) -> str:
    """Run a training whose process is killed, and then go on."""
    ended = run(plan, folder)
    victim = ended[plan.rank]
    if victim.status == 0 and not victim.error:
        expect(result_of(ended, "the run") == unbroken(plan.processes), "it was over before the kill, with other bits")
        return "over before the kill"
    expect(victim.status == KILLED, f"it was not killed: {victim.error or victim.status}")
    expect(all(one.status or one.error for one in ended), "the other one took no notice")
    # the last step told of was under way
    go_on(plan, folder, least_kept(plan, len(ended[0].told) - 1))
    return "identical to the bit"


@fault(
    "NaN loss",
    done="the loss is NaN at a random step; then the same command again, without it",
    expected="an error that names the step and the epoch; no NaN in the state; the bits of an unbroken run",
    times=5,
    short=1,
)
def loss_is_nan(trial: Trial) -> str:
    """Let one step's loss be NaN."""
    plan = random_plan(trial, "nan")
    epoch, step = divmod(plan.at - 1, STEPS_PER_EPOCH)
    said = stopped(plan, trial.folder, "DivergedError")
    place = f"the loss is nan at step {step + 1} of epoch {epoch + 1} "
    expect(place in said, f"the error names another place: {said}")
    return "stopped with step and epoch named; then identical to the bit"


@fault(
    "out of memory in training",
    done="RLIMIT_AS 64 MiB above what is in use, and a step that wants more; then the same command again",
    expected="an error that speaks of memory; the state as it was; the bits of an unbroken run",
    times=3,
    short=1,
)
def training_out_of_memory(trial: Trial) -> str:
    """Let one step want more memory than there is."""
    said = stopped(random_plan(trial, "memory"), trial.folder, "RuntimeError")
    expect("can't allocate memory" in said, f"the error does not speak of memory: {said}")
    return "an error, the state kept; then identical to the bit"


def stopped(plan: Plan, folder: Path, kind: str) -> str:
    """Run a training that ends with an error of this kind, go on, and return the error."""
    (ended,) = run(plan, folder)
    expect(ended.error.startswith(kind), f"it ended with {ended.error or ended.status} and not with {kind}")
    go_on(plan, folder, least_kept(plan, plan.at - 1))
    return ended.error


@fault(
    "full disk, state of a training",
    done="the disk is full when the state is written; then there is room again and the same command runs again",
    expected="an error that names the disk; the state of before, complete; the bits of an unbroken run",
    times=2,
    short=1,
)
def training_on_a_full_disk(trial: Trial) -> str:
    """Write a state where only a part of it fits."""
    how, found = succeed(_train_on_a_full_disk, str(trial.folder), folder=trial.folder)
    expect(found == unbroken(1), "the next run ended with other bits than an unbroken one")
    return f"{how}: an error, the old state kept; then identical to the bit"


def _train_on_a_full_disk(tell: Tell, folder: str) -> tuple[str, str]:
    disk = SmallDisk(Path(folder), kib=8192)
    plan = Plan(Path(folder) / "state.pt", 0.0, at=11, what="nan")
    _error_of(tell, plan)
    before = plan.state.read_bytes()
    with disk.full(but_kib=100):
        said = _error_of(tell, plan.undisturbed())
        expect("space left" in said or "too large" in said, f"the error does not name the disk: {said}")
        expect(plan.state.read_bytes() == before, "the state is another one than before")
        left = names(plan.state.parent) - {"filler", "state.pt"}
        expect(not left, f"beside the state there is {left}")
    return disk.how, train(tell, plan.undisturbed())


def _error_of(tell: Tell, plan: Plan) -> str:
    try:
        train(tell, plan)
    except Exception as error:  # noqa: BLE001 (any error is what is looked for)
        return f"{type(error).__name__}: {error}"
    return "no error"


@fault(
    "missing permission, state of a training",
    done="the folder of the state belongs to somebody else and cannot be written",
    expected="an error that names the file, before the first step; the folder as it was",
    times=1,
    short=1,
)
def training_without_permission(trial: Trial) -> str:
    """Train with the state in a folder of somebody else."""
    folder = trial.folder / "theirs"
    folder.mkdir()
    whose = give_away(folder)
    ended = Child(_train_without_permission, str(folder), folder=trial.folder).finish()
    expect(ended.error.startswith("PermissionError"), f"it ended with {ended.error or ended.value}")
    expect("state.pt" in ended.error, f"the error does not name the file: {ended.error}")
    expect(not ended.told, f"it comes after {len(ended.told)} steps")
    expect(not names(folder), "something was written all the same")
    return f"{whose}: an error that names the file, at once"


def _train_without_permission(tell: Tell, folder: str) -> None:
    give_rights_up()
    train(tell, Plan(Path(folder) / "state.pt"))
    raise UnmetError("it ran to its end")
