"""Zero-shot pseudo labels from SAM and CLIP, for semi-supervised semantic segmentation.

The modules in the order in which an image meets them. Data goes down this list, imports look up it; a name with
a slash is a folder of choices, in which one file is one way to take the step. This list is the rule: a test reads it.

    run_lengths   COCO's run lengths: decoded, checked, drawn
    records       what the stages hand to each other: Classes, Sample, Masks, PseudoLabel, Scores
    files         where things lie, and reading and writing them whole or not at all
    checkpoints   from the name of a network's weights to a verified file
    notebooks     the cells of a notebook and its parameters
    distributed   one run in several processes: who does which share
    runs          seed, device, manifest, and what is already done
    datasets/     the embedded world, PASCAL VOC, COCO, CamVid, your own photos
    miniature/    the small networks of the embedded world: architecture and loading
    masks/        from an image to its segments, without names
    encoders/     from images and words to embeddings of one space
    tags          which classes an image shows, asked of CLIP, a person or a file
    detectors/    from tags to boxes
    labels        pool, assign, paint: from segments and embeddings to a label map
    augment       weak and strong views of an image and its label map
    segmenters/   networks that learn from label maps
    losses/       what a segmenter is taught: one file for each method
    training      fit and predict
    cams/         coarse class maps: a classifier's, CLIP's, or anybody's
    generators/   from samples to pseudo labels: one file for each labeller
    trust         agreement of labellers, and a vote: what labels are worth when there is no truth
    metrics       one confusion matrix, and the scores that follow from it
    diagnosis     kinds of error, borders, calibration: why a label map is wrong
    comparisons   intervals, means and paired differences: whether a difference means something
    tables        what runs measured, put together, as CSV and LaTeX
    export        label maps for other people's tools, and corrected ones back
    prompt_lab    other words, templates and thresholds on cached embeddings, seen at once
    costs         what a whole run costs on this machine, from a few images and steps
    doctor        whether a run will work on this machine, and what to do if not
    figures       what a notebook shows
    page          a run as one page for the browser

Importing the package imports none of them.
"""

import warnings

# clip imports pkg_resources, which says that it is going to be removed: in a notebook that looks like an error.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)

__version__ = "0.1.0"
