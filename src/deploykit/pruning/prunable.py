"""Which layers of a network have weights that a recipe may prune one by one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from torch import nn

PRUNABLE: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)


def layers_to_prune(
    model: nn.Module, *, layers: tuple[type[nn.Module], ...], ignore: Collection[str]
) -> dict[str, nn.Module]:
    """Return the layers whose weights may be pruned, by name.

    Args:
        model: checked already.
        layers: classes of layers with a ``weight``.
        ignore: names of modules that are left alone, with all that is in them.

    Raises:
        ValueError: a name of no module; no layer is left; two layers use the same weight.
    """
    names = dict(model.named_modules())
    for name in (ignore := [ignore] if isinstance(ignore, str) else list(ignore)):
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see model.named_modules()"
            raise ValueError(f"ignore has {name!r}, and {type(model).__name__} has no such module; {hint}")
    found = {
        name: layer
        for name, layer in names.items()
        if isinstance(layer, layers) and not any(f"{name}.".startswith(f"{ignored}.") for ignored in ignore)
    }
    if not found:
        wanted = " or ".join(kind.__name__ for kind in layers)
        raise ValueError(f"{type(model).__name__} has no {wanted} whose weights could be pruned; see layers and ignore")
    _refuse_shared(model, found)
    return found


def _refuse_shared(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append(f"{name}.{own}")
    for name, layer in found.items():
        same = users.get(id(layer.weight), [])
        if len(same) > 1:
            raise ValueError(
                f"{' and '.join(same)} are one tensor; a mask on {name!r} would leave the other as it is: "
                "put both layers into ignore"
            )
