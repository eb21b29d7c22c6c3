"""The small networks of the embedded world: architecture, training, loading; their weights lie beside the code.

    scenes      what they are trained and measured on
    training    what their trainings share
    sam         `segment_anything.Sam`, which learns masks without names
    clip        `clip.model.CLIP`, which learns from images and captions
    encoder     a ResNet in the place of ImageNet's weights, which learns the nouns of captions

What each of them saw, and what it reaches, is told in notebooks/extra/miniatures.ipynb.
"""
