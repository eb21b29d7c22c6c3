"""How long a step of UniMatch takes, beside the loop of its authors: python benchmarks/bench_training.py

The original is a plain transcription of the step in unimatch.py of github.com/LiheYoung/UniMatch: three passes through
the network in fp32 with the usual memory order, a `.item()` for each number that it logs. Ours is `losses.unimatch`
with the same batch, network and optimiser, in channels-last memory: "exact" takes the same passes, "fast" two.

    --encoder resnet101s --crop 321 --batch 8 --device cuda --compiled       the size of UniMatch's Pascal runs
    --segmenter dpt --encoder vit_small_patch14_dinov2.lvd142m --crop 518    of UniMatch V2's, and its own step too

On a GPU fp32 means TF32 if torch.backends.cuda.matmul.allow_tf32 is on, which PyTorch leaves off for products of
matrices and on for convolutions; the JSON says so.
"""

import copy
from functools import partial

import side_by_side
import torch
import torch.nn.functional as F
from torch import nn

from plg_utils import losses, segmenters, training
from plg_utils.records import IGNORE

THRESHOLD = 0.12  # an untrained network is seldom sure, and all terms of the loss should count


def batch_of(size: int, images: int, num_classes: int, device: str) -> dict[str, torch.Tensor]:
    """Draw a batch as `training.fit` gives it to a loss; random numbers cost what photos cost."""
    draw = torch.Generator().manual_seed(0)
    views = {
        name: torch.randn(images, 3, size, size, generator=draw) for name in ("image", "weak", "strong1", "strong2")
    }
    label = torch.randint(num_classes, (images, size, size), generator=draw)
    box = torch.tensor([size // 4, size // 4, 3 * size // 4, 3 * size // 4]).expand(images, 4)
    rest = {"label": label, "ignore": torch.zeros(images, size, size, dtype=torch.bool), "boxes1": box, "boxes2": box}
    return {name: tensor.to(device) for name, tensor in (views | rest).items()} | {"progress": 0.0}


def official_step(model: nn.Module, optimiser: torch.optim.Optimizer, batch: dict) -> dict[str, float]:
    """Take one step as unimatch.py does; the images that CutMix pastes are the batch in reverse order."""
    x, mask_x = batch["image"], batch["label"]
    u_w, u_s1, u_s2, ignore = (batch[name] for name in ("weak", "strong1", "strong2", "ignore"))
    ignore = ignore.long() * IGNORE
    u_w_mix, u_s1_mix, u_s2_mix, ignore_mix = (tensor.flip(0) for tensor in (u_w, u_s1, u_s2, ignore))
    boxes = [torch.zeros_like(ignore), torch.zeros_like(ignore)]
    for box, corners in zip(boxes, (batch["boxes1"], batch["boxes2"]), strict=True):
        for plane, (left, top, right, bottom) in zip(box, corners.tolist(), strict=True):
            plane[top:bottom, left:right] = 1

    with torch.no_grad():
        model.eval()
        pred_u_w_mix = model(u_w_mix).detach()
        conf_u_w_mix = pred_u_w_mix.softmax(dim=1).max(dim=1)[0]
        mask_u_w_mix = pred_u_w_mix.argmax(dim=1)
    strong = []
    for view, mix, box in ((u_s1, u_s1_mix, boxes[0]), (u_s2, u_s2_mix, boxes[1])):
        view = view.clone()
        inside = box.unsqueeze(1).expand(view.shape) == 1
        view[inside] = mix[inside]
        strong.append(view)

    model.train()
    num_lb, num_ulb = len(x), len(u_w)
    both = [torch.cat((maps, nn.Dropout2d(0.5)(maps))) for maps in model.encode(torch.cat((x, u_w)))]
    preds, preds_fp = model.decode(both, x.shape[-2:]).chunk(2)
    pred_x, pred_u_w = preds.split([num_lb, num_ulb])
    pred_u_w_fp = preds_fp[num_lb:]
    pred_u_s1, pred_u_s2 = model(torch.cat(strong)).chunk(2)
    pred_u_w = pred_u_w.detach()
    conf_u_w = pred_u_w.softmax(dim=1).max(dim=1)[0]
    mask_u_w = pred_u_w.argmax(dim=1)

    mixed = []
    for box in boxes:
        mask, conf, void = mask_u_w.clone(), conf_u_w.clone(), ignore.clone()
        for own, pasted in ((mask, mask_u_w_mix), (conf, conf_u_w_mix), (void, ignore_mix)):
            own[box == 1] = pasted[box == 1]
        mixed.append((mask, conf, void))

    loss_x = F.cross_entropy(pred_x, mask_x, ignore_index=IGNORE)
    of_views = []
    for pred, (mask, conf, void) in zip(
        (pred_u_s1, pred_u_s2, pred_u_w_fp), (*mixed, (mask_u_w, conf_u_w, ignore)), strict=True
    ):
        loss = F.cross_entropy(pred, mask, reduction="none") * ((conf >= THRESHOLD) & (void != IGNORE))
        of_views.append(loss.sum() / (void != IGNORE).sum().item())
    loss_s1, loss_s2, loss_fp = of_views
    loss = (loss_x + loss_s1 * 0.25 + loss_s2 * 0.25 + loss_fp * 0.5) / 2.0
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    sure = ((conf_u_w >= THRESHOLD) & (ignore != IGNORE)).sum().item() / (ignore != IGNORE).sum().item()
    return {
        "total": loss.item(), "labelled": loss_x.item(), "strong": (loss_s1.item() + loss_s2.item()) / 2.0,
        "feature": loss_fp.item(), "sure": sure,
    }  # fmt: skip


def our_step(model: nn.Module, optimiser: torch.optim.Optimizer, loss, batch: dict, precision: str) -> dict:
    """Take one step as `training.fit` does."""
    with torch.autocast(batch["image"].device.type, torch.bfloat16, enabled=precision == "bf16"):
        terms = loss(model, batch)
    optimiser.zero_grad(set_to_none=True)
    terms["total"].backward()
    optimiser.step()
    return {name: term.detach() for name, term in terms.items()}


def main() -> None:
    """Compare and write results/bench/training_*.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--segmenter", default="deeplabv3plus", choices=("deeplabv3plus", "dpt"))
    parser.add_argument("--encoder", default="miniature")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--compiled", action="store_true", help="also fast with bf16 and a compiled network; minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = segmenters.build(options.segmenter, options.classes, encoder=options.encoder, pretrained=False)
    network = network.to(options.device).train()
    batch = batch_of(options.crop, options.batch, options.classes, options.device)
    last = {name: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
            for name, t in batch.items() if name != "progress"} | {"progress": 0.0}  # fmt: skip

    def fresh(memory: torch.memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(network).to(memory_format=memory)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    calls, ways = {}, [("exact", "fp32"), ("fast", "fp32"), ("fast", "bf16")]
    ways += [("v2", "fp32"), ("v2", "bf16")] if options.segmenter == "dpt" else []
    for passes, precision in ways:
        pair, given = fresh(torch.channels_last), last
        if passes == "v2":
            loss = losses.build("unimatch_v2", threshold=THRESHOLD)
            given = last | {"average": training.Average(pair[0], 0.996)}
        else:
            loss = losses.build("unimatch", threshold=THRESHOLD, passes=passes)
        calls[f"{passes} {precision}"] = partial(our_step, *pair, loss, given, precision)
    if options.compiled:
        model, optimiser = fresh(torch.channels_last)
        taught, loss = training.Compiled(model), losses.build("unimatch", threshold=THRESHOLD, passes="fast")
        calls["fast bf16 compiled"] = lambda: our_step(taught, optimiser, loss, last, "bf16")
    theirs = fresh(torch.contiguous_format)
    calls["original"] = lambda: official_step(*theirs, batch)

    torch.manual_seed(1)
    first = official_step(*fresh(torch.contiguous_format), batch)
    torch.manual_seed(1)
    loss = losses.build("unimatch", threshold=THRESHOLD)
    same = our_step(*fresh(torch.channels_last), loss, last, "fp32")
    agreement = {name: abs(float(same[name]) - value) for name, value in first.items()}

    taken = side_by_side.seconds(calls, options.repeats, options.device)
    for way in list(calls)[:-1]:
        name = (
            f"training_{options.encoder.partition('.')[0]}_{way.replace(' ', '_')}_{options.device.partition(':')[0]}"
        )
        side_by_side.report(
            options.write,
            name,
            options.device,
            **side_by_side.compare(taken[way], taken["original"]),
            unit="seconds a step",
            agreement=agreement if way == "exact fp32" else "not the same passes; see results/passes",
            n={"repeats": options.repeats, "batch": options.batch, "crop": options.crop},
            tf32={"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        )


if __name__ == "__main__":
    main()
