"""Lists that say which images are labelled: UniMatch's, known by name and SHA-256, or those of a folder of one's own.

UniMatch's are looked up below `splits` in the data folder, laid out as in its repository, and fetched from there if
they are missing. The list of VOC's unlabelled images is train_aug.txt without the labelled ones, and that of COCO's is
train2017 without them. PASCAL VOC has three families: 92 to 1464 are parts of VOC's own 1,464 training images; 1_16,
1_8 and 1_4 are drawn from the 10,582 that SBD adds up to; the u2pl lists take them from the 1,464 first.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

from plg_utils import checkpoints, choices, datasets, files

COMMIT = "0324f3d"  # of github.com/LiheYoung/UniMatch, MIT licence
ADDRESS = f"https://raw.githubusercontent.com/LiheYoung/UniMatch/{COMMIT}/splits"
LARGEST = 2 << 20  # bytes of a download; the largest list has 0.65 million
SHA256 = {
    "coco/1_128/labeled.txt": "06067c0fb879b8e6ab8f4bdab3dfa641e8e4da2990200fa156daa33670329d79",
    "coco/1_256/labeled.txt": "4cdf41b9d3b3afc3734057a605015860501199ed3680370ccb2c677fc159b127",
    "coco/1_32/labeled.txt": "781b5990914f7422ee9e1f6325a914f289e077621b77b9cd066c2d01d33a939e",
    "coco/1_512/labeled.txt": "bd0ff85bf2d35b4641d08c2201257ad5b5f02f85ea0da457f44f0b97c4caeb37",
    "coco/1_64/labeled.txt": "622b84ccbb5dcba32f4f5bb4ffaf1a9cf3e3f1f460b55dc02605fd099ebf1337",
    "coco/val.txt": "5a296a8b638114611e81c3b2257ec1720c8c16300f29ac24fcd8ddf08c9eb6d8",
    "pascal/1464/labeled.txt": "b20486876df309c57c8230e957b2957fff5392ff5cb11f225e8453ed6c50ba3e",
    "pascal/183/labeled.txt": "de3f4680391cb15324402dae17ac0919933d0d9004c11a641c924f3f67147f9f",
    "pascal/1_16/labeled.txt": "0f5e114e6504c8afec6523db91f05503f120d1365cf505e6f4ef99f316d5873b",
    "pascal/1_4/labeled.txt": "a4573ca0fa8f97c4013dba5f8b233e77a1a8dc7877539b1eb18c8206d37227d0",
    "pascal/1_8/labeled.txt": "c5ea9bb095158a137e4c1db739b07d54a89af697de24ffd9e576493a4189653f",
    "pascal/366/labeled.txt": "74f6bd1e459a8b46fc204529d70b603769f8a45aef4553df8a5c04b5698e77b7",
    "pascal/732/labeled.txt": "02c8ec5b62e27364f5bc91eb95bccf54debaa721e9d31c50c07507aea258fd0f",
    "pascal/92/labeled.txt": "8a02aa6a1253178b105bd25b36f0a27daeedf6b3959f399aa47d24783f3a8306",
    "pascal/train_aug.txt": "f04ab664c71f84950a3a1fd28544b6851500c81a9aff890c4b9279639a32152c",
    "pascal/u2pl_1_16/labeled.txt": "a58cf5eda18c8e060c8fef0233b388b488e62e5903076fed90b5bd34cf6735d3",
    "pascal/u2pl_1_4/labeled.txt": "b740bcf1ac91477ff0df913594ea70a00ced359a007a4050cac487f136470fa4",
    "pascal/u2pl_1_8/labeled.txt": "cebe5f2fda695dd72ff3336d6bfef95967c903fe4d404d9827a42c5fbc1dfd8a",
    "pascal/val.txt": "df002e3a730c57678f63aa3e46a4c827a4066f1dc1814e24d0e8b215075e0c6c",
}


@dataclass(frozen=True)
class Lists:
    """Files that divide a data set."""

    labelled: Path
    val: Path
    train: Path | None  # of which the labelled ones are left out; None: there is no such list
    name: str = ""  # UniMatch's, as "pascal/92"; empty: a folder of the user's

    def choose(self, pool: list, labelled: int | str | None, seed: int, training: int) -> tuple[list, list, str]:
        """Choose the labelled ones of the listed images: (labelled, rest, a sentence on how they were chosen).

        pool: what is listed; labelled: None for all of it, a number, or a part of all training images such as "1/8":
            UniMatch's 1_8 are 1/8 of 10,582. If it is not all, they are drawn by the seed, with a warning
        training: how many training images there are, the listed ones among them
        """
        wanted = datasets.count(labelled, training) if isinstance(labelled, str) else labelled
        if isinstance(wanted, int) and wanted > len(pool):
            part = f", {wanted} images," if isinstance(labelled, str) else ""
            problem = f"labelled={labelled!r}{part} is more than the {len(pool)} that {self.labelled} lists"
            raise ValueError(f"{problem}; with a split leave `labelled` out (None) to label all that are listed")
        count = len(pool) if wanted is None else datasets.count(wanted, len(pool))
        source = f"UniMatch's list {self.name} (commit {COMMIT})" if self.name else str(self.labelled)
        provenance = f"the {count} labelled images are {source}"
        if count < len(pool):
            provenance = datasets.drawn(count, seed, f" from the {len(pool)} of {source}")
            if count:
                warnings.warn(provenance, stacklevel=1)
        return *datasets.draw(pool, count, seed), provenance


def names(family: str) -> list[str]:
    """UniMatch's names for its lists of a family, "pascal" or "coco", the smallest number first."""
    found = (path.split("/") for path in SHA256 if path.startswith(f"{family}/") and path.count("/") == 2)
    return sorted((name for _, name, _ in found), key=lambda name: (name.count("_"), len(name), name))


def find(split: str | int | Path, family: str) -> Lists:
    """Find the lists that `split` stands for: a name of UniMatch's, or a folder of lists in its format."""
    name, known = str(split), names(family)
    if isinstance(split, int):  # in YAML 92 is a number, and so is 1_16: 116
        name = next((name for name in known if name.replace("_", "") == str(split)), name)
    if name in known:
        return _published(family, name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        choices.one_of(name, known, "folder or list of UniMatch's called")
    val = next((path for path in (folder / "val.txt", folder.parent / "val.txt") if path.is_file()), None)
    if val is None or not (folder / "labeled.txt").is_file():
        raise FileNotFoundError(f"{folder} has no labeled.txt, or neither it nor {folder.parent} has val.txt")
    train = (folder / "unlabeled.txt", folder / "train_aug.txt", folder.parent / "train_aug.txt")
    return Lists(folder / "labeled.txt", val, next((path for path in train if path.is_file()), None))


def _published(family: str, name: str) -> Lists:
    """Files of a list of UniMatch's: fetched if missing, and in any case those that were published."""
    root = files.data_root() / "splits"
    wanted = [f"{family}/{file}" for file in (f"{name}/labeled.txt", "val.txt", "train_aug.txt")]
    wanted = [path for path in wanted if path in SHA256]  # COCO has no train_aug.txt
    missing = [path for path in wanted if not (root / path).exists()]
    try:
        for path in missing:
            checkpoints.fetch(f"{ADDRESS}/{path}", root / path, SHA256[path], LARGEST)
    except (OSError, ValueError) as error:
        left = [path for path in missing if not (root / path).exists()]
        listed = "".join(f"\n  {ADDRESS}/{path}\n    to {root / path}\n    SHA-256 {SHA256[path]}" for path in left)
        raise FileNotFoundError(
            f"UniMatch's lists are not here and could not be downloaded ({error}). Run again, or fetch on a machine "
            f"with access:{listed}"
        ) from error
    for path in wanted:
        found = files.sha256(root / path)
        if found != SHA256[path]:
            raise ValueError(
                f"{root / path} is not UniMatch's list: its SHA-256 is {found}, that of {path} is {SHA256[path]}; "
                f"delete it and run again, or, if it is a list of your own, give its folder as `split`"
            )
    labelled, val, *train = (root / path for path in wanted)
    return Lists(labelled, val, train[0] if train else None, f"{family}/{name}")
