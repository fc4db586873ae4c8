"""FILE AT EXAMPLE OPTION...: the example, but after iteration AT it waits until FILE is there.

A test that needs time while a job trains gets it so, not by many iterations: those take processors.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

import castor

WAITED_FOR, AT = Path(sys.argv[1]), int(sys.argv[2])


class Waits(castor.Checkpointer):
    def resume(self) -> int:
        self.trained = super().resume()
        return self.trained

    def step(self, loss: float | None = None) -> None:
        super().step(loss=loss)
        self.trained += 1
        while self.trained == AT and not WAITED_FOR.exists():
            time.sleep(0.02)


castor.Checkpointer = Waits
sys.argv = sys.argv[3:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
