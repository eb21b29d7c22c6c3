"""Try all bad inputs of tests/test_bad_inputs.py, and write how many of each kind were refused with a remedy.

python tests/torture/malformed.py --write results/reliability.json        part of `make torture`
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "tests")]

import pytest
import reliability
import test_bad_inputs


def main() -> int:
    """Run the tests; their counts are written only if all pass."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", type=Path, help="JSON file, such as results/reliability.json")
    options = parser.parse_args()
    if pytest.main(["-q", str(ROOT / "tests" / "test_bad_inputs.py")]):
        return 1
    counts = test_bad_inputs.counts()
    reliability.tell("malformed", counts, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
