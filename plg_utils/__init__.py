"""Zero-shot pseudo labels from SAM and CLIP, for semi-supervised semantic segmentation.

The map: three groups, in the order in which they build on each other. Imports point up only, and a test reads this
list. A name with a slash is a folder of choices: one file in it is one way to take the step, found by its file name.

Ground: what every part uses.

    run_lengths   COCO's run-length encoding: decode, check, draw
    regions       connected regions of a map
    records       what the stages hand to each other: Classes, Sample, Masks, PseudoLabel, Scores
    metrics       one confusion matrix, and the scores that follow from it
    files         paths, and reading and writing files whole or not at all
    choices       names that a user chooses from
    class_files   the YAML files that name the classes
    contents      SHA-256 of photos, label maps and weights, counted once
    checkpoints   from the name of a network's weights to a verified file
    distributed   one run in several processes
    devices       device, number format, threads, determinism
    store         a stage's folder: manifest, what is done, what is outdated; progress bars

Choices and method: the networks and the algorithms.

    datasets/     storybook, PASCAL VOC, COCO, CamVid, your own photos
    miniature/    the small networks of the storybook: architecture and loading
    labels        pool, assign, paint: from segments and embeddings to a label map
    tiles         large images in parts: masks joined across seams, features blended
    masks/        from an image to its segments, without names
    encoders/     from images and words to embeddings of one space
    tags          which classes an image shows, according to CLIP, a person or a file
    detectors/    from tags to boxes
    augment       weak and strong views of an image and its label map
    segmenters/   networks that learn from label maps
    losses/       the training methods, one file each
    training      fit and predict
    cams/         coarse class maps: from a classifier, from CLIP, or from a folder
    generators/   from images to pseudo labels: one file for each labeller
    calibration   which names of segments may be believed: a filter that the labelled images calibrate
    trust         agreement of labellers, and a vote: how good labels are where there is no truth
    diagnosis     kinds of error, borders, calibration
    stages        the pipeline: one function for each stage, and the table of methods

Looking: what came out.

    statistics    confidence intervals, means and paired differences
    tables        results of several runs as CSV and LaTeX
    review        label maps for annotation tools, and corrected ones back
    check         whether a data set can be used: plg check
    doctor        whether a run will work on this machine
    figures       every figure of the notebooks
    prompt_lab    other words, templates and thresholds on cached embeddings
    page          a run as one HTML page
    score         scores any folder of label maps: plg score
    __main__      the command plg: a folder of photos in, label maps out

Importing the package imports none of them.
"""

import warnings

# clip imports pkg_resources, which says that it is going to be removed: in a notebook that looks like an error.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)

__version__ = "0.2.0"
