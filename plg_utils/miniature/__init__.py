"""The small networks of the drawn data set: architecture and loading; their weights are beside the code.

    sam         `segment_anything.Sam`, small: masks without names
    clip        `clip.model.CLIP`, small: images and captions
    encoder     a slim ResNet in the place of ImageNet weights

The folder miniatures/ of the repository trains and measures them.
"""
