"""Checkpoints: no file is used before its SHA-256 was compared, and the errors say what to fetch."""

import hashlib
import io
import re
import urllib.error
import urllib.request
from email.message import Message

import clip
import pytest
import torch
from safetensors.torch import save_file

from plg_utils import checkpoints, files

CONTENT = bytes(range(256)) * 40
NET = checkpoints.Checkpoint(
    "net", "MIT", hashlib.sha256(CONTENT).hexdigest(), "https://example.org/net.pth", len(CONTENT)
)


class Server:
    """Answers as the web would: serves CONTENT, ranges of it, or an error."""

    def __init__(self, *, content=CONTENT, ranges=True, cut=None, url=NET.address, error=None):
        self.content, self.ranges, self.cut, self.url, self.error = content, ranges, cut, url, error
        self.asked = []

    def __call__(self, request, timeout):
        if self.error:
            raise self.error
        asked = request.get_header("Range")
        self.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        if start and start >= len(self.content):
            raise urllib.error.HTTPError(self.url, 416, "Range Not Satisfiable", Message(), None)
        response = io.BytesIO(self.content[start:][: self.cut])
        response.status, response.url = 206 if start else 200, self.url
        response.headers = {"Content-Length": str(len(self.content) - start)}
        return response


@pytest.fixture
def serve(monkeypatch, tmp_path):
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    monkeypatch.setitem(checkpoints.LISTED, "net", NET)

    def start(**options):
        server = Server(**options)
        monkeypatch.setattr(urllib.request, "urlopen", server)
        return server

    return start


def test_every_listed_checkpoint_can_be_known():
    for checkpoint in [*checkpoints.LISTED.values(), *checkpoints.clip_checkpoints().values()]:
        assert checkpoint.licence in {"MIT", "Apache-2.0"}
        assert (checkpoint.address is None) == (checkpoint.sha256 is None)
        if checkpoint.address:
            assert checkpoint.address.startswith("https://")
            assert re.fullmatch("[0-9a-f]{64}", checkpoint.sha256)
    assert set(clip.available_models()) <= set(checkpoints.names())
    assert checkpoints.clip_checkpoints()["ViT-B/16"].file == "ViT-B-16.pt"
    assert checkpoints.LISTED["sam_vit_h"].file == "sam_vit_h_4b8939.pth"


def test_a_download_is_verified_once_and_kept(serve, tmp_path, monkeypatch):
    server = serve()
    path = checkpoints.locate("net")
    assert path == tmp_path / "net.pth"
    assert path.read_bytes() == CONTENT
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("counted again"))
    assert checkpoints.locate("net") == path
    assert checkpoints.sha256_of("net") == NET.sha256
    assert server.asked == [None]


def test_a_download_goes_on_where_it_stopped(serve, tmp_path):
    serve(cut=1000)
    with pytest.raises(FileNotFoundError, match="ended early, after 1,000 of 10,240 bytes"):
        checkpoints.locate("net")
    assert (tmp_path / "net.pth.part").stat().st_size == 1000
    server = serve()
    assert checkpoints.locate("net").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize(("ranges", "part"), [(False, CONTENT[:1000]), (True, CONTENT)])
def test_servers_may_know_no_ranges_and_parts_may_be_whole(serve, tmp_path, ranges, part):
    (tmp_path / "net.pth.part").write_bytes(part)
    serve(ranges=ranges)
    assert checkpoints.locate("net").read_bytes() == CONTENT


def test_a_wrong_download_is_thrown_away(serve, tmp_path):
    serve(content=b"something else")
    with pytest.raises(ValueError, match=f"{hashlib.sha256(b'something else').hexdigest()}, not {NET.sha256}"):
        checkpoints.locate("net")
    assert not [path for path in tmp_path.iterdir() if path.suffix in {".pth", ".part"}]


def test_no_download_leaves_https(serve):
    serve(url="http://example.org/net.pth")
    with pytest.raises(ValueError, match="not an https address"):
        checkpoints.locate("net")


def test_offline_says_what_to_fetch_and_where_to_put_it(serve, tmp_path):
    serve(error=urllib.error.URLError("no network"))
    with pytest.raises(FileNotFoundError) as caught:
        checkpoints.locate("net")
    for word in (NET.address, NET.sha256, str(tmp_path / "net.pth"), "10,240 bytes", "no network"):
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused_with_both_hashes(serve, tmp_path):
    serve()
    path = checkpoints.locate("net")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"{files.sha256(path)}, that of net is {NET.sha256}"):
        checkpoints.locate("net")


def test_own_files_are_taken_and_other_names_refused(tmp_path):
    (tmp_path / "own.pth").write_bytes(b"weights")
    assert checkpoints.locate(str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    assert checkpoints.sha256_of(tmp_path / "own.pth") == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(
        FileNotFoundError, match="'sam_vit_x' is neither a file nor a checkpoint; known are .*sam_vit_b"
    ):
        checkpoints.locate("sam_vit_x")
    with pytest.raises(ValueError, match="IDEA-Research/grounding-dino-tiny"):
        checkpoints.locate("grounding_dino_tiny")


def test_miniatures_are_frozen(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MINIATURE", tmp_path)
    with pytest.raises(FileNotFoundError, match="restore it from git"):
        checkpoints.locate("miniature_sam")
    (tmp_path / "sam.safetensors").write_bytes(b"small")
    with pytest.raises(ValueError, match=r"says None; .*freeze\(\)"):
        checkpoints.locate("miniature_sam")
    checkpoints.freeze()
    assert checkpoints.locate("miniature_sam") == tmp_path / "sam.safetensors"
    assert checkpoints.sha256_of("miniature_sam") == hashlib.sha256(b"small").hexdigest()
    (tmp_path / "sam.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="not the miniature that was published"):
        checkpoints.locate("miniature_sam")


def test_weights_are_read_from_every_form(tmp_path):
    layer = torch.nn.Linear(2, 3)
    weights = {key: value.detach() for key, value in layer.state_dict().items()}
    torch.save(weights, tmp_path / "a.pth")
    save_file(weights, tmp_path / "a.safetensors")
    torch.jit.save(torch.jit.script(layer), tmp_path / "b.pt")
    read = [checkpoints.load_sam_state(tmp_path / name) for name in ("a.pth", "a.safetensors")]
    read += [checkpoints.load_clip_state(tmp_path / name) for name in ("a.safetensors", "a.pth", "b.pt")]
    assert (tmp_path / "b.pt.safetensors").exists()
    read.append(checkpoints.load_clip_state(tmp_path / "b.pt"))  # from the copy
    for state in read:
        assert all(torch.equal(state[key], weights[key]) for key in weights)

    other = torch.nn.Linear(2, 3)  # the copy must not outlive its origin
    torch.jit.save(torch.jit.script(other), tmp_path / "b.pt")
    assert torch.equal(checkpoints.load_clip_state(tmp_path / "b.pt")["weight"], other.weight)
