"""What goes wrong outside: a full disk, a folder that nobody may write to. Nothing half-written, and a clear word."""

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_pipeline import do_stages, of_world, tiny

from plg_utils import files, training
from plg_utils.records import Masks

sys.path.append(str(files.ROOT / "tests" / "torture"))

import fuzz  # noqa: E402  it is beside the tests


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_the_fuzzer_begins_with_a_file_that_can_be_read(tmp_path, kind):
    # Else `make torture`, which runs seldom, would not find out what damage does, but stop.
    assert len(fuzz.damage(kind, 2, 0, tmp_path)) == 2


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount(place, "size=64k")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a tensor may still be mapped from it


def mount(place, options, again=False):
    command = ["mount", "-t", "tmpfs", "-o", f"remount,{options}" if again else options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if done.returncode:
        pytest.skip(f"no small disk can be made here, which needs root: {done.stderr.strip()}")


def fill(place):
    """Leave no byte free."""
    with open(place / "fills", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


NOISE = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
WRITERS = {
    "label.png": lambda path: files.write_label(path, NOISE[..., 0]),
    "image.jpg": lambda path: files.write_image(path, NOISE),
    "masks.json": lambda path: files.write_masks(path, Masks.from_dense(NOISE.transpose(2, 0, 1) > 128)),
    "table.json": lambda path: files.write_json(path, NOISE[:20, :20]),
    "embeddings.safetensors": lambda path: files.write_embeddings(path, torch.zeros(90, 90)),
    "weights.safetensors": lambda path: files.write_weights(path, torch.nn.Linear(90, 90)),
    "state.safetensors": lambda path: training.save_state(
        path, {}, torch.nn.Linear(90, 90), torch.optim.SGD([torch.zeros(1)]), None, [], 1
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_what_was_there(name, disk):
    path = disk / name
    WRITERS[name](path)
    before = path.read_bytes()
    fill(disk)
    with pytest.raises(OSError, match=rf"the disk is full: {path} was not written.*Free some space") as error:
        WRITERS[name](path)
    assert error.value.errno == 28
    assert path.read_bytes() == before
    assert sorted(each.name for each in disk.iterdir()) == sorted(["fills", name])


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written_is_named(name, disk):
    mount(disk, "ro", again=True)
    with pytest.raises(OSError, match=str(disk)):
        WRITERS[name](disk / name)


def test_a_run_goes_on_when_there_is_space_again(world, disk, tmp_path, monkeypatch):
    parameters, written = tiny(["02"], **of_world(world)), {}
    for place in (tmp_path / "roomy", disk):
        monkeypatch.setenv("PLG_RESULTS", str(place))
        if place == disk:
            with pytest.raises(OSError, match="the disk is full"):
                do_stages(parameters)
            assert not [path for path in disk.rglob("*.partial")]
            mount(disk, "size=64m", again=True)
        do_stages(parameters)
        paths = [path for path in place.rglob("*.*") if path.is_file() and path.name != "manifest.json"]
        written[place] = {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}
    assert len(written[disk]) > 12 and written[disk] == written[tmp_path / "roomy"]


def test_a_quota_counts_as_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="the disk is full: .*masks.json was not written. Free some space"):
        with files.atomic(tmp_path / "masks.json"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(OSError, match="Input/output error"):
        with files.atomic(tmp_path / "masks.json"):
            raise OSError(errno.EIO, "Input/output error")
    assert not list(tmp_path.iterdir())
