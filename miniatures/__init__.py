"""How the small networks of the drawn data set are trained and measured; plg_utils/miniature holds what they are.

    scenes      what they are trained and measured on
    training    what their trainings share
    sam         learns masks without names
    clip        learns from images and captions
    encoder     learns the nouns of captions

Run each from the folder above: python -m miniatures.sam. notebooks/extra/miniatures.ipynb runs all three.
"""
