"""Checkpoints: no file is used before its SHA-256 was compared, and the errors say what to fetch.

Downloads come from a server on this machine, which breaks off, sends wrong bytes and redirects on demand.
"""

import dataclasses
import gzip
import hashlib
import http.server
import os
import re
import socket
import threading
from functools import partial
from pathlib import Path

import clip
import pytest
import torch
from clip.model import CLIP, convert_weights
from huggingface_hub import constants
from safetensors.torch import save_file
from segment_anything.build_sam import _build_sam
from torch import nn

from plg_utils import checkpoints, contents, files
from plg_utils.checkpoints import WEIGHTS, locate
from plg_utils.encoders import clip as dense
from plg_utils.masks import sam

CONTENT, WRONG = bytes(range(256)) * 40, b"?" * 10_240
SHA256, WRONG_SHA256 = (hashlib.sha256(content).hexdigest() for content in (CONTENT, WRONG))
OLD, NEW = "0123456789" * 4, "abcdef0123" * 4  # two commits
TINY = checkpoints.LISTED["grounding_dino_tiny"]


class Site(http.server.ThreadingHTTPServer):
    """A server on this machine: `pages` holds what it sends, the rest how it misbehaves."""

    ranges = True
    cut = None  # bytes after which the next answer breaks off
    status = 404  # answers what it has no page for
    redirect = None  # address to which everything but itself is sent
    headers = {}  # of answers without content

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.pages, self.asked = {}, []

    def publish(self, commit, repository, contents):
        """Lay files out as the hub does, at a commit and as the newest; small ones are known by another hash."""
        for name, content in contents.items():
            known = (hashlib.sha256 if name == WEIGHTS else hashlib.sha1)(content).hexdigest()
            page = (content, {"ETag": f'"{known}"', "X-Repo-Commit": commit})
            self.pages |= {f"/{repository}/resolve/{revision}/{name}": page for revision in (commit, "main")}


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site, asked = self.server, self.headers.get("Range")
        site.asked.append((self.command, self.path, asked))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
        content, headers, status = b"", site.headers, site.status
        if site.redirect not in (None, self.path):
            status, headers = 302, headers | {"Location": site.redirect}
        elif self.path in site.pages and start < len(site.pages[self.path][0]):
            content, headers = site.pages[self.path]
            content, status = content[start:], 206 if start else 200
        elif start:
            status = 416
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            cut, site.cut = site.cut, None
            self.wfile.write(content[:cut])

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(monkeypatch, tmp_path):
    """The server; it has the checkpoint "net", and it is the hub, with the repository some/net."""
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(checkpoints, "ALLOWED", ("https://", site.address))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, site.address)
        settings = {"ENDPOINT": site.address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
        settings |= {"HF_HUB_CACHE": str(tmp_path / ".cache")}
        settings |= dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"), True)
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        site.pages["/net.pth"] = (CONTENT, {})
        site.publish(OLD, "some/net", {WEIGHTS: CONTENT})
        net = checkpoints.Checkpoint("net", SHA256, f"{site.address}/net.pth", len(CONTENT))
        monkeypatch.setitem(checkpoints.LISTED, "net", net)
        yield site
        site.shutdown()


def left(folder):
    """Files in a folder that are not hidden."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def test_every_listed_checkpoint_can_be_verified():
    for checkpoint in [*checkpoints.LISTED.values(), *checkpoints.clip_checkpoints().values()]:
        assert bool(checkpoint.hub) != bool(re.fullmatch("[0-9a-f]{64}", checkpoint.sha256 or ""))
        assert (checkpoint.address or "https://").startswith("https://")
        assert all(name.endswith((".safetensors", ".json")) for name in checkpoint.files)  # no pickles
    assert {"sam_vit_b", "sam_vit_l", "sam_vit_h", *clip.available_models()} <= set(checkpoints.names())


# Downloads by address


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_continues_where_it_stopped(site, tmp_path, monkeypatch, ranges):
    monkeypatch.setattr(checkpoints, "CHUNK", 500)  # of a piece nothing is kept
    site.cut, site.ranges = 1000, ranges
    with pytest.raises(FileNotFoundError, match="1000 bytes read, 9240 more expected"):
        locate("net")
    assert (tmp_path / "net.pth.part").read_bytes() == CONTENT[:1000]
    assert locate("net").read_bytes() == CONTENT
    assert locate("net") == tmp_path / "net.pth" and left(tmp_path) == ["net.pth"]
    assert [ranges for _, _, ranges in site.asked] == [None, "bytes=1000-"]  # and nobody is asked again
    (tmp_path / "net.pth").rename(tmp_path / "net.pth.part")  # the part may also be complete
    assert locate("net").read_bytes() == CONTENT


def test_a_download_larger_than_listed_stops(site, tmp_path, monkeypatch):
    site.pages["/net.pth"] = (CONTENT * 3, {"Content-Length": ""})
    with pytest.raises(FileNotFoundError, match="gives more than 10,240 bytes"):
        locate("net")
    monkeypatch.setitem(checkpoints.LISTED, "net", dataclasses.replace(checkpoints.LISTED["net"], size=None))
    monkeypatch.setattr(checkpoints, "LARGEST", 10_000)
    for name in ("net", "hub:some/net"):
        with pytest.raises(FileNotFoundError, match="more than 10,000 bytes"):
            locate(name)
    assert left(tmp_path) == ["net.pth.part"] and (tmp_path / "net.pth.part").stat().st_size == 0


def test_another_file_is_refused_with_both_hashes(site, tmp_path):
    site.pages["/net.pth"] = (WRONG, {})
    with pytest.raises(FileNotFoundError, match=f"expected sha256:{SHA256} but got {WRONG_SHA256}"):
        locate("net")
    assert left(tmp_path) == []
    (tmp_path / "net.pth").write_bytes(WRONG)  # by hand
    with pytest.raises(ValueError, match=f"{WRONG_SHA256}, not {SHA256}; delete it and run again"):
        locate("net")


def test_only_https_is_asked(site, monkeypatch):
    monkeypatch.setattr(checkpoints, "ALLOWED", ("https://",))
    for name, path in (("net", "/net.pth"), ("hub:some/net", "/some/net/resolve/main/model.safetensors")):
        with pytest.raises(FileNotFoundError, match=f"{site.address}{path} is not an https address"):
            locate(name)
    assert site.asked == []


@pytest.mark.parametrize("name", ["net", "hub:some/net"])
def test_no_redirect_leaves_https(name, site, tmp_path, monkeypatch):
    hosts, real = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **how: hosts.append(host) or real(host, *rest, **how)
    )
    site.redirect = "http://example.org/net.pth"
    site.headers = {"X-Repo-Commit": OLD, "ETag": f'"{SHA256}"'}
    with pytest.raises(FileNotFoundError, match="http://example.org/net.pth is not an https address"):
        locate(name)
    assert set(hosts) <= {"127.0.0.1"}  # the other was not asked
    assert left(tmp_path) == []
    site.redirect, site.pages["/moved.pth"] = "/moved.pth", (CONTENT, {})
    assert locate("net").read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "status"), [("net", 404), ("net", None), ("hub", 500), ("hub", 401), ("hub", None)])
def test_without_a_server_s_help_the_error_says_what_to_put_where(name, status, site, tmp_path):
    site.pages, site.status = {}, status
    site.headers = {"X-Error-Code": "GatedRepo"} if status == 401 else {}
    if status is None:
        site.shutdown()  # first: a socket that a thread still waits on accepts connections
        site.server_close()
    wanted = [f"{site.address}/net.pth (10,240 bytes)", SHA256, f"at {tmp_path / 'net.pth'}"]
    if name == "hub":
        wanted = [*TINY.files, TINY.hub, f"into {tmp_path / 'grounding_dino_tiny'}"]
        wanted += ["accept its licence on https://huggingface.co/IDEA", "HF_TOKEN"] * (status == 401)
    with pytest.raises(FileNotFoundError, match=str(status or "refused")) as caught:
        locate("net" if name == "net" else "grounding_dino_tiny")
    assert not [word for word in wanted if word not in str(caught.value)]
    assert left(tmp_path) == [] and (status != 401 or "\n" not in str(caught.value))


# The hub


def test_the_first_fetch_pins_the_commit_and_records_the_hash(site, tmp_path):
    place = locate("hub:some/net")
    assert files.read_json(tmp_path / "hub/some/net.hub.json") == {"commit": OLD, "sha256": {WEIGHTS: SHA256}}
    assert left(tmp_path) == ["hub/some/net.hub.json", "hub/some/net/model.safetensors"]
    site.asked.clear()
    site.publish(NEW, "some/net", {WEIGHTS: WRONG})
    assert checkpoints.sha256_of("hub:some/net") == SHA256
    assert checkpoints.locate_weights("hub:some/net") == place / WEIGHTS
    assert site.asked == []
    (place / WEIGHTS).unlink()
    assert (locate("hub:some/net") / WEIGHTS).read_bytes() == CONTENT
    assert {path.split("/")[-2] for _, path, _ in site.asked} == {OLD}


def test_more_files_and_a_commit_can_be_asked_for(site):
    site.publish(OLD, "some/more", {WEIGHTS: CONTENT, "config.json": b"{}"})
    assert not (locate("hub:some/more") / "config.json").exists()
    site.publish(NEW, "some/more", {WEIGHTS: WRONG, "config.json": b"newer"})
    assert (locate("hub:some/more", ("config.json", WEIGHTS)) / "config.json").read_bytes() == b"{}"  # of that commit
    site.publish(NEW, "some/net", {WEIGHTS: WRONG})
    assert (locate(f"hub:some/net@{OLD}") / WEIGHTS).read_bytes() == CONTENT
    assert (locate("hub:some/net") / WEIGHTS).read_bytes() == WRONG
    site.pages[f"/some/net/resolve/{'1' * 40}/{WEIGHTS}"] = site.pages[f"/some/net/resolve/{OLD}/{WEIGHTS}"]
    with pytest.raises(FileNotFoundError, match=f"the server has commit {OLD}, not 1111"):
        locate(f"hub:some/net@{'1' * 40}")
    for name in ("net", "../net", "some/..", "some/net@main", f"some/net@{OLD[1:]}", "some/net/.."):
        with pytest.raises(ValueError, match="is not hub:owner/name or hub:owner/name@commit"):
            locate(f"hub:{name}")


def test_a_listed_repository_is_all_its_files_of_one_commit(site, tmp_path):
    written = {name: name.encode() for name in TINY.files}
    site.publish(OLD, TINY.hub, written)
    del site.pages[f"/{TINY.hub}/resolve/{OLD}/tokenizer.json"]
    with pytest.raises(FileNotFoundError, match=f"tokenizer.json of {TINY.hub} is not here"):
        locate("grounding_dino_tiny")
    site.publish(OLD, TINY.hub, written)
    site.publish(NEW, TINY.hub, dict.fromkeys(written, b"newer"))
    place = locate("grounding_dino_tiny")
    assert {name: (place / name).read_text() for name in TINY.files} == {name: name for name in TINY.files}
    assert checkpoints.sha256_of("grounding_dino_tiny") == files.sha256(place / WEIGHTS)
    (place / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is not the file that was first used"):
        locate("grounding_dino_tiny")


def test_wrong_bytes_from_the_hub_are_thrown_away(site, tmp_path):
    path = f"/some/net/resolve/{OLD}/{WEIGHTS}"
    site.pages[path] = (WRONG, site.pages[path][1])  # the hub itself states the SHA-256
    with pytest.raises(ValueError, match=f"{WRONG_SHA256}, net.hub.json says {SHA256}"):
        locate("hub:some/net")
    site.publish(OLD, "some/net", {WEIGHTS: WRONG})  # now it states the wrong one
    with pytest.raises(ValueError, match=f"{WRONG_SHA256}, net.hub.json says {SHA256}"):
        locate("hub:some/net")
    assert left(tmp_path) == ["hub/some/net.hub.json"]


def test_a_folder_that_was_put_there_is_recorded_and_enforced(site, tmp_path):
    place = tmp_path / "grounding_dino_tiny"
    place.mkdir()
    for name in TINY.files[:-1]:
        (place / name).write_text(name)
    with pytest.raises(FileNotFoundError, match=f"{place} was put there .* lacks tokenizer_config.json of IDEA"):
        locate("grounding_dino_tiny")
    (place / "tokenizer_config.json").write_text("{}")
    assert locate("grounding_dino_tiny") == place
    record = files.read_json(tmp_path / "grounding_dino_tiny.hub.json")
    assert record["commit"] is None and set(record["sha256"]) == set(TINY.files)
    (place / WEIGHTS).write_text("others")
    with pytest.raises(ValueError, match="is not the file that was first used"):
        locate("grounding_dino_tiny")
    assert site.asked == [] and (place / WEIGHTS).read_text() == "others"


def test_weights_are_read_once_and_again_when_they_change(site, tmp_path, monkeypatch):
    read, real = [], files.sha256
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(files, "sha256", lambda path: read.append(Path(path).name) or real(path))
    (tmp_path / "own.pth").write_bytes(b"weights")
    names = ["net", "hub:some/net", "miniature_sam", tmp_path / "own.pth"]
    for name in names:
        locate(name)
        checkpoints.sha256_of(name)
    # What came from the hub is read as it comes, and when it is used.
    assert read == ["net.pth", WEIGHTS, WEIGHTS, "sam.safetensors", "own.pth"]
    contents.save()
    contents._sums.clear()  # as in the next process
    for name in 2 * names:
        locate(name)
        checkpoints.sha256_of(name)
    assert len(read) == 5
    for path in (tmp_path / "net.pth", tmp_path / "hub/some/net" / WEIGHTS):
        old = path.stat()
        path.write_bytes(WRONG)
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    for name in names[:2]:
        with pytest.raises(ValueError, match=WRONG_SHA256):
            locate(name)


# Files that are here


def test_own_files_and_folders_are_taken_and_miniatures_are_frozen(tmp_path, monkeypatch):
    (tmp_path / "own.pth").write_bytes(b"weights")
    assert locate(str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    with pytest.raises(FileNotFoundError, match="a folder needs model.safetensors, and it holds own.pth"):
        locate(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"others")  # now it is a folder as on the hub
    assert locate(tmp_path) == tmp_path
    assert checkpoints.sha256_of(tmp_path) == hashlib.sha256(b"others").hexdigest()
    assert locate("miniature_sam") == checkpoints.MINIATURE / "sam.safetensors"
    monkeypatch.setattr(checkpoints, "MINIATURE", tmp_path)
    (tmp_path / "sam.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="restore it from git"):
        locate("miniature_sam")


@pytest.mark.parametrize(("model", "depth"), [("vit_b", 12), ("vit_l", 24), ("vit_h", 32)])
def test_which_sam_a_file_holds_is_seen_in_it(model, depth, tmp_path, monkeypatch):
    """Its weights are loaded whole, from Meta's own file as from one of half the precision with wrappers."""
    small, listed = partial(_build_sam, 8, depth, 2, [1]), checkpoints.LISTED[f"sam_{model}"]
    monkeypatch.setitem(sam.sam_model_registry, model, small)
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    state, meta = small().state_dict(), tmp_path / listed.file
    torch.save(state, meta)
    monkeypatch.setitem(checkpoints.LISTED, listed.name, dataclasses.replace(listed, sha256=files.sha256(meta)))
    torch.save({"model": {f"module.{key}": weight.half() for key, weight in state.items()}}, tmp_path / "own.pth")
    whole, half = sam.load(listed.name), sam.load(str(tmp_path / "own.pth")).state_dict()
    assert not whole.training and whole.state_dict().keys() == half.keys() == state.keys()
    assert all(torch.equal(weight, state[key]) for key, weight in whole.state_dict().items())
    assert all(torch.equal(weight, state[key].half().float()) for key, weight in half.items())
    torch.save({"image_encoder.layers.0": torch.zeros(1)}, tmp_path / "mobile_sam.pt")
    with pytest.raises(ValueError, match="which SAM is .*mobile_sam.pt, of vit_b, vit_l, vit_h.*seems to be MobileSAM"):
        sam.load(str(tmp_path / "mobile_sam.pt"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a pointer of git-lfs: fetch the file"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page, as a server sends it"),
        (gzip.compress(b"weights", mtime=0), "it is compressed: unpack it"),
        (b"", "it ends after 0 bytes, so its download was not finished"),
        (b"PK\3\4" + bytes(100), "it ends after 104 bytes, so its download was not finished"),
        (b"plain text", "it is damaged, or holds other files or more than tensors"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_holds_no_weights_is_named(content, says, suffix, tmp_path):
    path = tmp_path / f"own.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"own.{suffix} is not a readable checkpoint .*{says}") as error:
        checkpoints.load_sam_state(path)
    assert "weights_only" not in str(error.value)


def test_weights_are_read_whatever_the_name_ends_in_and_nan_is_refused(tmp_path):
    state = {"a": torch.ones(2), "b": torch.zeros(1)}
    save_file(state, tmp_path / "own.pth")
    torch.save(state, tmp_path / "own.safetensors")
    for name in ("own.pth", "own.safetensors"):
        loaded = checkpoints.load_sam_state(tmp_path / name)
        assert all(torch.equal(loaded[key], weight) for key, weight in state.items())
    shapes = {key: weight.shape for key, weight in state.items()}
    wrong = (torch.tensor([torch.nan]), torch.tensor([-torch.inf]).half())
    for broken in (*({"b": weight} for weight in wrong), {"a": torch.ones(2, dtype=torch.int8)}):
        problem = f"{min(broken)} holds nan, infinity or integers"
        with pytest.raises(ValueError, match=f"own.pth: {problem}: give one from before"):
            checkpoints.unwrap("own.pth", state | broken, shapes, "a network")


def archive(state):
    """Lay a state dict out as modules, and compile them as OpenAI did."""
    root = nn.Module()
    for key, value in state.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = dict(module.named_children())[part]
        module.register_buffer(name, value)
    return torch.jit.script(root)


def test_openai_s_archive_of_a_clip_is_loaded_as_their_package_does(tmp_path, monkeypatch):
    torch.manual_seed(0)
    small = CLIP(6, 16, 2, 64, 4, 12, 300, 64, 1, 1)  # 16 pixels, patches of 4; 12 words of 300
    convert_weights(small)
    settings = {"input_resolution": 16, "context_length": 12, "vocab_size": 300}
    state = small.state_dict() | {key: torch.tensor(value) for key, value in settings.items()}
    assert {value.dtype for value in small.state_dict().values()} == {torch.float16, torch.float32}
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.save(archive(state), path)
    official = clip.load(str(path), device="cpu", jit=False)[0].state_dict()
    with pytest.raises(ValueError, match="is a TorchScript archive and not one of OpenAI's") as refused:
        dense.load(path)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"torch.save\(.*'clip.pth'\)", str(refused.value))[0])  # noqa: S102  the remedy that it states
    known = checkpoints.Checkpoint("ViT-B/16", files.sha256(path), "https://example.org/ViT-B-16.pt")
    monkeypatch.setattr(checkpoints, "clip_checkpoints", lambda: {"ViT-B/16": known})
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    for name in ("ViT-B/16", "clip.pth"):
        loaded = dense.load(name).state_dict()
        assert loaded.keys() == official.keys()
        assert all(torch.equal(loaded[key], official[key]) for key in official)
    encoder = dense.build(checkpoint="ViT-B/16", features="plain", image_size=24)
    (features,) = encoder.images([torch.zeros(24, 24, 3, dtype=torch.uint8).numpy()])
    assert features.shape == (6, 6, 6)  # its position embedding is for 4 x 4 patches
