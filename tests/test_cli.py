"""The command plg: a folder of photos in, label maps, overlays and a page out; again where it was stopped."""

import json
import os
import re
import shlex
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from plg_utils import __main__ as plg
from plg_utils import checkpoints, class_files, figures, files, stages
from plg_utils.datasets import folder, storybook
from plg_utils.masks import _everything

NAMES = ("scène #1", "100 % <b>", "c&d")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with three scenes of the storybook, and the label map of one; PLG_RESULTS is put back afterwards."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        scene = storybook.draw(1000 + number)
        files.write_image(tmp_path / "my photos" / f"{name}.jpg", scene.image)
    files.write_label(tmp_path / "maps" / f"{NAMES[0]}.png", np.minimum(storybook.draw(1000).label, 2))
    return "my photos"


def call(*arguments):
    return plg.main(["label", *arguments, "--device", "cpu"])


def stopped(*_, **__):
    raise KeyboardInterrupt


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, path):
        super().__init__()
        self.places, self.text = [], path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self.places += [unquote(value) for name, value in attributes if name in ("src", "href")]


def test_a_folder_of_photos_is_labelled(photos, capsys):
    assert call(photos, "--classes", "tree, house", "--to", "out") == 0
    printed = capsys.readouterr()
    assert len(re.findall("warning: without --(sam|clip), .* knows only the ten things", printed.err)) == 2
    assert "3 photos, 3 classes: 0 background, 1 tree, 2 house" in printed.out
    shares = [float(share) for share in re.findall(r"^ +([\d.]+)%  ", printed.out, re.MULTILINE)]
    assert len(shares) > 1 and shares == sorted(shares, reverse=True)
    assert "Threshold: 0.20, the default." in printed.out
    out, source = Path("out"), Path("out/run/labels_zero_shot")
    maps = {name: files.read_label(out / "labels" / f"{name}.png", 3) for name in NAMES}
    for name, label in maps.items():
        np.testing.assert_array_equal(label, files.read_label(source / f"{name}.png"))
        assert Image.open(out / "labels" / f"{name}.png").mode == "P"
        assert Image.open(out / "overlays" / f"{name}.jpg").size == label.shape[::-1]
    page = Page(out / "index.html")
    of_photos = [f"../my photos/{name}.jpg" for name in NAMES]
    wanted = [place for name in NAMES for place in (f"labels/{name}.png", f"overlays/{name}.jpg")] + of_photos
    assert sorted(page.places) == sorted(wanted)
    assert "<b>100 % &lt;b&gt;</b>" in page.text and f"{NAMES[0]}.png" not in page.text  # in an address # is an end
    pixels = np.concatenate([label.ravel() for label in maps.values()])
    for value, name in ((0, "background"), (1, "tree"), (2, "house"), (255, "no label")):
        share = f"{(pixels == value).mean():.1%}"
        assert re.search(rf"<td>{value}<td><i [^>]*></i>{name}\s*<td>{share}", page.text)
        assert (f"{share}  {value:>3}  {name}" in printed.out) == (value in pixels)  # the page has all classes
    assert (out / "labels" / "class_names.txt").read_text() == "background\ntree\nhouse\n"
    assert class_files.read(out / "labels" / "classes.yaml").names == ("background", "tree", "house")


@pytest.mark.parametrize(
    ("classes", "says"), [("own.yaml", '2 classes: 0 "tree, green", 1 house'), ("camvid", "11 classes: 0 sky, 1 build")]
)
def test_without_a_background_numbers_start_at_0(classes, says, photos, capsys):
    Path("own.yaml").write_text("classes: [{name: 'tree, green', words: [tree]}, house]\n")
    assert call(photos, "--classes", classes, "--to", "out") == 0
    printed = capsys.readouterr().out
    assert f"3 photos, {says}" in printed and "\nno background: every segment is one of these" in printed


def test_the_same_command_goes_on_and_does_nothing_twice(photos, monkeypatch, capsys):
    options = (photos, "--classes", "tree, house", "--to", "out")
    real, asked = stages.segments, []
    monkeypatch.setattr(stages, "segments", stopped)
    assert call(*options) == 130
    assert "The same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(stages, "segments", real)
    masks = {path: path.stat().st_mtime_ns for path in Path("out/run/masks").glob("*")}
    assert {Path(f"out/run/masks/{name}.json") for name in NAMES} < masks.keys()
    assert call(*options) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in masks.items() if path.name != "manifest.json")
    monkeypatch.setattr(figures, "overlay", lambda *given: asked.append(given) or given[0])
    assert call(*options) == 0 and not asked
    photo = Path(photos, f"{NAMES[0]}.jpg")
    photo.write_bytes(photo.read_bytes() + b"another photo of the same map")
    os.utime(photo, (1, 1))  # as programs do that unpack or copy an older photo
    assert call(*options) == 0 and len(asked) == 1
    asked.clear()
    named = [path for path in Path("out/labels").glob("*.png") if (files.read_label(path) % 255).any()]
    assert call(*options, "--threshold", "0.9") == 0 and len(asked) == len(named) > 0  # those that are other maps now
    assert not any((files.read_label(path) % 255).any() for path in named)
    Path(photos, f"{NAMES[2]}.jpg").unlink()
    assert call(*options, "--threshold", "0.9") == 0
    assert {path.stem for path in Path("out/labels").glob("*.png")} == set(NAMES[:2])
    assert {path.stem for path in Path("out/overlays").iterdir()} == set(NAMES[:2])


def test_results_that_another_process_makes_are_left_to_it(photos, capsys):
    with files.lock(Path("out/run/run.lock")) as holder:
        assert holder == "" and call(photos, "--classes", "tree", "--to", "out") == 2
    said = f"plg label: {Path('out').absolute()} is being made by process {os.getpid()} on "
    assert said in capsys.readouterr().err and [path.name for path in Path("out/run").iterdir()] == ["run.lock"]
    assert call(photos, "--classes", "tree", "--to", "out") == 0


def test_what_a_person_has_corrected_is_kept(photos, capsys):
    options = (photos, "--classes", "tree, house", "--to", "out")
    assert call(*options) == 0
    corrected = Path(f"out/labels/{NAMES[1]}.png")
    files.write_label(corrected, np.ones_like(files.read_label(corrected)))
    before = corrected.read_bytes()
    for more in ((), ("--threshold", "0.5")):
        assert call(*options, *more) == 2
        assert "1 label maps in" in (said := capsys.readouterr().err) and "were changed by hand, e.g. 100 %" in said
    assert corrected.read_bytes() == before


def test_labels_of_a_few_photos_choose_the_threshold(photos, capsys):
    Path("own.yaml").write_text("background: []\nclasses: [tree, house]\n")
    assert call(photos, "--classes", "own.yaml", "--labels", "maps", "--to", "out") == 0
    chosen = files.read_json("out/run/labels_zero_shot/manifest.json")["parameters"]["threshold"]
    assert f"Threshold: {chosen:.2f}, the best on 1 photos with labels." in capsys.readouterr().out
    assert len(list(Path("out/labels").glob("*.png"))) == 3


def test_given_label_maps_are_in_the_output(photos, capsys):
    options = (photos, "--classes", "tree, house", "--labels", "maps", "--to", "out")
    given = files.read_label(f"maps/{NAMES[0]}.png")
    for changed in (False, False, True):  # the second time nothing is new
        if changed:
            given[given == 1] = 255
            files.write_label(f"maps/{NAMES[0]}.png", given)
        assert call(*options) == 0
        np.testing.assert_array_equal(files.read_label(f"out/labels/{NAMES[0]}.png"), given)
        for name in NAMES[1:]:
            made = Path(f"out/run/labels_zero_shot/{name}.png").read_bytes()
            assert Path(f"out/labels/{name}.png").read_bytes() == made
        assert "Photos that keep the label map they have: 1." in capsys.readouterr().out
        captions = re.findall("<figcaption>.*?</figcaption>", Path("out/index.html").read_text(), re.DOTALL)
        marked = ["(given label map)" in caption for caption in captions]
        assert marked == [name == NAMES[0] for name in sorted(NAMES)]
    overlay = np.asarray(Image.open(f"out/overlays/{NAMES[0]}.jpg"))
    photo = files.read_image(f"{photos}/{NAMES[0]}.jpg")
    right = figures.overlay(photo, given, class_files.parse(["tree", "house"]))
    assert np.abs(overlay.astype(int) - right).mean() < 3  # a JPEG


def test_the_labels_of_other_photos_are_not_replaced(photos, capsys, monkeypatch):
    """Photos that were moved are the same ones."""
    assert call(photos, "--classes", "tree", "--to", "out") == 0
    before = {path: path.read_bytes() for path in Path("out/labels").iterdir()}
    files.write_image(Path("party", "a.jpg"), storybook.draw(1).image)
    assert call("party", "--classes", "tree", "--to", "out") == 2
    assert "out holds the labels of " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("out/labels").iterdir()} == before
    Path(photos).rename("moved")
    Path("again").symlink_to("moved")
    monkeypatch.setattr(stages, "masks", stopped)
    for place in ("moved", "again"):
        assert call(place, "--classes", "tree", "--to", "out") == 130


def test_a_folder_that_a_system_has_looked_into_is_empty(photos, monkeypatch):
    Path("out").mkdir()
    Path("out", ".DS_Store").touch()
    monkeypatch.setattr(stages, "masks", stopped)
    assert call(photos, "--classes", "tree", "--to", "out") == 130


NAMES_TYPED = ["cat, big dog", "cat;big dog", "cat|big dog", "cat\nbig dog\n", "cat\tbig dog", "[cat, big dog]"]
NAMES_TYPED += ['["cat", "big dog"]', "'cat', 'big dog'", '"cat","big dog",', "cat，big dog", "cat\u200b、 big dog"]
NAMES_TYPED += ["- cat\n- big dog", "0: cat\n1: big dog", "{0: cat, 1: big dog}", '{"names": ["cat", "big dog"]}']


@pytest.mark.parametrize("text", NAMES_TYPED)
@pytest.mark.parametrize("coding", [None, "utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_classes_as_people_write_them(text, coding, tmp_path):
    """Typed after --classes, or in a file of an editor of Windows."""
    given = text
    if coding:
        given = str(tmp_path / "classes.txt")
        Path(given).write_bytes(text.replace("\n", "\r\n").encode(coding))
    assert folder._classes(plg._classes(given), ()).names == ("background", "cat", "big dog")


def test_a_column_of_a_table_is_a_list(tmp_path):
    given = tmp_path / "names.csv"
    given.write_text("Name\r\ncat\r\nbig dog\r\n")
    with pytest.warns(UserWarning, match="'Name' is the head of the column, and no class"):
        assert folder._classes(plg._classes(str(given)), ()).names == ("background", "cat", "big dog")
    given.write_text("id,name\n1,cat\n2,dog\n")
    with pytest.raises(ValueError, match="of a table, keep only the column of names"):
        folder._classes(plg._classes(str(given)), ())


def test_the_remedy_for_a_name_with_a_comma_keeps_the_numbers():
    with pytest.raises(ValueError, match="is no single name") as said:
        plg._classes('"cat, black", dog')
    typed = re.search(r"takes any name: (\{.*\})$", str(said.value))[1]
    found = folder._classes(plg._classes(typed), ())
    assert (found.names, found.background) == (("background", "cat, black", "dog"), 0)


def test_words_of_the_background_are_read_as_names_are(photos, monkeypatch, capsys):
    monkeypatch.setattr(stages, "masks", stopped)
    Path("bg.txt").write_text("wall\nblue sky\n")
    Path("names.txt").write_text("tree\nhouse\n")
    Path("bg.csv").write_text("name\nwall\nblue sky\n")  # the head was a word
    for number, words in enumerate(("wall, blue sky", "bg.txt", "bg.csv")):
        assert call(photos, "--classes", "names.txt", "--background", words, "--to", f"out{number}") == 130
        given = files.read_json(f"out{number}/run/run.json")["dataset_options"]
        assert folder._classes(given["classes"], given["background"]).words[0] == ("wall", "blue sky")
    Path("bg.yaml").write_text("background: [wall]\nclasses: [tree]\n")
    assert call(photos, "--classes", "names.txt", "--background", "bg.yaml", "--to", "out") == 2
    assert "must be a list of words, such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1. cat, 2. dog", "'1. cat' is no single name"),
        ("cat: 1, dog: 2", "'cat: 1' is no single name"),
        ("cat, dog # pets", "'dog # pets' is no single name"),
        ("cat, kitten\ndog", "'cat, kitten' is no single name"),
        ("name,colour\ncat,red", "'name,colour' is no single name"),
        ("# label:color_rgb\ncat:1,2,3::", "is no single name"),
        ("0 cat\n1 dog", "'0 cat' is no single name"),
        ("cat\tred\ndog\tblue", "is no single name"),
        ("cafe\u0301, caf\u00e9", "share the word"),
        ("background", "beside the background"),
        (", ".join(f"thing {index}" for index in range(300)), "301 classes do not fit"),
    ],
)
def test_what_is_no_list_of_names_is_refused(text, says, tmp_path):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    for given in (text, str(tmp_path / "classes.txt")):
        with pytest.raises(ValueError, match=re.escape(says)):
            folder._classes(plg._classes(given), ())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("'my photo'", "my photo is not a folder: PHOTOS must be the folder of your"),
        ("--classes a.yaml", "a.yaml: give the path of one, or names: cat, dog"),
        ("--classes '[/photos/classes.txt]'", "'/photos/classes.txt' is the name of a file"),
        ("--classes photos/classes", "'photos/classes' is no single name and no file that is there"),
        ("--classes '{classes: [cat]}' --background wall", 'write `background: ["wall"]` into it'),
        ("--background no.txt", "no.txt does not exist"),
        ("--classes a,a", "more than once: a"),
        ("--to 'my photos'", "is no folder that this command has written"),
        ("''", "PHOTOS, --to or --labels is empty: is a variable of the shell not set?"),
        ("--to ''", "PHOTOS, --to or --labels is empty"),
        ("--labels ''", "PHOTOS, --to or --labels is empty"),
        ("--threshold 20", "--threshold is 20, and right is a cosine"),
        ("'my photos' --classes cat, dog", "dog: this is one word too many"),
        ("--label maps2 --clas a --no b", "--no b: this is one word too many, or no option"),
        ("--classes ', '", 'name what to look for: --classes "cat, dog", or a class file'),
        ("--bands 4,3", "must be a list of one or three numbers of bands: --bands 4,3,2"),
        ("--sam sam_x", "'sam_x' is neither a file nor a checkpoint"),
        ("--clip B/16", "'B/16' is neither a file nor a checkpoint"),
        ("--labels no", "no is not there: --labels must name"),
        ("--device tpu", "device 'tpu' is not known"),
    ],
)
def test_bad_input_is_refused_in_a_line_before_any_work(changed, says, photos, capsys, monkeypatch):
    monkeypatch.setattr(stages, "masks", lambda *_, **__: pytest.fail("it has begun"))
    given = ["--classes", "a", "--to", "out", *shlex.split(changed)]  # of an option given twice the second counts
    assert plg.main(["label", *([photos] if changed.startswith("-") else []), *given]) == 2
    *_, last = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert last.startswith("plg label: ") and says in last


def test_numbers_of_bands_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        plg.main(["label", "photos", "--classes", "a", "--to", "out", "--bands", "a,b"])
    assert "'a,b' are no numbers of bands, counted from 1, such as 4,3,2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sam", "clip", "files_of_them"),
    [(None, None, ("sam", "clip")), ("hub:a/sam-of-theirs", "ViT-B-16-quickgelu:openai", ("hf", "open_clip"))],
)
def test_a_name_says_which_file_loads_the_model(sam, clip, files_of_them, monkeypatch):
    located = []
    monkeypatch.setattr(checkpoints, "locate_weights", located.append)  # else it would be fetched
    given = ["label", "photos", "--classes", "a", "--to", "out", "--tile", "512"]
    for option, name in (("--sam", sam), ("--clip", clip)):
        given += [option, name] if name else []
    masks, encoder = plg._models(plg.parser().parse_args(given))
    assert (masks["mask_model"], encoder["encoder"]) == files_of_them
    assert located == [sam or "miniature_sam", clip or "miniature_clip"]  # CLIP's were fetched after all of SAM's work
    assert masks["mask_options"] == {"checkpoint": sam or "miniature_sam", "tile": 512}
    assert encoder["encoder_options"] == {"checkpoint": clip or "miniature_clip", "tile": 512}
    zero = plg._models(plg.parser().parse_args([*given, "--tile", "0"]))
    assert [zero[0]["mask_options"]["tile"], zero[1]["encoder_options"]["tile"]] == [0, 0]  # which they refuse


def test_an_unreadable_photo_stops_or_is_left_out(photos, capsys):
    Path(photos, "broken.jpg").write_bytes(b"no jpeg")
    assert call(photos, "--classes", "tree", "--to", "out") == 2
    said = capsys.readouterr().err
    assert "1 of 4 photos cannot be read" in said and said.endswith("or leave them out by --skip-unreadable\n")
    assert call(photos, "--classes", "tree", "--to", "out", "--skip-unreadable") == 0
    assert len(list(Path("out/labels").glob("*.png"))) == 3


def test_remedies_are_options_of_the_command(photos, capsys, monkeypatch):
    files.write_image(Path(photos, "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    files.write_image(Path(photos, "a_mask.png"), np.zeros((20, 20, 3), np.uint8))
    files.write_label("maps/a.png", np.full((20, 20), 255, np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files.write_image(Path(photos, "noise.png"), noise)
    assert call(photos, "--classes", "tree, house", "--labels", "maps", "--to", "out") == 0
    printed = capsys.readouterr()
    assert "1 files of" in printed.err and "move them into a folder that --labels names" in printed.err
    assert "2 photos have no label at all: a, noise\n" in printed.out
    assert "warning: no mask of noise passes the thresholds, its best predicted IoU is" in printed.err
    sam = types.SimpleNamespace(pred_iou_thresh=0.88, stability_score_thresh=0.95)
    for best in (0.5, 0.9):
        with pytest.warns(UserWarning) as said:
            _everything.SegmentEverything.tell_why(sam, best)
        assert plg._in_its_words(said[0].message).endswith("it gets no label. Another --sam, or --tile, may find some")
    said = plg._in_its_words("cannot be locked (no): let PLG_RESULTS name a disk that can")
    assert said == "cannot be locked (no): give --to the name of a disk that can"
    assert plg._in_its_words(f"unknown; {files.CHOOSE}") == "unknown; --bands 4,3,2 would choose what to show"
    assert plg._in_its_words("no map. Or label other images (options labelled and seed)") == "no map"


def test_labels_go_on_to_annotation_tools_and_back(photos, capsys):
    assert call(photos, "--classes", "tree, house", "--to", "out") == 0
    assert plg.main(["export", photos, "--to", "review"]) == 1
    assert f"{photos} was not written by plg label, and is no run in" in capsys.readouterr().err
    assert plg.main(["export", "--least", "2", "out", "--to", "review", "--form", "yolo,coco"]) == 0
    assert "read them:    plg export --read review --to LABELS\n" in capsys.readouterr().out
    content = files.read_json("review/coco.json")
    content["annotations"] = [row | {"category_id": 2} for row in content["annotations"]]
    content["annotations"][-1] |= {"category_id": 1}
    files.write_json("review/coco.json", content)
    assert plg.main(["export", "--read", "review", "--to", "back", "--form", "coco"]) == 0
    Path("back/classes.yaml").write_text("background: []\nclasses: [{name: tree, words: [oak]}, house]\n")
    assert plg.main(["export", "--read", "review", "--to", "back", "--form", "coco"]) == 0
    assert class_files.read("back/classes.yaml").words[1] == ("oak",)  # as the person wrote it
    *_, line = capsys.readouterr().out.splitlines()
    typed = shlex.split(line.replace("PHOTOS", f"'{photos}'").replace("NEW", "new"))
    assert plg.main([*typed[1:], "--device", "cpu"]) == 0  # what it says to type, typed
    for path in Path("back").glob("*.png"):
        np.testing.assert_array_equal(files.read_label(Path("new/labels", path.name)), files.read_label(path))
    assert plg.main(["export", "new", "--all", "--to", "all"]) == 0
    assert call(photos, "--classes", "tree, house", "--labels", "all", "--to", "other") == 2  # not yet read
    assert "/all --to LABELS makes label maps of it: name LABELS" in capsys.readouterr().err
    assert {path.stem for path in Path("all/labels").iterdir()} == set(NAMES)  # also those with label maps
    assert call(photos, "--classes", "tree, house", "--labels", "all/labels", "--to", "known") == 0
    capsys.readouterr()
    assert plg.main(["export", "known", "--all", "--to", "again"]) == 0  # no photo is unlabelled
    assert "next round" not in capsys.readouterr().out
    assert {path.stem for path in Path("again/labels").iterdir()} == set(NAMES)


def test_what_was_written_is_no_label_of_a_person(photos, capsys):
    own = (photos, "--classes", "tree, house", "--to", "out")
    assert call(*own) == 0
    for place in ("out/labels", "out/run/labels_zero_shot"):
        assert call(*own, "--labels", place) == 2
        assert f"{place} holds what this command has written, and would count as" in capsys.readouterr().err
    assert call(*own, "--labels", "out") == 2
    assert "name a single json itself, of COCO or Label Studio, or its folder labels, which" in capsys.readouterr().err
    assert call(*own[:-1], "other", "--labels", "out/labels") == 0
    assert "out/labels are as plg label has written them, e.g. " in capsys.readouterr().err
    Path("out/labels").rename("mine")
    assert call(*own, "--labels", "mine") == 0


def test_other_commands_are_handed_over(monkeypatch, capsys, tmp_path):
    """To the modules that have them, with all arguments; without notebooks the two of them say so."""
    called = []
    for name in ("doctor", "run"):
        module = types.SimpleNamespace(main=lambda arguments, name=name: called.append((name, arguments)) or 3)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["plg"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert plg.main(["run", "demo", "-p", "seed", "1"]) == 3 and plg.main(["doctor"]) == 3
    assert called == [("run", ["demo", "-p", "seed", "1"]), ("doctor", [])]
    monkeypatch.setattr(plg, "NOTEBOOKS", tmp_path)
    assert plg.main(["run", "demo"]) == plg.main(["doctor"]) == 2
    assert "which the installed package does not hold: clone the repository" in capsys.readouterr().err


def test_the_settings_are_those_of_the_notebook_and_the_command_is_installed():
    notebook = json.loads((plg.NOTEBOOKS / "02_zero_shot_labels.ipynb").read_text(encoding="utf-8"))
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    known = {}
    exec("".join(cell["source"]), known)  # noqa: S102
    assert {name: known[name] for name in plg.SETTINGS} == plg.SETTINGS
    shown = subprocess.run([sys.executable, "-m", "plg_utils", "--help"], capture_output=True, text=True, check=True)
    assert all(f"    {name} " in shown.stdout for name in ("label", *plg.OTHERS))
    assert 'plg = "plg_utils.__main__:main"' in (files.ROOT / "pyproject.toml").read_text(encoding="utf-8")
