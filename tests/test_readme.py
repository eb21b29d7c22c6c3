"""The README says what the results say, and its links lead somewhere."""

import re

import pytest

from plg_utils import files, statistics, tables

STAGES = ("zero_shot", "segmenter")
README = "\n".join((files.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/decisions.md"))


def test_each_number_of_the_results_table_stands_in_the_summary():
    path = files.ROOT / "results" / "demo" / "summary.json"
    if not path.exists():
        pytest.skip("results/demo has not been published yet")
    measured = {row["name"]: f"{100 * row['miou']:.1f}" for row in files.read_json(path)["rows"]}
    table = README.split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    told = dict(re.findall(r"^\| ([^|]+?) \|[^|]+\| ([\d.]+) \|$", table, re.MULTILINE))
    assert told == measured


def test_each_number_of_the_miniatures_table_was_measured():
    measured = files.read_json(files.ROOT / "results" / "miniatures" / "measured.json")
    sam, labels = measured["sam"]["held_out"], measured["labels"]
    expected = [
        f"{sam['mean_best_iou']:.2f}",
        f"{sam['recall_50']:.2f}",
        f"{sam['iou_error']:.2f}",
        f"{sam['masks_per_image']:.1f}",
        f"{measured['clip']['held_out']['accuracy']:.2f}",
        *(f"{labels[name]['unlabelled']:.2f}" for name in ("plain", "plain, true masks", "gem")),
    ]
    table = README.split("<!-- miniatures -->")[1].split("<!-- /miniatures -->")[0]
    assert re.findall(r"^\| [^|]+ \| ([\d.]+) \|", table, re.MULTILINE) == expected
    for name, digest in measured["sha256"].items():  # measured with the weights that are here
        assert files.sha256(files.ROOT / "plg_utils" / "miniature" / f"{name}.safetensors") == digest


def test_local_links_and_pictures_exist():
    for name in ("README.md", "SECURITY.md", "docs/decisions.md"):
        text = (files.ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((files.ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_the_tree_names_what_there_is():
    for folder in re.findall(r"^  (\w+)/ ", README, re.MULTILINE):
        assert (files.ROOT / "plg_utils" / folder).is_dir(), folder


def grid_of(run):
    """Rows of a published grid."""
    return files.read_json(files.ROOT / "results" / run / "grid.json")["rows"]


def labels_in(grid):
    """Rows of the labels that a grid's settings gave, in its order."""
    return [row for row in grid_of(grid) if row["stage"] == "zero_shot" and not row["options"]]


def test_each_number_of_the_ablations_was_measured():
    told = [line[-1].split(" / ") for line in cells("ablations", skip=0)]
    painted = [[row for row in grid_of("ablation_painting") if row["rule"] == rule] for rule in ("cosine", "softmax")]
    measured = [*map(labels_in, ("ablation_features", "ablation_pooling", "ablation_words")), *painted]
    assert told[:5] == [[f"{100 * row['miou']:.1f}" for row in rows] for rows in measured]
    drawn = {}
    for row in grid_of("ablation_threshold"):
        drawn.setdefault(row["threshold"], []).append(row["miou"])
    assert told[5:] == [[percent(drawn[threshold]) for threshold in (None, 0.2)]]
    assert [row["encoder_options"].get("depth") for row in measured[0]] == [None, 2, 3, 5]
    assert [row["embedding_options"] for row in measured[1]] == [{}, {"normalise_patches": True}]
    words = ["six_templates", "bare", "no_background_words"]
    assert [row["dataset_options"].get("classes", "") for row in measured[2]] == [
        "",
        *(f"results/ablation_words/{name}.yaml" for name in words),
    ]
    overlaps = ["score", "small_on_top", "predicted_iou", "vote"]
    assert [[row["overlap"] for row in rows] for rows in painted] == [overlaps, overlaps]
    (row,) = [
        row
        for row in files.read_json(files.ROOT / "results/demo/summary.json")["rows"]
        if row["method"] == "segment_match" and not row["options"]
    ]
    assert f"{100 * row['miou']:.1f} or {100 * row['miou_uncovered_missed']:.1f}" in README
    assert round(1 / (1 - row["coverage"])) in (25, 26, 27) and "(one in twenty-six)" in README


def test_each_number_of_the_training_s_ablations_was_measured():
    def judged(grid, stage, **axes):
        rows = [
            row
            for row in grid_of(grid)
            if row["stage"] == stage and row["options"] in ({}, {"refine_target": "fusion"})
        ]
        own = [row for row in rows if all(row[name] == value for name, value in axes.items())]
        assert {row["seed"] for row in own} == {0, 1, 2} and len(own) == 3
        return percent([row["miou"] for row in own])

    choices = [{}, {"threshold": 0.95}, {"threshold": [0.95, 0.6]}, {"refine_target": "zero_shot"}]
    targets = [judged("ablation_targets", "enhanced", loss_options=options) for options in choices]
    smoothed = [judged("ablation_smoothing", "segmenter", smoothing=value) for value in (0.1, 0.0, 0.2)]
    losses = [{"labelled_smoothing": 0.1}, {"weak_weight": 0.5}, {"gate": True, "threshold": 0.8}]
    lines = [[smoothed[0], judged("ablation_losses", "segmenter", loss_options=options)] for options in losses]
    average = [smoothed[0], judged("ablation_average", "segmenter", training_options={"ema": 0.99})]
    told = [line[-1].split(" / ") for line in cells("training", skip=0)]
    assert told == [targets, smoothed, *lines, average]


def test_each_number_of_the_labellers_was_measured():
    rows = grid_of("compare_labellers_seeds")
    assert {row["seed"] for row in rows} == {0, 1, 2}
    ways = {}
    for row in rows:
        ways.setdefault((row["method"], row["options"].get("cam")), []).append(row)

    def told(values, scale, digits):
        found = statistics.summarise(values)
        return f"{scale * found.mean:.{digits}f} ± {scale * found.std:.{digits}f}"

    columns = ("miou", "precision", "recall", "boundary_f")
    measured = [[told([row[name] for row in own], 100, 1) for name in columns] for own in ways.values()]
    assert cells("labellers", skip=2) == measured
    judged = [ways["segment_match", None], ways["ensemble", None]]
    signals = ("agreement", "mask stability", "CLIP margin", "all three")
    measured = [[told([row["trust"][name] for row in own], 1, 2) for own in judged] for name in signals]
    assert cells("trust", skip=1) == measured


def cells(mark, skip):
    """Cells of the README's table between two marks, without its head and the first columns."""
    table = README.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]
    return [line.strip("| ").split(" | ")[skip:] for line in table.strip().splitlines()[2:]]


def percent(values):
    found = statistics.summarise(values)
    return f"{100 * found.mean:.1f} ± {100 * found.std:.1f}"


def together(*grids):
    """What grids of one experiment measured with twelve labelled scenes, in the README's order."""
    rows = [row for row in tables.rows_of(grids) if row["labelled"] == 12]
    assert {row["seed"] for row in rows} == {0, 1, 2}
    found = {what: {row["seed"]: row["miou"] for row in own} for what, own in tables.grouped(rows).items()}
    assert all(len(of) == 3 for of in found.values())
    order = ("zero_shot", "enhanced", "segmenter")
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0].stage), sum(item[1].values()))))


def told_of(found, images):
    """Lines of a table of the README."""
    return [
        [what.name, f"{images[what.split]} {what.split} images", percent([*of.values()])] for what, of in found.items()
    ]


def test_each_number_of_the_longer_training_was_measured():
    found = together("storybook_table", "storybook_more")
    assert cells("storybook", skip=0) == told_of(found, {"unlabelled": 300, "val": 200})
    of = {what.name: seeds for what, seeds in found.items()}
    mean = {name: 100 * sum(seeds.values()) / 3 for name, seeds in of.items()}

    def above(name, other):  # points in each seed
        return [100 * (of[name][seed] - of[other][seed]) for seed in range(3)]

    error = 100 - mean["zero-shot labels"]
    for name, told in (("enhanced labels", "takes away 29 %"), ("enhanced, SAM's borders", "and 35 %")):
        assert f"{100 * (mean[name] - mean['zero-shot labels']) / error:.0f} %" in told and told in README
    paper, plain, unimatch = "paper A: enhanced labels", "supervised only", "UniMatch, no zero-shot labels"
    assert min(above(paper, unimatch)) > 0 and round(mean[paper] - mean[unimatch]) == 11  # "eleven points", each seed
    assert 20 <= mean[unimatch] - mean[plain] < 21  # "twenty points"
    assert min(above("FixMatch, no zero-shot labels", plain)) < 0 < max(above("FixMatch, no zero-shot labels", plain))
    double = "raw zero-shot labels, twice the steps"
    assert round(mean[double] - mean[paper]) == 3  # "three points better"
    for alone in ("paper A with SAM's borders", "paper A, from refined network"):
        assert mean[alone] < mean[double]  # "Each alone is not enough"
    both = "paper A, SAM's borders, from refined network"
    assert min(above(both, double)) > 0 and round(mean[both] - mean[double]) == 1  # "by a point and in each seed"


def test_each_number_of_the_labelled_scenes_was_measured():
    rows = tables.rows_of(["storybook_table", "storybook_more", "storybook_labelled"])
    found = tables.grouped(row for row in rows if row["stage"] == "segmenter")
    of = {(what.name, what.labelled): {row["seed"]: 100 * row["miou"] for row in own} for what, own in found.items()}
    told = {line[0]: line[1:] for line in cells("labelled", skip=0)}
    amounts = (12, 24, 48)
    assert told == {name: [percent([v / 100 for v in of[name, k].values()]) for k in amounts] for name in told}
    assert all(of[name, k].keys() == {0, 1, 2} for name in told for k in amounts)
    mean = {key: sum(seeds.values()) / 3 for key, seeds in of.items()}
    supervised, unimatch, double, paper = told
    gains = [mean[unimatch, k] - mean[supervised, k] for k in amounts]
    assert 20 <= gains[0] < 21.5 and round(gains[1]) == 7 and abs(gains[2]) < 0.5  # "twenty ..., seven ..., none"
    assert [round(mean[paper, 48] - mean[name, 48]) for name in (supervised, unimatch)] == [8, 8]
    assert all(of[paper, k][seed] > of[double, k][seed] for k in amounts for seed in range(3))  # "the nine draws"


def test_each_number_of_the_longest_training_was_measured():
    found = together("storybook_converged")
    assert cells("converged", skip=0) == told_of(found, {"unlabelled": 300, "val": 200})
    of = {what.name: seeds for what, seeds in found.items()}
    mean = {name: 100 * sum(seeds.values()) / 3 for name, seeds in of.items()}
    raw = mean["raw zero-shot labels, twice the steps"]
    assert abs(mean["the refined network itself"] - raw) < 0.5 and abs(mean["paper A with SAM's borders"] - raw) < 0.5
    sharp, plain = of["enhanced, SAM's borders"], of["enhanced labels"]
    assert sum(sharp[seed] < plain[seed] for seed in plain) == 2  # "in two of three seeds"


def test_each_number_of_the_review_was_measured():
    of = files.read_json(files.ROOT / "results" / "review" / "review.json")["mean_iou_after"]
    orders = ("least trusted first", "by chance", "the really worst first")
    assert cells("review", skip=0) == [
        [str(count), *(f"{100 * of[name][count]:.1f}" for name in orders)] for count in (0, 6, 20)
    ]
    assert {len(values) - 1 for values in of.values()} == {100}


def test_each_number_of_camvid_was_measured():
    of, classes = {}, {}
    for row in grid_of("camvid_table"):
        assert (row["labelled"], row["images"], row["dataset"] if "dataset" in row else "camvid") == (
            "1/16",
            101,
            "camvid",
        )
        of.setdefault(row["name"], {})[row["seed"]] = row["miou"]
        classes.setdefault(row["name"], []).append(row["iou"])
    assert cells("camvid", skip=0) == [[name, percent([*seeds.values()])] for name, seeds in of.items()]
    supervised, unimatch = of.values()
    assert supervised.keys() == {0, 1, 2} and all(unimatch[seed] < supervised[seed] for seed in supervised)
    for name in ("pedestrian", "sign", "pavement"):  # "it loses"
        one, other = (sum(iou[name] for iou in own) for own in classes.values())
        assert other < 0.8 * one


def test_each_number_of_the_networks_was_measured():
    rows = [row for row in grid_of("labeller_networks") if not row.get("added")]
    assert {row["seed"] for row in rows} == {0, 1, 2}
    measured = []
    for labeller in ("segment_match", "sepl", "boxes", "ensemble"):
        own = [row for row in rows if row["labeller"] == labeller]
        stages = ({row["seed"]: row["miou"] for row in own if row["stage"] == stage} for stage in STAGES)
        measured.append([percent(list(values.values())) for values in stages])
    assert cells("networks", skip=1) == measured


def test_each_number_of_the_presets_was_measured():
    folder = files.ROOT / "results" / "presets"
    grid, measured = files.read_json(folder / "grid.json"), []
    costs = {row["preset"]: row for row in files.read_json(folder / "cost.json")["presets"]}
    for preset in grid["grid"]["preset"]:
        own = [row for row in grid["rows"] if row["preset"] == preset]
        assert {row["seed"] for row in own} == {0, 1, 2}  # "three draws"
        scores = [percent([row["miou"] for row in own if row["stage"] == stage]) for stage in STAGES]
        measured.append([*scores, f"{60 * costs[preset]['hours']:.1f}"])
    assert cells("presets", skip=1) == measured


def test_each_number_of_the_benchmarks_was_measured():
    folder = files.ROOT / "results" / "bench"
    table = README.split("<!-- bench -->")[1].split("<!-- /bench -->")[0]
    told = [line.strip("| ").split(" | ")[1:] for line in table.strip().splitlines()[2:]]
    names = ["masks_miniature_sam_cpu", "masks_miniature_sam_cpu_plain_malloc"]
    ways = ("exact_fp32_cpu", "fast_fp32_cpu", "fast_bf16_cpu", "fast_bf16_cpu_with_bf16")
    names += [f"training_miniature_{way}" for way in ways]
    names += ["labels_pool", "labels_paint"]
    measured = [files.read_json(folder / f"{name}.json") for name in names]
    assert told == [
        [
            *(f"{found[key]:.2g}" for key in ("ours_s", "original_s")),
            f"{found['ratio']:.1f}",
            f"{found['best_ratio']:.1f}",
        ]
        for found in measured
    ]
    masks = measured[0]["agreement"]
    assert masks["images_with_equal_masks"] == 1 and f"{measured[0]['n']['scenes']} scenes all masks" in README
    again = files.read_json(folder / "labels_again.json")
    assert again["n"]["images"] == 1000
    assert f"anew in {again['ours_s']:.1f} seconds here" in README
    assert f"as the package calls them, take {measured[0]['floor_s']:.2f} seconds as well" in README
    large = files.read_json(folder / "masks_sam_vit_b_random_cpu.json")
    assert large["agreement"]["images_with_equal_masks"] == 1
    assert f"{large['ours_s']:.0f} seconds instead of {large['original_s']:.0f}" in README
    demo = files.read_json(folder / "demo.json")
    minutes, old_minutes = (f"{demo[side] / 60:.1f}" for side in ("ours_s", "original_s"))
    assert f"took {old_minutes} minutes before all this and takes {minutes} now" in README
    new, old = (demo["stages_s"][side] for side in ("ours", "original"))
    assert f"masks from {old['masks']:.0f} to {new['masks']:.0f} seconds" in README
    training = [
        sum(took for stage, took in of.items() if stage == "refined" or stage.startswith("network_"))
        for of in (old, new)
    ]
    assert f"the trainings from {training[0]:.0f} to {training[1]:.0f}" in README


def test_the_two_commands_were_timed():
    found = files.read_json(files.ROOT / "results" / "bench" / "commands.json")
    first, second = (f"{found[command]['seconds'] / 60:.1f}" for command in ("demo", "test"))
    memory = max(found[command]["peak_memory_mb"] for command in ("demo", "test")) * 2**20 / 1e9
    told = (
        f"the first takes {first} minutes once the environment is there, the second {second}; neither holds more than "
    )
    assert f"{told}{memory:.1f} GB of memory" in README


def test_each_line_through_the_costs_was_measured():
    folder, measured = files.ROOT / "results" / "bench", []
    for name in ("scaling_masks_images", "scaling_labels_images"):
        found = files.read_json(folder / f"{name}.json")
        memory = [found["peak_memory_mb"][which] for which in (0, -1)]
        assert found["r2"] >= 0.99 and memory[1] < 1.03 * memory[0]
        told = f"{found['sizes'][-1]:,}", f"{1e3 * found['slope_s']:.0f}", f"{found['r2']:.4f}"
        measured.append([*told, f"{memory[0]:.0f} to {memory[1]:.0f}"])
    assert cells("scaling", skip=1) == measured
    shared = files.read_json(folder / "scaling_processes.json")
    assert shared["agreement"] == {"equal_label_maps": True}
    two, four = (f"{shared['speedup'][place]:.1f}" for place in (1, 2))
    assert (
        shared["sizes"] == [1, 2, 4] and f"two processes were {two} times as fast as one, four {four} times" in README
    )


def test_each_number_of_the_passes_was_measured():
    rows = [row for row in grid_of("passes") if row["stage"] == "segmenter"]
    assert {row["seed"] for row in rows} == {0, 1, 2}
    of = {}
    for row in rows:
        of.setdefault((row["passes"], row["method"]), []).append(row["miou"])
    methods = ("unimatch", "direct")
    assert cells("passes", skip=1) == [[percent(of[way, method]) for method in methods] for way in ("exact", "fast")]


def test_each_number_of_the_reliability_was_counted():
    text = (files.ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    kills = files.read_json(files.ROOT / "results" / "reliability.json")["kills"]
    assert sum(kills["by_stage"].values()) == kills["kills"] >= 50
    told = f"{kills['kills']} kills in {kills['rounds']} runs, {kills['files_compared']} files compared, none differs"
    assert told in text
    table = text.split("<!-- stages -->")[1].split("<!-- /stages -->")[0]
    rows = dict(line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:])
    assert {name.strip("`"): int(count) for name, count in rows.items()} == kills["by_stage"]
    fuzz = files.read_json(files.ROOT / "results" / "reliability.json")["fuzz"]
    assert sum(fuzz[end] for end in ("read", "refused", "failed", "crashed", "hung")) == fuzz["files"]
    told = f"{fuzz['files']:,} damaged files of {len(fuzz['by_kind'])} kinds, {fuzz['failed']} failed, "
    assert told + f"{fuzz['crashed']} crashed, {fuzz['hung']} hung" in text
    malformed = dict(files.read_json(files.ROOT / "results" / "reliability.json")["malformed"])
    cases = malformed.pop("cases")
    assert sum(malformed.values()) == cases >= 80
    assert f"{cases} malformed inputs of {len(malformed)} kinds, all refused so" in text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (files.ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`(tests/[^`]+)`", text):
        assert (files.ROOT / path).exists(), path
