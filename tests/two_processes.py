"""What tests/test_distributed.py starts twice at once: each process learns from its share of each batch."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reference_training
import torch
from test_training import colour_label, squares

from plg_utils import distributed, losses, training

OPTIONS = {"steps": 2, "batch_size": 4, "crop_size": 8, "lr": 0.01, "log_every": 1, "progress": None}
CASES = {  # name: loss, its options, options of fit
    "fusion": ("unimatch", {"refine_target": "fusion", "threshold": 0.4}, {"ema": 0.9}),
    "fast": ("unimatch", {"refine_target": "fusion", "threshold": 0.4, "passes": "fast"}, {}),
    "unimatch": ("unimatch", {"threshold": 0.4}, {"cutmix_partner": "view"}),
    "fixmatch": ("fixmatch", {"threshold": 0.4}, {}),
    "semivl": ("semivl", {"threshold": 0.4}, {}),
    "supervised": ("supervised", {}, {}),
}


def train(case: str, state: Path) -> dict:
    """Train a tiny network; the history and the weights of this process."""
    name, of_loss, of_fit = CASES[case]
    torch.manual_seed(distributed.rank())  # each its own: nothing may depend on it
    model = reference_training.tiny(width=8)
    history = training.fit(
        model,
        losses.build(name, **of_loss),
        squares(5),
        squares(7, truth=False),
        pseudo_label=colour_label,
        state_file=state,
        **OPTIONS | of_fit,
    )
    weights = {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}
    return {"history": history, "weights": weights}


def main(folder: Path, rank: int, port: int) -> None:
    """Be one of the two processes, as torchrun would start it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    distributed.start("cpu")
    found = {case: train(case, folder / f"{case}.safetensors") for case in CASES}
    (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.stop()
