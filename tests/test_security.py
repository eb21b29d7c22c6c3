"""What files, lists and servers of strangers cannot do here; SECURITY.md tells the same in words."""

import ast
import os
import pickle
import re

import pytest
import torch
from torch import nn

from conftest import NO_IMAGES, colour_squares
from plg_utils import checkpoints, datasets, files, store

CODE = sorted(path for part in ("plg_utils", "notebooks", "benchmarks") for path in (files.ROOT / part).rglob("*.py"))
NOTEBOOKS = sorted((files.ROOT / "notebooks").rglob("*.ipynb"))


# The source: nothing unpickles, no YAML builds objects, no text becomes a command

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
EXECUTE = {"eval", "exec", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pd.read_pickle"}
OURS = {  # what is opened here is known: OpenAI's archives by their SHA-256
    "plg_utils/checkpoints.py": ["torch.jit.load"],
}


def source_of(path):
    """Code of a file; of a notebook, of all its cells."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = files.read_json(path)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE)


def dangers(code):
    """What in a source could run what is in a file."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in EXECUTE | SHELLS or name.endswith("jit.load"):
            yield name
        elif name.split(".")[-1] == "load" and name.startswith("torch.") and options.get("weights_only") != "True":
            yield f"{name} without weights_only=True"
        elif name in ("yaml.load", "yaml.load_all"):
            loader = options.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "none")
            if loader not in ("Loader", "loader", "yaml.SafeLoader"):  # the first two are tried in test_bad_inputs
                yield f"{name} with the loader {loader}"
        elif re.search(r"yaml\.(unsafe|full)_load", name):
            yield name
        for option, value in (("shell", "True"), ("allow_pickle", "True"), ("trust_remote_code", "True")):
            if options.get(option) == value:
                yield f"{option}={value}"
        if options.get("escape") in ("False", "None") or name in ("HTML", "Markdown", "Javascript", "SVG"):
            yield "HTML that is not escaped"


@pytest.mark.parametrize("path", [*CODE, *NOTEBOOKS], ids=lambda path: path.relative_to(files.ROOT).as_posix())
def test_no_code_runs_what_is_in_a_file(path):
    name = path.relative_to(files.ROOT).as_posix()
    assert sorted(dangers(source_of(path))) == sorted(OURS.get(name, []))


def test_the_search_finds_each_danger():
    for line in (
        "import pickle", "from dill import loads", "import joblib as j", "eval(text)", "exec(text)",
        "os.system('ls')", "torch.load(path)", "torch.load(path, weights_only=False)", "torch.jit.load(path)",
        "yaml.load(text, yaml.Loader)", "yaml.load(text)", "yaml.unsafe_load(text)", "np.load(path, allow_pickle=True)",
        "subprocess.run('ls', shell=True)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "pd.read_pickle(path)", "table.to_html(escape=False)", "table.style.format(escape=None)",
    ):  # fmt: skip
        assert list(dangers(line)), line
    for line in ("torch.load(path, weights_only=True)", "yaml.safe_load(text)", "np.load(path)", "files.load(path)"):
        assert not list(dangers(line)), line


# Weights


class Bomb:
    """A pickle that makes a folder."""

    def __init__(self, victim):
        self.victim = str(victim)

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.fixture
def victim(tmp_path):
    """A folder that must not come to be."""
    yield tmp_path / "it_ran"
    assert not (tmp_path / "it_ran").exists()


LOADERS = (checkpoints.load_sam_state, checkpoints.load_clip_state)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
def test_a_pickle_is_not_opened(load, name, form, tmp_path, victim):
    path = tmp_path / name
    if form == "pickle":
        path.write_bytes(pickle.dumps({"weight": Bomb(victim)}))
    else:
        torch.save({"weight": Bomb(victim)}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match=f"{name} is not a readable checkpoint"):
        load(path)


def test_the_pickle_would_run(tmp_path):
    """What the tests above would miss if the bomb was a dud."""
    torch.save({"weight": Bomb(tmp_path / "ran")}, tmp_path / "net.pth")
    torch.load(tmp_path / "net.pth", weights_only=False)  # noqa: S614  our own bomb
    assert (tmp_path / "ran").exists()


class Writer(nn.Module):
    """A module that writes a file when it is loaded from a TorchScript archive."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.zeros(2))

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.path = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x):
        return x


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_stranger_s_archive_is_not_opened(name, tmp_path, victim):
    path = tmp_path / name
    torch.jit.save(torch.jit.script(Writer(str(victim))), path)
    with pytest.raises(ValueError, match=f"{name} is a TorchScript archive and not one of OpenAI's"):
        checkpoints.load_clip_state(path)
    with pytest.raises(ValueError, match=f"{name} is not a readable checkpoint"):
        checkpoints.load_sam_state(path)
    assert not victim.exists()
    torch.jit.load(path)  # what happens only to files whose SHA-256 is listed
    victim.unlink()


# Names from lists, and of images, classes and runs

OUTSIDE = ("../out", "..", "a/../../out", "/etc/passwd", "\\\\host\\share", "a\\..\\out", ".hidden", "", "a\0b", "a\nb")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_id_or_run_names_a_file_elsewhere(name, tmp_path):
    for refuse in (files.check_stem, store.run_folder):
        with pytest.raises(ValueError, match="cannot be a file name"):
            refuse(name)


OUT = "JPEGImages/../../out.jpg SegmentationClass/out.png"
CAMVID = ("train/../../out.png trainannot/../../out.png", "train/.. trainannot/..")


@pytest.mark.parametrize("line", ["../out", "/etc/passwd", OUT, "/a/b.jpg /a/b.png", *CAMVID])
def test_a_list_of_images_stays_below_the_root(line, tiny_root):
    name, folder = ("camvid", tiny_root) if line in CAMVID else ("voc", tiny_root / "ImageSets" / "Segmentation")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text(f"{line}\n")
    (folder / "val.txt").write_text("01\n")
    for part in ("train", "val"):
        files.write_image(tiny_root / part / "a.png", colour_squares(0).image)
        files.write_label(tiny_root / f"{part}annot" / "a.png", colour_squares(0).truth)
    if name == "camvid":
        (folder / "val.txt").unlink()
    files.write_image(tiny_root.parent / "out.jpg", colour_squares(0).image)
    with pytest.raises((ValueError, FileNotFoundError), match="train.txt, line 1|train.txt are not below"):
        datasets.load(name, root=tiny_root, labelled=1)


def test_a_json_s_file_names_only_tell_which_photo_is_meant(tmp_path):
    """COCO's file_name may hold folders, which are not followed: its stem is looked up among the photos."""
    files.write_image(tmp_path / "photos" / "a.png", colour_squares(0).image)
    names = enumerate(("../../../a.png", "/etc/passwd"))
    content = {"images": [{"id": id, "file_name": name, "height": 16, "width": 24} for id, name in names]}
    note = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    content |= {"categories": [{"id": 1, "name": "cat"}], "annotations": [note]}
    files.write_json(tmp_path / "own.json", content)
    data = datasets.load("folder", root=tmp_path / "photos", classes=["cat"], labels=tmp_path / "own.json", labelled=1)
    assert [sample.id for sample in (*data.labelled, *data.unlabelled)] == ["a"]


def test_a_stage_removes_nothing_outside_its_folder(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "masks").mkdir()
    stage = {"dataset": NO_IMAGES, "parameters": {}}
    store.stage(tmp_path / "masks", **stage).finish()
    files.write_json(tmp_path / "masks" / "outputs.json", {"../mine.txt": {}, str(mine): {"photo": "1"}})
    store.stage(tmp_path / "masks", **stage | {"parameters": {"other": 1}})
    assert mine.read_text() == "mine"


# What is told


def test_security_md_tells_what_the_code_does():
    told = (files.ROOT / "SECURITY.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", told)
    named = re.findall(r"`(plg_utils/[\w/.]+|tests/[\w/.]+)`", told)
    assert targets or named
    for name in targets + named:
        assert (files.ROOT / name).exists(), name
    assert f"{checkpoints.LARGEST >> 30} GiB" in told
