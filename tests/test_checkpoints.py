"""Checkpoints: no file is used before its SHA-256 was compared, and the errors say what to fetch.

What comes from afar comes here from a server on this machine, which breaks off, lies and redirects as it is told.
"""

import dataclasses
import hashlib
import http.server
import re
import socket
import threading
from functools import partial

import clip
import pytest
import torch
from clip.model import CLIP, convert_weights
from huggingface_hub import constants
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from plg_utils import checkpoints, files
from plg_utils.encoders import clip as dense
from plg_utils.masks import sam

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OLD, NEW = "0123456789" * 4, "abcdef0123" * 4  # two commits


class Site(http.server.ThreadingHTTPServer):
    """A server on this machine; it serves `pages` and remembers what it was `asked`."""

    ranges = True
    cut = None  # bytes after which the next answer breaks off
    status = None  # answers everything
    redirect = None  # address to which everything but itself is sent

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.pages, self.asked = {}, []

    def publish(self, commit, repository="some/net", **contents):
        """Lay files out as the hub does, at a commit and as the newest; small ones are known by another hash."""
        for name, content in contents.items():
            large = name == "model"
            headers = {
                "ETag": f'"{(hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()}"',
                "X-Repo-Commit": commit,
            }
            for revision in (commit, "main"):
                path = f"/{repository}/resolve/{revision}/{name}.{'safetensors' if large else 'json'}"
                self.pages[path] = (content, headers)

    def gets(self):
        return [(path.rsplit("/", 2)[-2:], ranges) for method, path, ranges in self.asked if method == "GET"]


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site, asked = self.server, self.headers.get("Range")
        site.asked.append((self.command, self.path, asked))
        if site.redirect not in (None, self.path):
            self.send_response(302)
            self.send_header("Location", site.redirect)
            self.end_headers()
            return
        if site.status or self.path not in site.pages:
            self.send_error(site.status or 404)
            return
        content, headers = site.pages[self.path]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        for name, value in {"Content-Length": str(len(content) - start), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            cut, site.cut = site.cut, None
            self.wfile.write(content[start:][:cut])

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asks_nobody_else = {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
    }
    for name, value in asks_nobody_else.items():
        monkeypatch.setattr(constants, name, value)
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        site.pages["/net.pth"] = (CONTENT, {})
        net = checkpoints.Checkpoint("net", "MIT", SHA256, f"{site.address}/net.pth", len(CONTENT))
        monkeypatch.setitem(checkpoints.LISTED, "net", net)
        yield site
        site.shutdown()


def locate(name="net"):
    return checkpoints.locate(name, http_on_loopback=True)


def left(folder):
    """Files in a folder, without the notes of SHA-256 that were counted."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".verified"]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def test_every_listed_checkpoint_can_be_known():
    for checkpoint in [*checkpoints.LISTED.values(), *checkpoints.clip_checkpoints().values()]:
        assert checkpoint.licence in {"MIT", "Apache-2.0"}
        assert (checkpoint.address is None) == (checkpoint.sha256 is None)
        if checkpoint.address:
            assert checkpoint.address.startswith("https://")
            assert re.fullmatch("[0-9a-f]{64}", checkpoint.sha256)
        if checkpoint.hub:
            assert re.fullmatch(r"[\w-]+/[\w-]+", checkpoint.hub)
            assert checkpoints.WEIGHTS in checkpoint.files
            assert all(name.endswith(checkpoints.HARMLESS) for name in checkpoint.files)
    assert set(clip.available_models()) <= set(checkpoints.names())
    assert checkpoints.clip_checkpoints()["ViT-B/16"].file == "ViT-B-16.pt"
    assert checkpoints.LISTED["sam_vit_h"].file == "sam_vit_h_4b8939.pth"


# Downloads by address


def test_a_download_is_verified_once_and_kept(site, tmp_path, monkeypatch):
    path = locate()
    assert path == tmp_path / "net.pth"
    assert path.read_bytes() == CONTENT
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("counted again"))
    assert locate() == path
    assert checkpoints.sha256_of("net") == SHA256
    assert site.asked == [("GET", "/net.pth", None)]
    assert left(tmp_path) == ["net.pth"]


def test_a_download_goes_on_where_it_stopped(site, tmp_path):
    site.cut = 1000
    with pytest.raises(FileNotFoundError, match="ended early, after 1,000 of 10,240 bytes"):
        locate()
    assert (tmp_path / "net.pth.part").read_bytes() == CONTENT[:1000]
    assert locate().read_bytes() == CONTENT
    assert [ranges for _, _, ranges in site.asked] == [None, "bytes=1000-"]


@pytest.mark.parametrize("told", [True, False])
def test_a_download_larger_than_listed_stops(told, site, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHUNK", 1000)
    site.pages["/net.pth"] = (CONTENT * 3, {} if told else {"Content-Length": ""})
    with pytest.raises(FileNotFoundError, match="bytes or more, and should give 10,240 at most"):
        locate()
    left_over = tmp_path / "net.pth.part"
    assert left_over.stat().st_size == 10_000 if not told else not left_over.exists()
    monkeypatch.setitem(checkpoints.LISTED, "net", dataclasses.replace(checkpoints.LISTED["net"], size=None))
    monkeypatch.setattr(checkpoints, "LARGEST", 20_000)
    with pytest.raises(FileNotFoundError, match="should give 20,000 at most"):
        locate()


@pytest.mark.parametrize(("ranges", "part"), [(False, CONTENT[:1000]), (True, CONTENT)])
def test_servers_may_know_no_ranges_and_parts_may_be_whole(site, tmp_path, ranges, part):
    (tmp_path / "net.pth.part").write_bytes(part)
    site.ranges = ranges
    assert locate().read_bytes() == CONTENT


def test_a_wrong_download_is_thrown_away(site, tmp_path):
    site.pages["/net.pth"] = (b"something else", {})
    with pytest.raises(ValueError, match=f"{hashlib.sha256(b'something else').hexdigest()}, not {SHA256}"):
        locate()
    assert left(tmp_path) == []


def test_plain_http_is_for_this_machine_and_only_if_asked_for(site, tmp_path):
    with pytest.raises(ValueError, match=f"{site.address}/net.pth is not an https address"):
        checkpoints.locate("net")
    with pytest.raises(FileNotFoundError, match="is not an https address"):
        checkpoints.locate("hub:some/net", endpoint=site.address)
    assert site.asked == []
    for address in ("https://example.org/a", "http://127.0.0.1:80/a", "http://[::1]:80/a", "http://localhost/a"):
        assert checkpoints._checked(address, True) == address
    for address in ("http://example.org", "http://127.0.0.1.example.org", "http://localhost@example.org", "ftp://::1"):
        with pytest.raises(ValueError, match="is not an https address"):
            checkpoints._checked(address, True)
    with pytest.raises(ValueError, match="is not an https address"):
        checkpoints._checked("file:///etc/passwd", True)


def test_no_redirect_leaves_https(site, tmp_path, monkeypatch):
    site.pages["/moved.pth"] = site.pages["/net.pth"]
    site.redirect = "/moved.pth"
    assert locate().read_bytes() == CONTENT
    (tmp_path / "net.pth").unlink()
    hosts, real = [], socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: hosts.append(host) or real(host, *rest))
    site.redirect = "http://example.org/net.pth"
    with pytest.raises(ValueError, match="http://example.org/net.pth is not an https address"):
        locate()
    assert set(hosts) == {"127.0.0.1"}  # the other was not even asked


@pytest.mark.parametrize(("status", "said"), [(404, "Error 404"), (500, "Error 500"), (None, "refused")])
def test_without_a_server_s_help_the_error_says_what_to_put_where(site, tmp_path, status, said):
    site.status = status
    if status is None:
        site.shutdown()  # first: a socket that a thread still waits on goes on taking connections
        site.server_close()
    with pytest.raises(FileNotFoundError, match=said) as caught:
        locate()
    for word in (f"{site.address}/net.pth", SHA256, str(tmp_path / "net.pth"), "10,240 bytes"):
        assert word in str(caught.value)
    assert left(tmp_path) == []


def test_a_damaged_file_is_refused_with_both_hashes(site):
    path = locate()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"{files.sha256(path)}, that of net is {SHA256}"):
        locate()


# The hub


@pytest.fixture
def hub(site):
    """Ask the server as if it was the hub."""
    site.publish(OLD, model=CONTENT)
    return lambda name="hub:some/net": checkpoints.locate(name, endpoint=site.address, http_on_loopback=True)


def test_the_first_fetch_pins_the_commit_and_records_the_hash(site, hub, tmp_path, monkeypatch):
    folder = hub()
    assert folder == tmp_path / "hub" / "some" / "net"
    record = files.read_json(tmp_path / "hub/some/net.hub.json")
    assert record == {"commit": OLD, "sha256": {checkpoints.WEIGHTS: SHA256}}
    assert left(tmp_path) == ["hub/some/net.hub.json", "hub/some/net/model.safetensors"]
    assert site.gets() == [([OLD, checkpoints.WEIGHTS], None)]  # by its commit, not as the newest
    site.asked.clear()
    site.publish(NEW, model=b"newer")
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256", lambda path: pytest.fail("counted again"))
        assert hub() == folder
        assert checkpoints.locate("hub:some/net") == folder
        assert checkpoints.sha256_of("hub:some/net") == SHA256
        assert checkpoints.locate_weights("hub:some/net") == folder / checkpoints.WEIGHTS
    assert site.asked == []
    (folder / checkpoints.WEIGHTS).unlink()
    assert (hub() / checkpoints.WEIGHTS).read_bytes() == CONTENT
    assert {path.split("/")[-2] for _, path, _ in site.asked} == {OLD}


def test_a_commit_can_be_asked_for(site, hub, tmp_path):
    site.publish(NEW, model=b"newer")
    assert (hub(f"hub:some/net@{OLD}") / checkpoints.WEIGHTS).read_bytes() == CONTENT
    assert (hub() / checkpoints.WEIGHTS).read_bytes() == b"newer"
    assert files.read_json(tmp_path / f"hub/some/net@{OLD}.hub.json")["commit"] == OLD
    site.pages[f"/some/net/resolve/{'1' * 40}/{checkpoints.WEIGHTS}"] = site.pages[
        f"/some/net/resolve/{OLD}/{checkpoints.WEIGHTS}"
    ]
    with pytest.raises(FileNotFoundError, match=f"the server has commit {OLD}, not 1111"):
        hub(f"hub:some/net@{'1' * 40}")


def test_a_listed_repository_is_all_its_files_of_one_commit(site, hub, tmp_path):
    wanted = checkpoints.LISTED["grounding_dino_tiny"].files
    contents = {name.split(".")[0]: name.encode() for name in wanted}
    site.publish(OLD, "IDEA-Research/grounding-dino-tiny", **contents)
    del site.pages[f"/IDEA-Research/grounding-dino-tiny/resolve/{OLD}/tokenizer.json"]
    with pytest.raises(FileNotFoundError, match="tokenizer.json of IDEA-Research/grounding-dino-tiny is not here"):
        hub("grounding_dino_tiny")
    site.publish(OLD, "IDEA-Research/grounding-dino-tiny", **contents)
    site.publish(NEW, "IDEA-Research/grounding-dino-tiny", **dict.fromkeys(contents, b"newer"))
    folder = hub("grounding_dino_tiny")
    assert folder == tmp_path / "grounding_dino_tiny"
    assert {name: (folder / name).read_text() for name in wanted} == {name: name for name in wanted}
    assert checkpoints.sha256_of("grounding_dino_tiny") == files.sha256(folder / checkpoints.WEIGHTS)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is not the file that was first used"):
        hub("grounding_dino_tiny")


def test_a_fetch_from_the_hub_goes_on_where_it_broke_off(site, hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # the library keeps whole pieces, else of 10 MiB
    site.cut = 1000
    assert (hub() / checkpoints.WEIGHTS).read_bytes() == CONTENT
    assert [ranges for _, ranges in site.gets()] == [None, "bytes=1000-"]


def test_wrong_bytes_from_the_hub_are_thrown_away(site, hub, tmp_path):
    wrong = CONTENT[:-1] + b"?"
    path = f"/some/net/resolve/{OLD}/{checkpoints.WEIGHTS}"
    right = site.pages[path]
    site.pages[path] = (wrong, right[1])
    with pytest.raises(ValueError, match=f"{hashlib.sha256(wrong).hexdigest()}, not {SHA256}: it was thrown away"):
        hub()  # the hub itself tells the SHA-256
    assert left(tmp_path) == []
    site.pages[path] = right
    (hub() / checkpoints.WEIGHTS).unlink()
    site.publish(OLD, model=wrong)  # now the hub stands by it, but another file was recorded
    with pytest.raises(ValueError, match=f"{hashlib.sha256(wrong).hexdigest()}, not {SHA256}: it was thrown away"):
        hub()
    assert left(tmp_path) == ["hub/some/net.hub.json"]


def test_what_was_changed_after_the_fetch_is_refused(hub):
    path = hub() / checkpoints.WEIGHTS
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"{files.sha256(path)}, net.hub.json says {SHA256}. .*delete this one"):
        hub()
    path.unlink()
    assert (hub() / checkpoints.WEIGHTS).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 500, None])
def test_without_the_hub_the_error_says_what_to_put_where(site, hub, tmp_path, status):
    site.status = status
    if status is None:
        site.shutdown()  # first: a socket that a thread still waits on goes on taking connections
        site.server_close()
    with pytest.raises(FileNotFoundError, match="could not be fetched") as caught:
        hub("grounding_dino_tiny")
    for word in ("IDEA-Research/grounding-dino-tiny", "tokenizer.json", str(tmp_path / "grounding_dino_tiny")):
        assert word in str(caught.value)
    assert left(tmp_path) == []


def test_the_hub_does_not_lead_away_from_https(site, hub, tmp_path, monkeypatch):
    headers = site.pages[f"/some/net/resolve/main/{checkpoints.WEIGHTS}"][1]
    monkeypatch.setattr(Answer, "end_headers", lambda self: _with(self, headers))
    site.redirect = "http://example.org/model.safetensors"
    with pytest.raises(FileNotFoundError, match="http://example.org/model.safetensors is not an https address"):
        hub()
    assert {method for method, _, _ in site.asked} == {"HEAD"}
    assert left(tmp_path) == []


def _with(answer, headers):
    for name, value in headers.items():
        answer.send_header(name, value)
    http.server.BaseHTTPRequestHandler.end_headers(answer)


def test_a_folder_that_was_put_there_is_recorded_and_enforced(site, tmp_path):
    folder = tmp_path / "grounding_dino_tiny"
    folder.mkdir()
    for name in checkpoints.LISTED["grounding_dino_tiny"].files[:-1]:
        (folder / name).write_text(name)
    with pytest.raises(FileNotFoundError, match=f"{folder} was put there .* lacks tokenizer_config.json of IDEA"):
        checkpoints.locate("grounding_dino_tiny")
    (folder / "tokenizer_config.json").write_text("{}")
    assert checkpoints.locate("grounding_dino_tiny") == folder
    assert checkpoints.sha256_of("grounding_dino_tiny") == files.sha256(folder / checkpoints.WEIGHTS)
    record = files.read_json(tmp_path / "grounding_dino_tiny.hub.json")
    assert record["commit"] is None and set(record["sha256"]) == set(checkpoints.LISTED["grounding_dino_tiny"].files)
    (folder / checkpoints.WEIGHTS).write_text("others")
    with pytest.raises(ValueError, match="is not the file that was first used"):
        checkpoints.locate("grounding_dino_tiny")


def test_the_hub_gives_no_pickles(site, hub, monkeypatch):
    pickled = checkpoints.Checkpoint("pickled", "MIT", hub="some/net", files=("pytorch_model.bin",))
    monkeypatch.setitem(checkpoints.LISTED, "pickled", pickled)
    with pytest.raises(ValueError, match="pytorch_model.bin of some/net is not fetched"):
        hub("pickled")
    assert site.asked == []


@pytest.mark.parametrize("name", ["net", "../net", "some/..", "some/net@main", f"some/net@{OLD[1:]}", "some/net/.."])
def test_names_of_repositories_are_whole(name):
    with pytest.raises(ValueError, match="is not hub:owner/name or hub:owner/name@commit"):
        checkpoints.locate(f"hub:{name}")


# Files that are here


def test_own_files_are_taken_and_other_names_refused(tmp_path):
    (tmp_path / "own.pth").write_bytes(b"weights")
    assert checkpoints.locate(str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    assert checkpoints.sha256_of(tmp_path / "own.pth") == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(
        FileNotFoundError, match="'sam_vit_x' is neither a file nor a checkpoint; known are .*sam_vit_b"
    ):
        checkpoints.locate("sam_vit_x")
    with pytest.raises(FileNotFoundError, match="is neither a file nor a checkpoint"):
        checkpoints.locate(tmp_path)
    (tmp_path / checkpoints.WEIGHTS).write_bytes(b"others")  # now it is a folder as the hub lays them out
    assert checkpoints.locate(tmp_path) == tmp_path
    assert checkpoints.sha256_of(tmp_path) == hashlib.sha256(b"others").hexdigest()


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
    for state in read:
        assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)
    assert left(tmp_path) == ["a.pth", "a.safetensors", "b.pt"]  # nothing is written beside what is read


def small_sam(checkpoint=None):
    """A SAM of the package's classes that sees 64 pixels."""
    return Sam(
        ImageEncoderViT(
            img_size=64, embed_dim=8, depth=2, num_heads=2, out_chans=16, use_rel_pos=True, window_size=2,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), global_attn_indexes=[1],
        ),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=16, transformer=TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=8, num_heads=2)
        ),
    )  # fmt: skip


def test_meta_s_file_of_a_sam_is_loaded_whole(tmp_path, monkeypatch):
    with torch.device("meta"):  # names without memory
        official = {re.sub(r"blocks\.\d+", "blocks.0", key) for key in sam.sam_model_registry["vit_b"]().state_dict()}
    torch.manual_seed(1)
    expected, path = small_sam().state_dict(), tmp_path / "sam_vit_b_01ec64.pth"
    assert {re.sub(r"blocks\.\d+", "blocks.0", key) for key in expected} == official
    torch.save(expected, path)
    monkeypatch.setitem(sam.sam_model_registry, "vit_b", small_sam)
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    known = dataclasses.replace(checkpoints.LISTED["sam_vit_b"], sha256=files.sha256(path))
    monkeypatch.setitem(checkpoints.LISTED, "sam_vit_b", known)
    loaded = sam.load("sam_vit_b")
    assert not loaded.training
    loaded = loaded.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_file_that_runs_code_is_not_opened(tmp_path):
    class Code:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    torch.save({"weight": Code()}, tmp_path / "net.pth")
    for load in (checkpoints.load_sam_state, checkpoints.load_clip_state):
        with pytest.raises(ValueError, match="net.pth is not a readable checkpoint .Weights only load failed"):
            load(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("load", [checkpoints.load_sam_state, checkpoints.load_clip_state])
def test_a_broken_checkpoint_is_named(load, name, tmp_path):
    path = tmp_path / name
    write = torch.save if path.suffix == ".pth" else save_file
    write(nn.Linear(2, 2).state_dict(), path)
    assert set(load(path)) == {"weight", "bias"}
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{name} is not a readable checkpoint .*: fetch it again"):
        load(path)


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
    small = CLIP(
        embed_dim=6,
        image_resolution=16,
        vision_layers=2,
        vision_width=64,
        vision_patch_size=4,
        context_length=12,
        vocab_size=300,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    convert_weights(small)
    settings = {"input_resolution": 16, "context_length": 12, "vocab_size": 300}
    state = small.state_dict() | {key: torch.tensor(value) for key, value in settings.items()}
    assert {value.dtype for value in small.state_dict().values()} == {torch.float16, torch.float32}
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.save(archive(state), path)
    known = checkpoints.Checkpoint("ViT-B/16", "MIT", files.sha256(path), "https://example.org/ViT-B-16.pt")
    monkeypatch.setattr(checkpoints, "clip_checkpoints", lambda: {"ViT-B/16": known})
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    official = clip.load(str(path), device="cpu", jit=False)[0].state_dict()
    monkeypatch.setattr(torch.jit, "load", lambda *what, **how: pytest.fail("it may run code"))
    loaded = dense.load("ViT-B/16").state_dict()
    assert loaded.keys() == official.keys()
    assert all(torch.equal(loaded[key], official[key]) for key in official)
    encoder = dense.build(checkpoint="ViT-B/16", features="plain", image_size=24)
    (features,) = encoder.images([torch.zeros(24, 24, 3, dtype=torch.uint8).numpy()])
    assert features.shape == (6, 6, 6)  # its position embedding is for 4 x 4 patches
