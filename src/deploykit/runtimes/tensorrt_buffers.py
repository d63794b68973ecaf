"""Memory for one tensor, twice: page-locked on the host, and on the GPU; kept from call to call."""

from __future__ import annotations

from typing import Any

import numpy as np


class Buffer:
    """Room for a float32 tensor. It grows when a larger one comes, and never shrinks.

    Only page-locked memory can be copied while the processor does something else.

    Attributes:
        device: the GPU's side; None until the first tensor comes.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._host: Any = None
        self.device: Any = None

    def of_shape(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return the host's side as an array, float32, of a shape; its content is that of the call before.

        Raises:
            MemoryError: the GPU has no room for it.
        """
        count = int(np.prod(shape))
        if self.device is None or count > self._host.size:
            self._allocate(count)
        return self._host[:count].reshape(shape)

    def free(self) -> None:
        """Give both sides back."""
        if self.device is not None:
            self.device.free()
        if self._host is not None:
            self._host.base.free()
        self.device = self._host = None

    def _allocate(self, count: int) -> None:
        self.free()
        try:
            self._host = self._driver.pagelocked_empty(count, np.float32)
            self.device = self._driver.mem_alloc(self._host.nbytes)
        except self._driver.MemoryError as error:
            self.free()
            raise MemoryError(f"no room on the GPU for {4 * count:,} bytes; give smaller batches") from error
