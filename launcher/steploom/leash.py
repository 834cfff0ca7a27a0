"""Runs a Python module that the kernel ends when its parent dies: `python leash.py PARENT_PID -m MODULE ARGS…`.

A file to run, not to import: it sets the parent-death signal on itself and becomes the service. A `preexec_fn` would do
the same, but not safely in a parent that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Entry point."""
    parent, *arguments = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it died before the signal was set
        raise SystemExit(1)
    # -P: a folder of the directory that we are run from must not be taken for a package
    os.execv(sys.executable, [sys.executable, "-P", *arguments])


if __name__ == "__main__":
    main()
