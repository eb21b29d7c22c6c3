"""Try all bad inputs of tests/test_bad_inputs.py, and write how many of each kind were refused with a remedy.

python tests/torture/malformed.py --write results/reliability.json        part of `make torture`
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "tests")]

import pytest
import test_bad_inputs

from plg_utils import files


def main() -> int:
    """Run the tests; their counts are written only if all pass."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", type=Path, help="JSON file, such as results/reliability.json")
    options = parser.parse_args()
    if pytest.main(["-q", str(ROOT / "tests" / "test_bad_inputs.py")]):
        return 1
    counts = test_bad_inputs.counts()
    print(json.dumps(counts, indent=2))
    if options.write:
        known = files.read_json(options.write) if options.write.exists() else {}
        files.write_json(options.write, known | {"malformed": counts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
