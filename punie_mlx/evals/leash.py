"""Run a verb of `punie-mlx` that ends when its parent ends, however that ended.

    python -m punie_mlx.evals.leash PARENT_PID serve --model DIR --port 0
    python -m punie_mlx.evals.leash PARENT_PID -m punie_mlx.direct --model DIR

The second form runs a module of the package that is no verb.
On Linux the kernel kills the process (PR_SET_PDEATHSIG); elsewhere, and as a second line, a thread watches the parent.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 0.5


def tie_to(parent: int) -> None:
    """End this process when the process `parent`, which started it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="leash", daemon=True).start()


def _watch(parent: int) -> None:
    # Looks at once: the parent may have ended before the kernel was asked.
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    tie_to(int(sys.argv[1]))
    if sys.argv[2:3] == ["-m"]:
        module = sys.argv[3]
        sys.argv = sys.argv[3:]
        runpy.run_module(module, run_name="__main__")
    else:
        sys.argv = ["punie-mlx", *sys.argv[2:]]
        from punie_mlx.cli import main

        main()
