"""From the name of a network's weights to a verified file.

A checkpoint is asked for by name (`names()`) or by the path of a file of your own. The miniatures of the embedded
world are committed beside their code. The real ones lie in one folder, PLG_CHECKPOINTS in the environment or
`checkpoints` in the data folder; what is missing there is downloaded once, and where that is not possible the error
says which file to put where. No file is opened before its SHA-256 was compared.

A repository of the Hugging Face hub is a folder of files, asked for by a name of `names()`, by "hub:owner/name", or by
"hub:owner/name@commit". Without a commit it is the newest one when the first file comes, and that one from then on. A
json beside the folder (`<folder>.hub.json`) records the commit and the SHA-256 of each file that is read from it; both
are enforced ever after. Weights come as safetensors only, because opening a pickle runs what is in it. Files that
were put into the folder by hand are taken as they are when first used, and from then on must stay so.
"""

import http.client
import os
import pickletools
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from plg_utils import files

if TYPE_CHECKING:
    import torch

SAM = "https://dl.fbaipublicfiles.com/segment_anything"
MINIATURE = Path(__file__).parent / "miniature"
CHUNK = 1 << 20  # bytes
LOOPBACK = ("127.0.0.1", "::1", "localhost")
WEIGHTS = "model.safetensors"  # as repositories of the hub call their weights
HARMLESS = (".safetensors", ".json", ".txt")  # nothing in files of these kinds is ever run
LARGEST = 1 << 33  # bytes of a download whose size is not listed; SAM ViT-H has 2.6 billion
LARGEST_CODE = 1 << 24  # bytes of a file of code in an archive
MOST_MODULES = 10_000  # of an archive; CLIP ViT-L/14 has some hundred
DECLARATION = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = (\[.*\])\n  __buffers__ = (\[.*\])", re.M)
CLIP_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives hold them beside the weights


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a network come from, and how to know them."""

    name: str
    licence: str
    sha256: str | None = None  # None: listed in miniature/SHA256SUMS, or recorded when it came from the hub
    address: str | None = None  # https; None: committed, or on the hub
    size: int | None = None  # bytes, where known
    hub: str | None = None  # name on the Hugging Face hub, as owner/name
    revision: str | None = None  # commit there; None: the newest when the first file comes
    files: tuple[str, ...] = (WEIGHTS,)  # which are needed of the repository

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.address.rsplit("/", 1)[1] if self.address else f"{self.name.removeprefix('miniature_')}.safetensors"


# What transformers reads of a detector.
_DETECTOR = ("config.json", WEIGHTS, "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")

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
    Checkpoint("grounding_dino_tiny", "Apache-2.0", hub="IDEA-Research/grounding-dino-tiny", files=_DETECTOR),
    Checkpoint("grounding_dino_base", "Apache-2.0", hub="IDEA-Research/grounding-dino-base", files=_DETECTOR),
)
LISTED = {checkpoint.name: checkpoint for checkpoint in _LISTED}


@cache
def clip_checkpoints() -> dict[str, Checkpoint]:
    """OpenAI's CLIP models by their official names ("ViT-B/16"), as the installed package lists them."""
    from clip.clip import _MODELS  # it imports torch, which takes seconds, and most names need neither

    # CLIP's own download compares the file with the last but one part of its address, which is the SHA-256.
    return {name: Checkpoint(name, "MIT", url.split("/")[-2], url) for name, url in _MODELS.items()}


def names() -> list[str]:
    """All names that `locate` knows, besides the repositories "hub:owner/name"."""
    return [*LISTED, *clip_checkpoints()]


def folder() -> Path:
    """Folder of the downloaded checkpoints."""
    chosen = os.environ.get("PLG_CHECKPOINTS")
    return Path(chosen).expanduser().absolute() if chosen else files.data_root() / "checkpoints"


def place_of(checkpoint: Checkpoint) -> Path:
    """Where the file of a checkpoint, or the folder of its files, belongs; it need not be there."""
    if checkpoint.hub:
        inside = checkpoint.name if checkpoint.name in LISTED else checkpoint.name.replace("hub:", "hub/", 1)
        return folder() / inside
    return (folder() if checkpoint.address else MINIATURE) / checkpoint.file


def locate(name: str | Path, *, endpoint: str | None = None, http_on_loopback: bool = False) -> Path:
    """Return the verified file of a checkpoint, downloading it if need be; a path of your own is taken as it is.

    endpoint: https address of a hub other than the one that huggingface_hub asks
    http_on_loopback: plain http is allowed from this machine to itself, for tests; else every address must be https
    returns: a file; of the hub, the folder with the files
    """
    checkpoint = known(name)
    if checkpoint is None:
        return Path(name).expanduser().absolute()
    if checkpoint.hub:
        return _repository(checkpoint, endpoint, http_on_loopback)
    if checkpoint.address is None:
        return _committed(checkpoint)
    path = place_of(checkpoint)
    if not path.exists():
        _download(checkpoint, path, http_on_loopback)
    found = _remembered_sha256(path)
    if found != checkpoint.sha256:
        raise ValueError(
            f"{path} is damaged or another file: its SHA-256 is {found}, that of {name} is {checkpoint.sha256}; "
            f"delete it and run again, or fetch it anew from {checkpoint.address}"
        )
    return path


def locate_weights(name: str | Path) -> Path:
    """Return the verified file of a checkpoint's weights, also where `locate` returns a folder."""
    path = locate(name)
    return path / WEIGHTS if path.is_dir() else path


def sha256_of(name: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, by name or path: what a manifest records."""
    checkpoint = known(name)
    if checkpoint is not None and checkpoint.sha256:
        return checkpoint.sha256  # locate() compares the file with it
    path = locate_weights(name)
    return _remembered_sha256(path) if checkpoint is not None and checkpoint.hub else files.sha256(path)


def freeze() -> None:
    """Record the SHA-256 of the miniatures as they are now, in miniature/SHA256SUMS.

    Only after they were trained anew: every number that was published with the earlier ones must then be made again.
    """
    weights = sorted(MINIATURE.glob("*.safetensors"))
    with files.atomic(MINIATURE / "SHA256SUMS") as partial:
        partial.write_text("".join(f"{files.sha256(path)}  {path.name}\n" for path in weights), encoding="utf-8")


def known(name: str | Path) -> Checkpoint | None:
    """Look a name up, whether or not its files are here.

    returns: None for the path of an existing file, or of a folder with weights as the hub lays them out
    """
    if name in LISTED:
        return LISTED[str(name)]
    if str(name).startswith("hub:"):
        return _of_hub(str(name))
    path = Path(name).expanduser()
    if path.is_file() or (path / WEIGHTS).is_file():
        return None
    if name in clip_checkpoints():
        return clip_checkpoints()[str(name)]
    raise FileNotFoundError(
        f"{str(name)!r} is neither a file nor a checkpoint; known are {', '.join(names())}, and hub:owner/name"
    )


def _of_hub(name: str) -> Checkpoint:
    """Read the name of a repository of the hub."""
    parts = re.fullmatch(r"hub:(\w[\w.-]*/\w[\w.-]*)(?:@([0-9a-f]{40}))?", name, re.ASCII)
    if parts is None:
        raise ValueError(
            f"{name!r} is not hub:owner/name or hub:owner/name@commit, the commit with all its 40 digits: "
            "branches and tags may move"
        )
    return Checkpoint(name, f"that of {parts[1]}", hub=parts[1], revision=parts[2])


def _committed(checkpoint: Checkpoint) -> Path:
    """Find a miniature beside its code and compare it with SHA256SUMS."""
    path, sums = place_of(checkpoint), MINIATURE / "SHA256SUMS"
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


def _download(checkpoint: Checkpoint, path: Path, http_on_loopback: bool) -> None:
    """Fetch a checkpoint to `path`, going on where an earlier attempt stopped."""
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if path.exists():  # another process fetched it meanwhile
            return
        try:
            with open(part, "ab") as file:
                _fetch(checkpoint.address, file, checkpoint.size, what=path.name, http_on_loopback=http_on_loopback)
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


def _fetch(address: str, file: BinaryIO, size: int | None, *, what: str, http_on_loopback: bool) -> None:
    """Append to an open file what it does not have yet of what lies at the address.

    size: bytes of the whole, where known; more than these, or than LARGEST, are not written
    """
    start = file.seek(0, os.SEEK_END)
    try:
        response = open_address(
            address, {"Range": f"bytes={start}-"} if start else {}, http_on_loopback=http_on_loopback
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies behind what is here already
            return
        raise
    with response:
        if start and response.status != 206:  # the server sends all of it
            file.truncate(start := 0)
        length = int(response.headers.get("Content-Length") or 0)
        _check_size(address, start + length, size)
        with tqdm(total=start + length or None, initial=start, desc=what, unit="B", unit_scale=True, ascii=True) as bar:
            have = start
            while piece := response.read(CHUNK):
                _check_size(address, have := have + len(piece), size)
                file.write(piece)
                bar.update(len(piece))
    if length and file.seek(0, os.SEEK_END) != start + length:
        raise OSError(f"the connection ended early, after {file.tell():,} of {start + length:,} bytes")


def _check_size(address: str, found: int, size: int | None) -> None:
    """Refuse more bytes than a file has, or than any has whose size is not known."""
    if found > (size or LARGEST):
        raise OSError(f"{address} gives {found:,} bytes or more, and should give {size or LARGEST:,} at most")


def open_address(
    address: str, headers: dict[str, str] | None = None, *, method: str = "GET", http_on_loopback: bool = False
) -> http.client.HTTPResponse:
    """Ask a server, if its address is https, and so is every one that it is redirected to.

    http_on_loopback: see `locate`
    raises: ValueError for another address; OSError and HTTPException if there is no answer within 30 seconds
    """
    checked = _checked(address, http_on_loopback)
    request = urllib.request.Request(checked, headers=headers or {}, method=method)  # noqa: S310  it is https
    return urllib.request.build_opener(_CheckedRedirects(http_on_loopback)).open(request, timeout=30)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Looks at each address before it is asked."""

    def __init__(self, http_on_loopback: bool):
        self.http_on_loopback = http_on_loopback

    def redirect_request(self, request, file, code, message, headers, address):
        """Follow a redirect if its address is allowed."""
        _checked(address, self.http_on_loopback)
        return super().redirect_request(request, file, code, message, headers, address)


def _checked(address: str, http_on_loopback: bool) -> str:
    """Return an address if it is https, or, where that is allowed, http on this machine."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and http_on_loopback and parts.hostname in LOOPBACK):
        return address
    raise ValueError(f"{address} is not an https address")


# The hub


def _repository(checkpoint: Checkpoint, endpoint: str | None, http_on_loopback: bool) -> Path:
    """Return the folder of a repository's files, fetched if need be, each compared with its recorded SHA-256."""
    place = place_of(checkpoint)
    record = _record(place)
    if any(name not in record["sha256"] or not (place / name).is_file() for name in checkpoint.files):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent):
            record = _complete(checkpoint, place, endpoint, http_on_loopback)
    for name in checkpoint.files:
        path, wanted = place / name, record["sha256"][name]
        found = _remembered_sha256(path) if path.suffix == ".safetensors" else files.sha256(path)
        if found != wanted:
            raise ValueError(
                f"{path} is not the file that was first used: its SHA-256 is {found}, {_note(place).name} says "
                f"{wanted}. Put that one back, or delete this one, and it is fetched again; if you want another "
                f"revision of {checkpoint.hub}, delete {place} and {_note(place)}"
            )
    return place


def _note(place: Path) -> Path:
    """Where the commit and the SHA-256 of a repository's files are recorded."""
    return place.with_name(f"{place.name}.hub.json")


def _record(place: Path) -> dict[str, Any]:
    """Read what was recorded of a repository's files; commit None: put there by hand, or not there yet."""
    return files.read_json(_note(place)) if _note(place).exists() else {"commit": None, "sha256": {}}


def _complete(checkpoint: Checkpoint, place: Path, endpoint: str | None, http_on_loopback: bool) -> dict[str, Any]:
    """Fetch the files of a repository that are missing, record the SHA-256 of all, and return the record."""
    record = _record(place)  # again: another process may have been at it meanwhile
    missing = [name for name in checkpoint.files if not (place / name).is_file()]
    if missing and len(missing) < len(checkpoint.files) and record["commit"] is None:
        raise FileNotFoundError(
            f"{place} was put there by hand and lacks {', '.join(missing)} of {checkpoint.hub}: fetch what lacks from "
            f"the same commit on the Hugging Face hub, or delete {place} and {_note(place)}, and all is fetched anew"
        )
    for name in checkpoint.files:
        if name in missing:
            _fetch_from_hub(checkpoint, name, place, record, endpoint, http_on_loopback)
        elif name not in record["sha256"]:
            record["sha256"][name] = files.sha256(place / name)
            files.write_json(_note(place), record)
    return record


def _fetch_from_hub(
    checkpoint: Checkpoint, name: str, place: Path, record: dict, endpoint: str | None, http_on_loopback: bool
) -> None:
    """Fetch one file of a repository, compare it with what is known of it, record it, and put it into its place."""
    if not name.endswith(HARMLESS):
        raise ValueError(f"{name} of {checkpoint.hub} is not fetched: only files that end in {', '.join(HARMLESS)} are")
    revision = record["commit"] or checkpoint.revision
    new = place.with_name(f".{place.name}.new")  # what stands in its place was compared before
    try:
        try:
            path, commit, told = _ask_hub(checkpoint.hub, name, revision, new, endpoint, http_on_loopback)
        except Exception as error:  # the library's are not all OSErrors: some are those of its HTTP client
            raise FileNotFoundError(
                f"{name} of {checkpoint.hub} is not here and could not be fetched ({error}). Fetch "
                f"{', '.join(checkpoint.files)} of {checkpoint.hub}{f' at commit {revision}' if revision else ''} from "
                f"the Hugging Face hub on a machine with access and put them into {place}"
            ) from error
        found, wanted = files.sha256(path), record["sha256"].get(name, told)
        if wanted not in (None, found):
            raise ValueError(
                f"{checkpoint.hub} gave {name} at commit {commit} with SHA-256 {found}, not {wanted}: it was thrown "
                "away; run again, and if this repeats, something between here and there changes the file"
            )
        record["commit"], record["sha256"][name] = commit, found
        files.write_json(_note(place), record)
        place.mkdir(exist_ok=True)
        os.replace(path, place / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _ask_hub(
    repository: str, name: str, revision: str | None, new: Path, endpoint: str | None, http_on_loopback: bool
) -> tuple[str, str, str | None]:
    """Have huggingface_hub fetch a file into the folder `new`.

    returns: path of the file, its commit, and its SHA-256 if the hub tells one, as it does of large files
    """
    import huggingface_hub  # it takes a second

    address = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=endpoint)
    told = huggingface_hub.get_hf_file_metadata(_checked(address, http_on_loopback), endpoint=endpoint)
    commit = str(told.commit_hash)
    if not re.fullmatch("[0-9a-f]{40}", commit) or revision not in (None, commit):
        raise ValueError(f"the server has commit {commit}, not {revision or 'one of 40 digits'}")
    _checked(told.location, http_on_loopback)  # from where the library fetches it
    _check_size(told.location, told.size or 0, None)
    path = huggingface_hub.hf_hub_download(repository, name, revision=commit, local_dir=new, endpoint=endpoint)
    return path, commit, told.etag if re.fullmatch("[0-9a-f]{64}", told.etag or "") else None


# Reading


def load_sam_state(path: str | Path) -> dict[str, "torch.Tensor"]:
    """Read the weights of a SAM: Meta's .pth, opened for plain tensors only, or safetensors."""
    import torch
    from safetensors.torch import load_file

    with _naming_what_is_broken(path):
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _naming_what_is_broken(path: str | Path) -> Iterator[None]:
    """Name the checkpoint that cannot be read: torch, its unpickler and zip reader raise whatever they like."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        told = str(error).strip().partition("\n")[0][:160] or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint ({told}): fetch it again") from error


def load_clip_state(path: str | Path) -> dict[str, "torch.Tensor"]:
    """Read the weights of a CLIP: OpenAI's TorchScript archive, a state dict, or safetensors.

    No code is run that an archive holds. Should `read_archive` not understand one of OpenAI's own, whose SHA-256 is
    listed, torch.jit.load opens it, as their package does; it opens no other.
    """
    import torch
    from safetensors.torch import load_file

    with _naming_what_is_broken(path):
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        elif not _is_archive(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            try:
                state = read_archive(path)
            except Exception:
                if files.sha256(path) not in {checkpoint.sha256 for checkpoint in clip_checkpoints().values()}:
                    raise
                state = torch.jit.load(path, map_location="cpu").state_dict()
    return {key: value.detach() for key, value in state.items() if key not in CLIP_SETTINGS}


# TorchScript archives


class _Module(dict):
    """A module of an archive: the attributes that it was saved with, and the name of its class."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind


def _is_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive; what torch.save writes is a zip, too, but has no constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def read_archive(path: str | Path) -> dict[str, "torch.Tensor"]:
    """Read the state dict of a TorchScript archive as plain data: nothing that it holds is executed or imported.

    torch.jit.load would compile the archive's code, which can write files, and run what its modules do when loaded.
    """
    import torch

    kinds = {"Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64}
    kinds |= {"Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16}
    kinds |= {"Int": torch.int32, "Long": torch.int64}
    with zipfile.ZipFile(path) as file:
        stored = [entry for entry in file.infolist() if entry.compress_type == zipfile.ZIP_STORED]
        if sum(entry.file_size for entry in stored) > Path(path).stat().st_size:
            raise ValueError("its parts are larger than the file")  # they overlap, to fill the memory
        loose = {entry.filename for entry in stored}
        (top,) = (name.removesuffix("constants.pkl") for name in file.namelist() if name.endswith("/constants.pkl"))

        def part(name: str) -> bytearray:
            if f"{top}{name}" not in loose:
                raise ValueError(f"its part {name} is missing or packed")
            return bytearray(file.read(f"{top}{name}"))

        @cache
        def storage(kind: str, key: str) -> torch.Tensor:
            dtype = kinds[kind.removeprefix("torch ").removesuffix("Storage")]
            data = part(f"data/{key}")
            return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

        def tensor(where: tuple, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
            _, kind, key, *_ = where
            return storage(kind, key).as_strided(size, stride, offset)  # which minds the storage's ends

        root = _plain(bytes(part("data.pkl")), tensor)
        declared = {}  # class -> parameters and buffers; other tensors are no part of a state dict
        for entry in file.infolist():
            module, dot, suffix = entry.filename.removeprefix(f"{top}code/").replace("/", ".").rpartition(".")
            if suffix == "py" and entry.file_size < LARGEST_CODE:
                for kind, *lists in DECLARATION.findall(file.read(entry).decode()):
                    declared[f"{module} {kind}"] = {name for names in lists for name in re.findall('"(.*?)"', names)}
    state, waiting, seen = {}, [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.items():
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, torch.Tensor) and name in declared[module.kind]:
                state[f"{prefix}{name}"] = value
        if (seen := seen + 1) > MOST_MODULES:  # one holds itself, or many hold many
            raise ValueError(f"it has more than {MOST_MODULES:,} modules")
    if not state:
        raise ValueError("it holds no weights")
    return state


def _plain(pickled: bytes, tensor: Callable[..., Any]) -> Any:
    """Carry out a pickle's instructions as far as archives have them; the only thing ever called is `tensor`."""
    stack, marks, memo = [], [], {}

    def since_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for instruction, value, _ in pickletools.genops(pickled):
        match instruction.name:
            case "PROTO" | "STOP":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "GLOBAL":
                stack.append(value)  # of GLOBAL the name: nothing is looked up
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[instruction.name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                marks.append(len(stack) - int(instruction.name[-1]))
                stack.append(tuple(since_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BINPERSID":  # of a storage: the tuple that tells which stays as it is
                pass
            case "NEWOBJ":
                _, kind = stack.pop(), stack.pop()
                stack.append(_Module(kind))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(tensor(*arguments) if name == "torch._utils _rebuild_tensor_v2" else None)
            case "BUILD":
                attributes = stack.pop()
                if not isinstance(attributes, dict):
                    raise ValueError(f"{stack[-1].kind} wants to run code of its own when it is loaded")
                stack[-1].update(attributes)
            case other:
                raise ValueError(f"{other} is no instruction of an archive of weights")
    (root,) = stack
    return root
