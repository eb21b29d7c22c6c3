"""From the name of a network's weights to a verified file.

A checkpoint is asked for by name (`names()`) or by the path of a file of your own. The miniatures of the embedded
world are committed beside their code. The real ones lie in one folder, PLG_CHECKPOINTS in the environment or
`checkpoints` in the data folder; what is missing there is downloaded once, and where that is not possible the error
says which file to put where. No file is opened before its SHA-256 was compared.
"""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from plg_utils import files

if TYPE_CHECKING:
    import torch

SAM = "https://dl.fbaipublicfiles.com/segment_anything"
MINIATURE = Path(__file__).parent / "miniature"
CHUNK = 1 << 20  # bytes
CLIP_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives hold them beside the weights


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a network come from, and how to know them."""

    name: str
    licence: str
    sha256: str | None = None  # None: listed in miniature/SHA256SUMS, or kept by the hub
    address: str | None = None  # https; None: committed, or on the hub
    size: int | None = None  # bytes, where known
    hub: str | None = None  # name on the Hugging Face hub, from where transformers loads it

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.address.rsplit("/", 1)[1] if self.address else f"{self.name.removeprefix('miniature_')}.safetensors"


# Addresses: README of facebookresearch/segment-anything.
_LISTED = (
    Checkpoint("miniature_sam", "MIT"),
    Checkpoint("miniature_clip", "MIT"),
    Checkpoint("miniature_encoder", "MIT"),
    Checkpoint(
        "sam_vit_b",
        "Apache-2.0",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        address=f"{SAM}/sam_vit_b_01ec64.pth",
    ),
    Checkpoint(
        "sam_vit_l",
        "Apache-2.0",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        address=f"{SAM}/sam_vit_l_0b3195.pth",
    ),
    Checkpoint(
        "sam_vit_h",
        "Apache-2.0",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        address=f"{SAM}/sam_vit_h_4b8939.pth",
        size=2_564_550_879,
    ),
    Checkpoint("grounding_dino_tiny", "Apache-2.0", hub="IDEA-Research/grounding-dino-tiny"),
    Checkpoint("grounding_dino_base", "Apache-2.0", hub="IDEA-Research/grounding-dino-base"),
)
LISTED = {checkpoint.name: checkpoint for checkpoint in _LISTED}


@cache
def clip_checkpoints() -> dict[str, Checkpoint]:
    """OpenAI's CLIP models by their official names ("ViT-B/16"), as the installed package lists them."""
    from clip.clip import _MODELS  # it imports torch, which takes seconds, and most names need neither

    # CLIP's own download compares the file with the last but one part of its address, which is the SHA-256.
    return {name: Checkpoint(name, "MIT", url.split("/")[-2], url) for name, url in _MODELS.items()}


def names() -> list[str]:
    """All names that `locate` knows."""
    return [*LISTED, *clip_checkpoints()]


def folder() -> Path:
    """Folder of the downloaded checkpoints."""
    chosen = os.environ.get("PLG_CHECKPOINTS")
    return Path(chosen).expanduser().absolute() if chosen else files.data_root() / "checkpoints"


def locate(name: str | Path) -> Path:
    """Return the verified file of a checkpoint, downloading it if need be; a path of your own is taken as it is."""
    checkpoint = _known(name)
    if checkpoint is None:
        return Path(name).expanduser().absolute()
    if checkpoint.hub:
        raise ValueError(f"{name} is no single file: transformers loads it from the hub as {checkpoint.hub}")
    if checkpoint.address is None:
        return _committed(checkpoint)
    path = folder() / checkpoint.file
    if not path.exists():
        _download(checkpoint, path)
    found = _remembered_sha256(path)
    if found != checkpoint.sha256:
        raise ValueError(
            f"{path} is damaged or another file: its SHA-256 is {found}, that of {name} is {checkpoint.sha256}; "
            f"delete it and run again, or fetch it anew from {checkpoint.address}"
        )
    return path


def sha256_of(name: str | Path) -> str:
    """SHA-256 of a checkpoint, by name or path: what a manifest records."""
    checkpoint = _known(name)
    if checkpoint is not None and checkpoint.sha256:
        return checkpoint.sha256  # locate() compares the file with it
    return files.sha256(locate(name))


def freeze() -> None:
    """Record the SHA-256 of the miniatures as they are now, in miniature/SHA256SUMS.

    Only after they were trained anew: every number that was published with the earlier ones must then be made again.
    """
    weights = sorted(MINIATURE.glob("*.safetensors"))
    with files.atomic(MINIATURE / "SHA256SUMS") as partial:
        partial.write_text("".join(f"{files.sha256(path)}  {path.name}\n" for path in weights), encoding="utf-8")


def _known(name: str | Path) -> Checkpoint | None:
    """Look a name up; None for the path of an existing file."""
    if name in LISTED:
        return LISTED[str(name)]
    if Path(name).expanduser().is_file():
        return None
    if name in clip_checkpoints():
        return clip_checkpoints()[str(name)]
    raise FileNotFoundError(f"{str(name)!r} is neither a file nor a checkpoint; known are {', '.join(names())}")


def _committed(checkpoint: Checkpoint) -> Path:
    """Find a miniature beside its code and compare it with SHA256SUMS."""
    path, sums = MINIATURE / checkpoint.file, MINIATURE / "SHA256SUMS"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it from git, or train it with notebooks/extra/miniatures")
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    recorded = {line.split()[1]: line.split()[0] for line in lines if line.strip()}
    found, wanted = files.sha256(path), recorded.get(path.name)
    if found != wanted:
        raise ValueError(
            f"{path} is not the miniature that was published: its SHA-256 is {found}, {sums.name} says {wanted}; "
            "restore it from git, or, if you trained it anew, record it with plg_utils.checkpoints.freeze()"
        )
    return path


def _remembered_sha256(path: Path) -> str:
    """SHA-256 of a large file, counted once: a note beside it says for which size and time it holds."""
    state = path.stat()
    note = path.with_name(f"{path.name}.verified")
    seen = {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
    with suppress(OSError, ValueError, KeyError, TypeError):
        written = files.read_json(note)
        if {key: written[key] for key in seen} == seen:
            return written["sha256"]
    found = files.sha256(path)
    with suppress(OSError):  # the folder may be read-only
        files.write_json(note, seen | {"sha256": found})
    return found


def _download(checkpoint: Checkpoint, path: Path) -> None:
    """Fetch a checkpoint to `path`, going on where an earlier attempt stopped."""
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if path.exists():  # another process fetched it meanwhile
            return
        try:
            with open(part, "ab") as file:
                _fetch(checkpoint.address, file, what=path.name)
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and a full disk are OSErrors
            if not part.stat().st_size:
                part.unlink()
            size = f" ({checkpoint.size:,} bytes)" if checkpoint.size else ""
            raise FileNotFoundError(
                f"{checkpoint.name} is not here and could not be downloaded ({error}). Fetch {checkpoint.address}"
                f"{size} on a machine with access and put it at {path}; its SHA-256 is {checkpoint.sha256}"
            ) from error
        found = files.sha256(part)
        if found != checkpoint.sha256:
            part.unlink()
            raise ValueError(
                f"{checkpoint.address} gave a file with SHA-256 {found}, not {checkpoint.sha256}: it was thrown away; "
                "run again, and if this repeats, something between here and there changes the file"
            )
        os.replace(part, path)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one process of this machine at a time download to a folder."""
    try:
        import fcntl
    except ImportError:  # Windows: two downloads may meet, but the SHA-256 still protects
        yield
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fetch(address: str, file: BinaryIO, *, what: str) -> None:
    """Append to an open file what it does not have yet of what lies at the address."""
    start = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(_https(address), headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=30)  # noqa: S310  _https() looked at it
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies behind what is here already
            return
        raise
    with response:
        _https(response.url)  # where it was redirected to
        if start and response.status != 206:  # the server sends all of it
            file.truncate(start := 0)
        length = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=start + length or None, initial=start, desc=what, unit="B", unit_scale=True, ascii=True) as bar:
            while piece := response.read(CHUNK):
                file.write(piece)
                bar.update(len(piece))
    if length and file.seek(0, os.SEEK_END) != start + length:
        raise OSError(f"the connection ended early, after {file.tell():,} of {start + length:,} bytes")


def _https(address: str) -> str:
    if not address.startswith("https://"):
        raise ValueError(f"{address} is not an https address")
    return address


def load_sam_state(path: str | Path) -> dict[str, "torch.Tensor"]:
    """Read the weights of a SAM: Meta's .pth, opened for plain tensors only, or safetensors."""
    import torch
    from safetensors.torch import load_file

    if Path(path).suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_clip_state(path: str | Path) -> dict[str, "torch.Tensor"]:
    """Read the weights of a CLIP: OpenAI's TorchScript archive, a state dict, or safetensors.

    An archive is read once; a copy as safetensors beside it, which knows its origin's SHA-256, is read from then on.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    copy, origin = path.with_name(f"{path.name}.safetensors"), _remembered_sha256(path)
    if copy.exists():
        with safe_open(copy, framework="pt") as file:
            if (file.metadata() or {}).get("origin") == origin:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    try:
        state = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:  # not an archive
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = {key: value.detach().clone().contiguous() for key, value in state.items() if key not in CLIP_SETTINGS}
    with suppress(OSError), files.atomic(copy) as partial:  # the folder may be read-only
        save_file(state, partial, metadata={"origin": origin})
    return state
