"""Run by the Python of PLG_TOOLS, not by pytest: other tools read what review wrote, and write labels of their own.

    python round_trips.py OUT    OUT is a folder of review.write with truth.npz (maps by id) and names.json (by value)

Each tool's reading goes to OUT/read_TOOL.npz, what it writes to OUT/by_TOOL. It knows nothing of plg_utils.
"""

import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import supervision as sv
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType, LabelCategories, Mask, MaskCategories
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.converter.imports.coco import convert_coco_to_ls
from labelme import LabelFile, utils
from pycocotools.coco import COCO

out = Path(sys.argv[1])
names = {int(value): name for value, name in json.loads((out / "names.json").read_text()).items()}  # without nothing
value_of = {name: value for value, name in names.items()}
truth = dict(np.load(out / "truth.npz"))
ordered = list(names.values())


def paint(size, regions):
    """A map of (name, mask), the larger ones first."""
    label = np.zeros(size, np.uint8)
    for name, mask in sorted(regions, key=lambda region: -np.count_nonzero(region[1])):
        label[np.asarray(mask, bool)] = value_of[name]
    return label


def regions(label):
    """(name, mask) of each 4-connected region, by OpenCV."""
    for value, name in names.items():
        count, marks = cv2.connectedComponents((label == value).astype(np.uint8), connectivity=4)
        yield from ((name, marks == number) for number in range(1, count))


def read_labelme():
    for id, label in truth.items():
        shapes = LabelFile(str(out / "images" / f"{id}.json")).shapes
        numbers = {name: number for number, name in enumerate(ordered, start=1)}
        drawn, _ = utils.shapes_to_label((*label.shape, 3), shapes, numbers)
        yield id, np.array([0, *names], np.uint8)[drawn]


def read_supervision(dataset):
    for path, _, found in dataset:
        size = truth[Path(path).stem].shape
        masks = [] if found.mask is None else found.mask
        yield (
            Path(path).stem,
            paint(size, [(dataset.classes[k], m) for k, m in zip(found.class_id, masks, strict=False)]),
        )


def read_pycocotools():
    coco = COCO(out / "coco.json")
    for image in coco.dataset["images"]:
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        drawn = [(coco.cats[row["category_id"]]["name"], coco.annToMask(row)) for row in rows]
        yield Path(image["file_name"]).stem, paint((image["height"], image["width"]), drawn)


def read_datumaro(place, kind):
    dataset = Dataset.import_from(str(place), kind)
    labels = dataset.categories()[AnnotationType.label]
    for item in dataset:
        drawn = [(labels[one.label].name, one.image) for one in item.annotations if one.type == AnnotationType.mask]
        yield Path(item.id).name, paint(truth[Path(item.id).name].shape, [d for d in drawn if d[0] in value_of])


def read_label_studio():
    tasks = json.loads((out / "label_studio.json").read_text())
    for number, task in enumerate(tasks):
        task |= {"id": number, "annotations": [{"id": number, "completed_by": 1, **task.pop("predictions")[0]}]}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "tasks.json").write_text(json.dumps(tasks))
        converter = Converter(config=(out / "label_studio.xml").read_text(encoding="utf-8"), project_dir=place)
        (Path(place) / "png").mkdir()
        converter.convert(f"{place}/tasks.json", f"{place}/png", "BRUSH_TO_PNG", is_dir=False)
        for number, id in enumerate(truth):
            drawn = []
            for path in Path(place, "png").glob(f"task-{number}-*.png"):
                name = path.stem.split("-label-")[1].rsplit("-", 1)[0]
                drawn.append((name, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0))
            yield id, paint(truth[id].shape, drawn)


def detections():
    """What supervision can write: it makes boxes of regions that are smaller than a polygon."""
    annotations, images = {}, {}
    for id, label in truth.items():
        if id == "noise":
            continue
        found, path = list(regions(label)), str(out / "images" / f"{id}.png")
        images[path] = cv2.imread(path)
        masks = np.array([mask for _, mask in found]).reshape(-1, *label.shape)
        numbers = np.array([ordered.index(name) for name, _ in found], int)
        annotations[path] = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=numbers)
    return sv.DetectionDataset(classes=ordered, images=images, annotations=annotations)


def write_labelme(place):
    for id, label in truth.items():
        shapes = []
        for name, mask in regions(label):
            rows, columns = np.nonzero(mask)
            box = columns.min(), rows.min(), columns.max(), rows.max()
            part = mask[box[1] : box[3] + 1, box[0] : box[2] + 1]
            shape = {"label": name, "points": [[int(n) for n in box[:2]], [int(n) for n in box[2:]]], "flags": {}}
            shape |= {"shape_type": "mask", "mask": utils.img_arr_to_b64(part.astype(np.uint8)), "group_id": None}
            shapes.append(shape)
        size = {"image_height": label.shape[0], "image_width": label.shape[1]}
        path = {"image_path": f"{id}.png", "image_data": (out / "images" / f"{id}.png").read_bytes()}
        LabelFile().save(str(place / f"{id}.json"), shapes=shapes, **size, **path)


def write_label_studio(place):
    tasks = []
    for number, (id, label) in enumerate(truth.items()):
        result = []
        for name, mask in regions(label):
            cv2.imwrite(str(place / "mask.png"), 255 * mask.astype(np.uint8))
            result += brush.image2annotation(str(place / "mask.png"), name, "label", "image")["result"]
        image = f"/data/upload/1/0123abcd-{id.replace(' ', '_')}.png"
        tasks.append({"id": number, "data": {"image": image}, "annotations": [{"id": number, "result": result}]})
    (place / "mask.png").unlink()
    (place / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")


def write_datumaro(place, kind):
    items = []
    for id, label in truth.items():
        drawn = [Mask(mask, label=ordered.index(name), group=n) for n, (name, mask) in enumerate(regions(label), 1)]
        media = Image.from_file(path=str(out / "images" / f"{id}.png"))
        items.append(DatasetItem(id=id, subset="default", media=media, annotations=drawn))
    masks = MaskCategories({k: (9, 200 - k, 3 * k) for k in range(len(ordered))})
    categories = {AnnotationType.label: LabelCategories.from_iterable(ordered), AnnotationType.mask: masks}
    more = {"label_map": "source"} if kind.startswith("voc") else {}
    Dataset.from_iterable(items, categories=categories).export(str(place), kind, save_media=True, **more)


def save(tool, found):
    np.savez(out / f"read_{tool}.npz", **dict(found))


save("labelme", read_labelme())
save("pycocotools", read_pycocotools())
save("label_studio", read_label_studio())
photos = str(out / "images")
yolo = sv.DetectionDataset.from_yolo(photos, str(out / "labels"), str(out / "data.yaml"), force_masks=True)
save("supervision_yolo", read_supervision(yolo))
with tempfile.TemporaryDirectory() as folder:  # the layout that Datumaro knows
    (Path(folder) / "annotations").mkdir()
    shutil.copy(out / "coco.json", Path(folder) / "annotations" / "instances_default.json")
    shutil.copytree(out / "images", Path(folder) / "images" / "default" / "images")
    save("datumaro_coco", read_datumaro(folder, "coco_instances"))
save("datumaro_voc", read_datumaro(out / "cvat", "voc_segmentation"))

for tool in ("labelme", "label_studio", "yolo", "coco"):
    (out / f"by_{tool}").mkdir()
write_labelme(out / "by_labelme")
write_label_studio(out / "by_label_studio")
write_datumaro(out / "by_datumaro_voc", "voc_segmentation")
write_datumaro(out / "by_datumaro_coco", "coco_instances")
yolo_place = {"images": "images_directory_path", "labels": "annotations_directory_path", "data.yaml": "data_yaml_path"}
detections().as_yolo(**{option: str(out / "by_yolo" / name) for name, option in yolo_place.items()})
detections().as_coco(annotations_path=str(out / "by_coco" / "supervision.json"))
convert_coco_to_ls(
    str(out / "by_coco" / "supervision.json"), str(out / "by_coco" / "tasks.json"), out_type="annotations"
)
packages = ("labelme", "label-studio-sdk", "supervision", "datumaro", "pycocotools", "opencv-python-headless")
print(json.dumps({name: importlib.metadata.version(name) for name in packages}))
