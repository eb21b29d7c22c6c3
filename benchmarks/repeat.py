"""Does a short run of the demo come out the same twice on this device? python benchmarks/repeat.py --device cuda

The stages of the demo, with few steps, are done twice, in processes and folders of their own. Compared are the files
and the pixels of all label maps: rounding that differs may tip a pixel.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import side_by_side

from plg_utils import files

SHORT = {"warm_up": "30", "steps": "20", "dataset_options": "{limit: 30}", "methods": "[supervised, paper_a]"}


def run_once(device: str, results: Path, exact: bool) -> Path:
    """Do all stages; return the run's folder."""
    command = [sys.executable, str(files.ROOT / "notebooks" / "run.py"), "demo", "--stages", "-p", "device", device]
    for name, value in SHORT.items():
        command += ["-p", name, value]
    more = {"PLG_RESULTS": str(results)} | ({"PLG_DETERMINISTIC": "2"} if exact else {})
    subprocess.run(command, check=True, env=os.environ | more)
    return results / "demo"


def compared(one: Path, two: Path) -> dict[str, dict]:
    """Of each folder of label maps: the share of equal files and of equal pixels."""
    found = {}
    for folder in sorted(path.parent for path in one.glob("*/manifest.json")):
        maps = sorted(folder.glob("*.png"))
        pairs = [(path, two / folder.name / path.name) for path in maps]
        if pairs:
            pixels = [np.mean(files.read_label(mine) == files.read_label(theirs)) for mine, theirs in pairs]
            same = np.mean([mine.read_bytes() == theirs.read_bytes() for mine, theirs in pairs])
            found[folder.name] = {"equal_files": float(same), "equal_pixels": float(np.mean(pixels))}
    return found


def main() -> None:
    """Run twice, compare, and write results/bench/repeat_DEVICE.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exact", action="store_true", help="with PLG_DETERMINISTIC=2")
    parser.add_argument("--write", type=Path, default=side_by_side.RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        one, two = (run_once(options.device, Path(temporary) / name, options.exact) for name in ("one", "two"))
        name = f"repeat{'_exact' if options.exact else ''}_{options.device.partition(':')[0]}"
        side_by_side.report(options.write, name, options.device, maps=compared(one, two), n=SHORT)


if __name__ == "__main__":
    main()
