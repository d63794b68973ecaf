"""What one build of an engine is told: the profile of batches, a progress bar, and the timing cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import complete_or_absent

ANY = -1  # TensorRT's word for a dimension of any size


def add_profile(builder: Any, config: Any, taken: Any, batches: tuple[int, int, int], log: Any) -> None:
    """Tell the batches that the engine has to take: smallest, usual and largest; the image's size is the file's.

    Raises:
        ValueError: the file's batch or image does not go with that, or TensorRT refuses it.
    """
    batch, *size = taken.shape
    if ANY in size:
        raise ValueError(f"{taken.name} has shape {list(taken.shape)}; export with a fixed size of images, any batch")
    if batch not in (ANY, *batches) or (batch != ANY and len(set(batches)) > 1):
        raise ValueError(
            f"the ONNX file takes batches of {batch} only, the profile is {batches}; export it with a dynamic batch, "
            f"or give profile=({batch}, {batch}, {batch})"
        )
    profile = builder.create_optimization_profile()
    profile.set_shape(taken.name, *((number, *size) for number in batches))
    if config.add_optimization_profile(profile) < 0:
        raise ValueError(f"TensorRT refuses the profile {batches}. It says: {' / '.join(log.lines[-1:]) or 'nothing'}")


def progress_bars(trt: Any) -> Any:
    """Return a monitor that shows a bar for each phase of a build."""
    from tqdm.auto import tqdm

    class Bars(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.bars: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=parent_phase is None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.bars[phase_name].update(step + 1 - self.bars[phase_name].n)
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            bar = self.bars.pop(phase_name)
            bar.update(bar.total - bar.n)
            bar.close()

    return Bars()


def use_timing_cache(config: Any, path: Path) -> None:
    """Let the builder look measured times up; one of another GPU or version is left aside, and measured anew."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):  # noqa: FBT003 - positional in both versions
        config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003


def keep_timing_cache(config: Any, path: Path) -> None:
    """Write what was measured, complete or not at all."""
    with complete_or_absent(path, path.suffix) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
