"""What more processes gain when images are labelled: python benchmarks/bench_processes.py

The stages of notebook 02 on scenes of the storybook, by one, two and four processes with a core each, as the parameter
`processes` starts them. Seconds are the wall time of the stages (masks, embeddings, labels), without imports.
The label maps must be the same to the byte.
"""

import os
import statistics
import tempfile
from hashlib import sha256
from pathlib import Path

import side_by_side
import torch

from plg_utils import datasets, files, stages

STAGES = ("masks", "segments", "labels_zero_shot")


def label(processes: int, images: int, folder: Path) -> tuple[float, str]:
    """Label scenes in a folder of results; return the seconds of the stages and a hash of all label maps."""
    os.environ["PLG_RESULTS"] = str(folder)
    data = datasets.load("storybook", labelled=12, limit=images)
    run = stages.open_run("bench", data, device="cpu", processes=processes)
    clip = {"encoder": "clip", "encoder_options": {"checkpoint": "miniature_clip"}}
    stages.masks(run, mask_model="sam", mask_options={"checkpoint": "miniature_sam"})
    stages.segments(run, **clip, embedding_options={})
    stages.labels(run, **clip, rule="cosine", threshold=None, default_threshold=0.2, overlap="score")
    manifests = [files.read_json(run.folder / stage / "manifest.json") for stage in STAGES]
    maps = sorted((run.folder / "labels_zero_shot").glob("*.png"))
    digest = sha256(b"".join(path.read_bytes() for path in maps)).hexdigest()
    return sum(manifest["wall_seconds"] for manifest in manifests), digest


def main() -> None:
    """Measure and write results/bench/scaling_processes.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--images", type=int, default=100, help="unlabelled scenes; 12 labelled ones come with them")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    os.environ["PLG_PROGRESS"] = "0"
    torch.set_num_threads(1)
    counts = [count for count in options.processes if count <= (os.cpu_count() or 1)]
    taken: dict[int, list[float]] = {count: [] for count in counts}
    digests = set()
    for _ in range(options.repeats):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                seconds, digest = label(count, options.images, Path(folder))
            taken[count].append(seconds)
            digests.add(digest)
    middle = [statistics.median(taken[count]) for count in counts]
    found = {"sizes": counts, "seconds": middle, "all_seconds": [taken[count] for count in counts]}
    found |= {"speedup": [middle[0] / each for each in middle], "agreement": {"equal_label_maps": len(digests) == 1}}
    n = {"repeats": options.repeats, "images": options.images + 12}
    side_by_side.report(options.write, "scaling_processes", options.device, **found, n=n)


if __name__ == "__main__":
    main()
