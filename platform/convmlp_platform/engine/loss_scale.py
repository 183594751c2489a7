"""Loss scaling of fp16: small gradients must not vanish, and no large one overflow (arXiv:1710.03740).

torch's GradScaler learns of an overflow on each rank for itself, and DeepSpeed's use of it never lowers the scale.
Here the one global gradient norm that all ranks know before the update decides, the same under every strategy.
"""

from __future__ import annotations

from typing import Any

# As torch.amp.GradScaler has them.
FIRST_SCALE, GROWTH_INTERVAL = 65536.0, 2000


class LossScale:
    """The factor on the loss: halved after an overflow, doubled after 2,000 updates in a row; 1 unless `enabled`."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = FIRST_SCALE if enabled else 1.0
        self._updates = 0

    def updated(self) -> None:
        """The gradients were finite."""
        if not self.enabled:
            return
        self._updates += 1
        if self._updates == GROWTH_INTERVAL:
            self.scale, self._updates = 2 * self.scale, 0

    def overflowed(self) -> bool:
        """The gradients weren't; halves the scale. False where it can't be the scale's fault."""
        if self.scale <= 1.0:
            return False
        self.scale, self._updates = self.scale / 2, 0
        return True

    def state(self) -> dict[str, Any]:
        """As torch's GradScaler names it."""
        return {"scale": self.scale, "_growth_tracker": self._updates}

    def load(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        if self.enabled:
            self.scale, self._updates = float(state["scale"]), int(state["_growth_tracker"])
