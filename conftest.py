"""What holds for all tests, and for the notebooks that nbval computes again.

Each pytest call writes its results into an empty folder, so that nothing is reused, and removes it at the end.
"""

import os
import sys
import tempfile

import kernels
import nbval.kernel

RESULTS = tempfile.TemporaryDirectory(prefix="plg-results-")


def pytest_configure(config):
    """Tell this process, and the kernels it starts, where results go, and to draw no progress bars."""
    os.environ["PLG_RESULTS"] = RESULTS.name
    os.environ["PLG_PROGRESS"] = "0"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else each kernel starts with a warning about debuggers
    if sys.platform == "linux":
        nbval.kernel.KernelManager = kernels.BlockingManager  # see notebooks/kernels.py; nbval has no option for it


def pytest_unconfigure(config):
    """Remove the results."""
    RESULTS.cleanup()


def pytest_collection_modifyitems(items):
    """Compare all that a printed notebook shows; stderr (progress, warnings) is stripped from the print."""
    for notebook in {item.parent for item in items if hasattr(item.parent, "skip_compare")}:
        notebook.skip_compare += ("stderr",)
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60  # seconds that nbval waits for a finished cell's last output; it says 5
