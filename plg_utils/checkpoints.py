"""From the name of a network's weights to a verified file.

A checkpoint is asked for by name (`names()`) or by the path of a file of your own. The miniatures are committed beside
their code. The real ones lie in one folder, PLG_CHECKPOINTS in the environment or `checkpoints` in the data folder,
and are downloaded if they are missing. No file is used before its SHA-256 was compared.

A repository of the Hugging Face hub is a folder of files, named "hub:owner/name" or "hub:owner/name@commit". Without a
commit the newest is taken once, and kept: `<folder>.hub.json` records the commit and the SHA-256 of each file, and
both are enforced from then on. Files that you put into the folder yourself are recorded when they are first used.
open_clip's names MODEL:TAG stand for the repositories that the installed package lists, "hf-hub:owner/name" for any
other that holds one of its networks.
"""

import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from tqdm import tqdm

from plg_utils import contents, files
from plg_utils.choices import one_of

if TYPE_CHECKING:
    import torch

SAM = "https://dl.fbaipublicfiles.com/segment_anything"
MINIATURE = Path(__file__).parent / "miniature"
WEIGHTS = "model.safetensors"  # as repositories of the hub call their weights
LARGEST = 1 << 33  # bytes of a download whose size is not listed; SAM ViT-H has 2.6 billion
CHUNK = 1 << 20  # bytes
ALLOWED = ("https://",)  # how addresses begin; tests add a server on this machine
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # of SigLIP and Grounding DINO, beside the weights
OPEN_CLIP_WEIGHTS = "open_clip_pytorch_model.bin"  # open_clip's default name; it is opened for plain tensors only
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_COMMITS = {  # seen on the hub; of all others the commit is recorded at the first use
    "apple/DFN2B-CLIP-ViT-B-16": "5add2d7e0f38e33579305b3ef956d636742d849e",
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": "d110532e8d4ff91c574ee60a342323f28468b287",
}
CLIP_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives hold them beside the weights
# Of every CLIP with a vision transformer; of any shape.
CLIP_WEIGHTS = dict.fromkeys(("text_projection", "token_embedding.weight", "visual.proj"))
NO_WEIGHTS = {  # begin of a file: what it is
    b"version https://git-lfs": "it is a pointer of git-lfs: fetch the file itself by `git lfs pull`",
    b"<": "it is a web page, as a server sends it in place of a file",
    b"\x1f\x8b": "it is compressed: unpack it",
}
MARKS = {  # begin of a weight's name: whose it is
    "mask_decoder.hf_token.": "SAM-HQ, which is for masks/hf",
    "image_encoder.patch_embed.seq.": "MobileSAM",
    "image_encoder.layers.": "MobileSAM",
    "sam_mask_decoder.": "SAM 2, which is for masks/hf",
    "image_encoder.trunk.": "SAM 2, which is for masks/hf",
    "vision_encoder.": "SAM with the names of transformers, which is for masks/hf",
    "image_encoder.blocks.31.": "SAM vit_h",
    "image_encoder.blocks.23.": "SAM vit_l",
    "image_encoder.blocks.11.": "SAM vit_b",
    "vision_model.": "CLIP with the names of transformers",
    "visual.trunk.": "a network of open_clip that is not OpenAI's",
    "visual.layer1.": "a CLIP without vision transformer, so without patch tokens; use a ViT such as ViT-B/16",
    "visual.": "CLIP",
    "param_groups": "the state of an optimizer",
}


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a network come from, and how to verify them."""

    name: str
    sha256: str | None = None  # None: recorded when it came from the hub
    address: str | None = None  # https; None: committed, or on the hub
    size: int | None = None  # bytes, where known; more are not downloaded
    hub: str | None = None  # name on the Hugging Face hub, as owner/name
    revision: str | None = None  # commit there; None: the newest when the first file comes
    files: tuple[str, ...] = (WEIGHTS,)  # which are needed of the repository

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.address.rsplit("/", 1)[1] if self.address else f"{self.name.removeprefix('miniature_')}.safetensors"

    @property
    def weights(self) -> str:
        """Name of the weights in a repository."""
        return next(name for name in self.files if not name.endswith(".json"))


_MINIATURES = {  # all published numbers rest on these
    "sam": "3882042305a142940d9f00c621b281a4410d445fea2aa479b51cc7ed72e7276d",
    "clip": "3c80323a67e70ead639915810c414965608089bb8e1e8360177678d45c4fda27",
    "encoder": "f74448c27f6fd30a96e2137dc8c7b8abaa01d0842968d2dfdfb3369d7bd2ca63",
}
# Addresses: README of facebookresearch/segment-anything. Files of the hub: those that transformers reads.
_SAM = {
    "sam_vit_b_01ec64.pth": ("ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", None),
    "sam_vit_l_0b3195.pth": ("3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", None),
    "sam_vit_h_4b8939.pth": ("a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879),
}
_MASKS = ("config.json", WEIGHTS, "preprocessor_config.json")
_DETECTOR = (*_MASKS, *TOKENIZER)
_HF = (  # for masks/hf.py; Apache-2.0, as is EdgeTAM
    *("facebook/sam-vit-base", "facebook/sam-vit-large", "facebook/sam-vit-huge"),
    *("facebook/sam2.1-hiera-tiny", "facebook/sam2.1-hiera-small"),
    *("facebook/sam2.1-hiera-base-plus", "facebook/sam2.1-hiera-large"),
    *("syscv-community/sam-hq-vit-base", "syscv-community/sam-hq-vit-large", "syscv-community/sam-hq-vit-huge"),
)
LISTED = {
    checkpoint.name: checkpoint
    for checkpoint in (
        *(Checkpoint(f"miniature_{name}", sha256) for name, sha256 in _MINIATURES.items()),
        *(Checkpoint(file[:9], sha256, f"{SAM}/{file}", size) for file, (sha256, size) in _SAM.items()),
        Checkpoint("grounding_dino_tiny", hub="IDEA-Research/grounding-dino-tiny", files=_DETECTOR),
        Checkpoint("grounding_dino_base", hub="IDEA-Research/grounding-dino-base", files=_DETECTOR),
        *(Checkpoint(hub.partition("/")[2].replace("-", "_"), hub=hub, files=_MASKS) for hub in _HF),
        Checkpoint("edgetam", hub="yonigozlan/EdgeTAM-hf", files=_MASKS),
        # Gated: Meta's "SAM License" is to be accepted on its page. Not for weapons; what is published names SAM 3.
        Checkpoint("sam3", hub="facebook/sam3", files=("config.json", WEIGHTS, "processor_config.json")),
    )
}


@cache
def clip_checkpoints() -> dict[str, Checkpoint]:
    """OpenAI's CLIP models by their official names ("ViT-B/16"), as the installed package lists them."""
    from clip.clip import _MODELS  # it imports torch, which takes seconds, and most names need neither

    # CLIP's own download compares the file with the last but one part of its address, which is the SHA-256.
    return {name: Checkpoint(name, url.split("/")[-2], url) for name, url in _MODELS.items()}


def import_extra(package: str, need: str) -> ModuleType:
    """A package of the extra "models", imported where it is used: it takes seconds, and may be missing."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f'{need}, the extra "models": pip install "plg-utils[models]"') from error


def open_clip_package() -> ModuleType:
    """The package open_clip."""
    return import_extra("open_clip", "OpenCLIP needs open_clip_torch")


def open_clip_checkpoint(name: str) -> Checkpoint:
    """Weights that open_clip lists as "MODEL:TAG": a repository of the hub, with its tokenizer if MODEL needs it.

    raises: ValueError for a name that is not listed, and for weights that learned with QuickGELU if MODEL has another
        activation: open_clip only warns, and computes other features
    """
    open_clip = open_clip_package()
    model, tag = one_of(name, open_clip.list_pretrained(as_str=True), "checkpoint of open_clip").split(":")
    listed, config = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
    if listed.get("quick_gelu") and not config.get("quick_gelu"):
        raise ValueError(f"{name}: these weights learned with QuickGELU, so take {model}-quickgelu:{tag}")
    hub = listed["hf_hub"].rstrip("/")
    commit = OPEN_CLIP_COMMITS.get(hub)
    wanted = (open_clip_weights(hub), *(TOKENIZER if "hf_tokenizer_name" in config["text_cfg"] else ()))
    return Checkpoint(f"hub:{hub}" + (f"@{commit}" if commit else ""), hub=hub, revision=commit, files=wanted)


def open_clip_weights(hub: str) -> str:
    """Name of the weights in a repository of one of open_clip's networks; timm's have no other."""
    return "open_clip_model.safetensors" if hub.startswith("timm/") else OPEN_CLIP_WEIGHTS


def names() -> list[str]:
    """All names that `locate` knows, besides the repositories "hub:owner/name" and open_clip's "MODEL:TAG"."""
    return [*LISTED, *clip_checkpoints()]


def folder() -> Path:
    """Folder of the downloaded checkpoints."""
    return Path(os.environ.get("PLG_CHECKPOINTS") or files.data_root() / "checkpoints").expanduser().absolute()


def place_of(checkpoint: Checkpoint) -> Path:
    """Where the file of a checkpoint, or the folder of its files, belongs; it need not be there."""
    if checkpoint.hub:
        return folder() / checkpoint.name.replace("hub:", "hub/", 1)
    return (folder() if checkpoint.address else MINIATURE) / checkpoint.file


def known(name: str | Path) -> Checkpoint | None:
    """Look a name up, whether or not its files are here.

    returns: None for the path of an existing file, or of a folder with weights as the hub lays them out
    """
    name, path = str(name), Path(name).expanduser()
    if name in LISTED:
        return LISTED[name]
    if name.startswith(("hub:", "hf-hub:")):
        parts = re.fullmatch(r"(?:hf-)?hub:(\w[\w.-]*/\w[\w.-]*)(?:@([0-9a-f]{40}))?", name, re.ASCII)
        if parts is None:
            raise ValueError(
                f"{name!r} is not hub:owner/name or hub:owner/name@commit, the commit with all its 40 digits: "
                "branches and tags may move"
            )
        hub, commit = parts.groups()
        of_open_clip = OPEN_CLIP_CONFIG, open_clip_weights(hub), *(TOKENIZER if "siglip" in hub.lower() else ())
        return Checkpoint(name, hub=hub, revision=commit, files=(WEIGHTS,) if name[:3] == "hub" else of_open_clip)
    if path.is_file() or (path / WEIGHTS).is_file():
        return None
    if name in clip_checkpoints():
        return clip_checkpoints()[name]
    if re.fullmatch(r"[\w.-]{2,}:\w+", name):
        return open_clip_checkpoint(name)
    problem = f"{name!r} is neither a file nor a checkpoint"
    if path.is_dir():
        held = ", ".join(sorted(each.name for each in path.iterdir())[:4]) or "nothing"
        remedy = "transformers makes one of weights in parts or as .bin by save_pretrained(NEW, max_shard_size='99GB')"
        raise FileNotFoundError(f"{problem}: a folder needs {WEIGHTS}, and it holds {held}; {remedy}")
    near = [f"hub:{name}"] if re.fullmatch(r"[\w-]{3,}/[\w.-]+", name) else get_close_matches(name, names(), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise FileNotFoundError(
        f"{problem}; {hint}known are {', '.join(names())}, hub:owner/name, and open_clip's MODEL:TAG and "
        "hf-hub:owner/name"
    )


def check_kind(name: str | Path, taken: Sequence[str], loader: str) -> None:
    """Refuse, before it is fetched, the name of weights that are not among those that a loader takes."""
    if known(name) is not None and name not in taken:
        raise ValueError(f"{name} is not for {loader}: take one of {', '.join(taken)}, or a file")


def locate(name: str | Path, needed: tuple[str, ...] = (WEIGHTS,)) -> Path:
    """Return the verified file of a checkpoint, downloaded if it is missing; a path of your own is taken as it is.

    needed: files of a repository "hub:owner/name"
    returns: a file; of the hub, the folder with the files
    """
    checkpoint = known(name)
    if checkpoint is None:
        return Path(name).expanduser().absolute()
    if checkpoint.hub:
        return _repository(replace(checkpoint, files=needed) if str(name).startswith("hub:") else checkpoint)
    path, wanted, address = place_of(checkpoint), checkpoint.sha256, checkpoint.address
    if address and not path.exists():
        try:
            fetch(address, path, wanted, checkpoint.size or LARGEST)
        except (OSError, ValueError) as error:
            size = f" ({checkpoint.size:,} bytes)" if checkpoint.size else ""
            raise FileNotFoundError(
                f"{name} is not here and could not be downloaded ({error}). Run again, or fetch {address}{size} on a "
                f"machine with access and put it at {path}; its SHA-256 is {wanted}"
            ) from error
    remedy = f"delete it and run again, or fetch {address} yourself" if address else "restore it from git"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    sha256 = contents.sha256(path)  # read unless it was, and has not changed since
    if sha256 != wanted:
        raise ValueError(f"{path} is damaged or another file: its SHA-256 is {sha256}, not {wanted}; {remedy}")
    return path


def locate_weights(name: str | Path) -> Path:
    """Return the verified file of a checkpoint's weights, also where `locate` returns a folder."""
    path, checkpoint = locate(name), known(name)
    return path / (checkpoint.weights if checkpoint else WEIGHTS) if path.is_dir() else path


def sha256_of(name: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, by name or path: what a manifest records."""
    checkpoint = known(name)
    return (checkpoint and checkpoint.sha256) or contents.sha256(locate_weights(name))


# Downloads


def fetch(address: str, path: Path, sha256: str, limit: int) -> None:
    """Download a file whose SHA-256 is known; it continues after what an earlier attempt left in `<path>.part`.

    limit: bytes that it may have
    raises: OSError, or ValueError for an address that is not https or another SHA-256: that file is thrown away
    """
    import pooch
    import requests
    from huggingface_hub.utils import WeakFileLock  # it also works on network disks that have no locks

    part = path.with_name(f"{path.name}.part")

    def look(response: requests.Response, **_) -> None:  # before a redirect is followed
        if response.is_redirect:
            _https(urljoin(response.url, response.headers["Location"]))

    def download(address: str, output: str, _: None) -> None:
        start = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(address, headers=headers, stream=True, timeout=30, hooks={"response": look}) as response:
            if response.status_code != 416:  # 416: the part is complete
                response.raise_for_status()
                start *= response.status_code == 206  # else the server sends the whole file
                total = start + int(response.headers.get("Content-Length") or 0)
                progress = tqdm(total=total, initial=start, desc=path.name, unit="B", unit_scale=True, ascii=True)
                with open(part, "ab" if start else "wb") as file, progress:
                    for piece in response.iter_content(CHUNK):
                        if max(total, file.tell() + len(piece)) > limit:
                            file.truncate(0)
                            raise OSError(f"{address} gives more than {limit:,} bytes")
                        progress.update(file.write(piece))
        os.replace(part, output)

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):  # pooch does nothing if another process was faster
        pooch.retrieve(_https(address), f"sha256:{sha256}", path.name, path.parent, downloader=download)


def _https(address: str) -> str:
    """Return an address if it is https."""
    if not address.startswith(ALLOWED):
        raise ValueError(f"{address} is not an https address")
    return address


def _repository(checkpoint: Checkpoint) -> Path:
    """Return the folder of a repository's files, fetched if missing, each compared with its recorded SHA-256."""
    place = place_of(checkpoint)
    note = place.with_name(f"{place.name}.hub.json")
    missing = [name for name in checkpoint.files if not (place / name).is_file()]
    record = files.read_json(note) if note.exists() else {"commit": None, "sha256": {}}
    if record["commit"] is None and 0 < len(missing) < len(checkpoint.files):
        raise FileNotFoundError(
            f"{place} was put there by hand and lacks {', '.join(missing)} of {checkpoint.hub}: fetch what lacks from "
            f"the same commit on the Hugging Face hub, or delete {place} and {note}, and all is fetched"
        )
    for name in checkpoint.files:
        if name in missing:
            _fetch_from_hub(checkpoint, name, place, note, record)
        sha256 = (files if name in missing else contents).sha256(place / name)
        if name not in record["sha256"]:
            record["sha256"][name] = sha256
            files.write_json(note, record)
        if sha256 != record["sha256"][name]:
            if name in missing:
                (place / name).unlink()
            raise ValueError(
                f"{place / name} is not the file that was first used or that the hub states: its SHA-256 is {sha256}, "
                f"{note.name} says {record['sha256'][name]}. Delete it if it is there, run again, and it is fetched; "
                f"for another commit of {checkpoint.hub}, delete {place} and {note}"
            )
    return place


def _fetch_from_hub(checkpoint: Checkpoint, name: str, place: Path, note: Path, record: dict) -> None:
    """Fetch one file of a repository; record its commit, and the SHA-256 that the hub states of large files."""
    import huggingface_hub  # it takes a second

    revision = record["commit"] or checkpoint.revision
    try:
        address = huggingface_hub.hf_hub_url(checkpoint.hub, name, revision=revision)
        stated = huggingface_hub.get_hf_file_metadata(_https(address))
        if revision not in (None, stated.commit_hash):
            raise ValueError(f"the server has commit {stated.commit_hash}, not {revision}")
        if (stated.size or 0) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        _https(stated.location)  # from where the library downloads
        record["commit"] = stated.commit_hash
        if re.fullmatch("[0-9a-f]{64}", stated.etag or ""):
            record["sha256"].setdefault(name, stated.etag)
        files.write_json(note, record)
        huggingface_hub.hf_hub_download(checkpoint.hub, name, revision=stated.commit_hash, local_dir=place)
    except Exception as error:  # the library's are not all OSErrors: some are those of its HTTP client
        problem = error
        if isinstance(error, huggingface_hub.errors.GatedRepoError):
            problem = (
                f"status {error.response.status_code}, it is gated: accept its licence on https://huggingface.co/"
                f"{checkpoint.hub} and log in by `hf auth login`, or put your token into HF_TOKEN"
            )
        raise FileNotFoundError(
            f"{name} of {checkpoint.hub} is not here and could not be fetched ({problem}). Run again, or fetch "
            f"{', '.join(checkpoint.files)} of {checkpoint.hub}{f' at commit {revision}' if revision else ''} from "
            f"the Hugging Face hub on a machine with access and put them into {place}"
        ) from error


# Reading


def of_transformers(network: type, processor: type, folder: Path, needed: Sequence[str]) -> tuple[Any, Any]:
    """Load a network of transformers, in single precision and ready for inference, and what prepares its inputs.

    Weights are read as safetensors only, because opening a pickle runs what is in it.
    network, processor: their classes; folder: in the layout of the hub
    needed: files that the folder must have, for the error
    """
    import torch
    from safetensors import SafetensorError

    needs = f"it needs {', '.join(needed)} of one repository of the Hugging Face hub, or of save_pretrained()"
    try:
        model, report = network.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        prepare = processor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # files that lack, are broken, or do not fit
        raise FileNotFoundError(f"{folder} could not be loaded ({str(error).splitlines()[0]}); {needs}") from error
    if missing := sorted(report["missing_keys"]):  # transformers gives them random numbers, and goes on
        raise ValueError(
            f"{folder} holds weights of another network than its config.json says: {len(missing)} of a "
            f"{type(model).__name__} are missing, e.g. {missing[0]}; {needs}"
        )
    if bad := next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise ValueError(f"{folder}: {bad} is nan or infinite: give weights from before training went wrong")
    return model.eval(), prepare


def load_sam_state(path: str | Path) -> dict[str, "torch.Tensor"]:
    """Read a state dict: safetensors, or a file of torch.save such as Meta's, opened for plain tensors only."""
    import torch
    from safetensors.torch import load_file

    with files.reading(path, "a readable checkpoint", "fetch it again, or save the network's state_dict() alone"):
        with open(path, "rb") as file:
            begin = file.read(64)
        if strange := next((what for mark, what in NO_WEIGHTS.items() if begin.lstrip().lower().startswith(mark)), ""):
            raise ValueError(strange)
        if not begin or (begin.startswith(b"PK") and not zipfile.is_zipfile(path)):
            raise ValueError(f"it ends after {Path(path).stat().st_size:,} bytes, so its download was not finished")
        if begin[8:9] == b"{":  # whatever its name ends in
            return load_file(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch advises to run the code in the file
            raise ValueError("it is damaged, or holds other files or more than tensors") from error
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
        return state


def unwrap(
    path: str | Path, content: dict[str, Any], wanted: Mapping[str, Any], what: str, *, exact: bool = True
) -> dict[str, "torch.Tensor"]:
    """Find the weights of a network in what a file holds: under a key such as `model`, or after a common prefix.

    wanted: name and shape of each weight, None: any shape
    exact: refuse weights that are not wanted, such as those of an adapter
    """

    def wrong(state: Mapping) -> list[str]:
        shapes = {name: getattr(value, "shape", ()) for name, value in state.items()}
        bad = [name for name, shape in wanted.items() if name not in shapes or shape not in (None, shapes[name])]
        return bad + [str(name) for name in state if exact and name not in wanted]

    states = list(_states(content))
    fitting = [(place, state) for place, state in states if not wrong(state)]
    if len(fitting) == 1:
        state = fitting[0][1]
        for name, weight in state.items():
            is_float = getattr(weight, "is_floating_point", bool)()
            if not weight.isfinite().all() if is_float else name in wanted:
                problem = f"{path}: {name} holds nan, infinity or integers"
                raise ValueError(f"{problem}: give one from before training went wrong")
        return state
    if fitting:
        places = ", ".join(place for place, _ in fitting)
        raise ValueError(f"{path} holds the weights of {what} in {places}: save one of these by its state_dict()")
    seems = f", it seems to be {whose}" if (whose := seems_to_be(content)) else ""
    bad = min((wrong(state) for _, state in states), key=len)
    shown, held = (", ".join(files.shown(name)[1:-1] for name in list(names)[:3]) for names in (bad, content))
    raise ValueError(
        f"{path} does not hold the weights of {what}{seems}: {len(bad)} weights are missing or differ, e.g. {shown}. "
        f"The file holds {held}, ... Give the file that its authors published, or its state_dict() alone"
    )


def seems_to_be(content: dict[str, Any]) -> str:
    """Whose weights a file holds, by the names in it, such as "SAM vit_b"; "" if they are not known."""
    seen = {str(name) for _, state in _states(content) for name in state}
    return next((whose for mark, whose in MARKS.items() if any(name.startswith(mark) for name in seen)), "")


def _states(content: dict, place: str = "the file", depth: int = 0) -> Iterator[tuple[str, dict]]:
    """What may be the weights in a file, and where: all of it, without a prefix that all names share, and inside."""
    yield place, content
    state = content
    while state and len(heads := {str(name).partition(".")[0] for name in state}) == 1 and "." in min(map(str, state)):
        state = {str(name)[len(min(heads)) + 1 :]: value for name, value in state.items()}
        yield f"{place} without prefix", state
    for name, value in content.items():
        if isinstance(value, dict) and depth < 2:
            yield from _states(value, f"`{name}`", depth + 1)


def load_clip_state(
    path: str | Path, wanted: Mapping[str, Any] = CLIP_WEIGHTS, what: str = "a CLIP with OpenAI's names"
) -> dict[str, "torch.Tensor"]:
    """Read the weights of a CLIP: a state dict as `load_sam_state` reads it, or a TorchScript archive of OpenAI's.

    An archive can run code when it is opened, so its SHA-256 must be one that OpenAI's package lists.

    wanted, what: see `unwrap`
    """
    import torch

    is_archive = False  # what torch.save writes is a zip, too, but has no constants
    with suppress(Exception), zipfile.ZipFile(path) as file:  # load_sam_state says what is wrong with a broken file
        is_archive = any(name.endswith("/constants.pkl") for name in file.namelist())
    if not is_archive:
        state = load_sam_state(path)
    elif files.sha256(path) in {checkpoint.sha256 for checkpoint in clip_checkpoints().values()}:
        state = torch.jit.load(path, map_location="cpu").state_dict()
    else:
        raise ValueError(
            f"{path} is a TorchScript archive and not one of OpenAI's: it could run code when it is opened. If you "
            f"trust it, convert it once: torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), "
            "'clip.pth'), and give the path of clip.pth"
        )
    state = unwrap(path, state, wanted, what, exact=False)
    return {key: value.detach() for key, value in state.items() if key not in CLIP_SETTINGS}
