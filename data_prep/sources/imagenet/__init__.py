"""ImageNet as folders or as published archives.

Files in reading order:

    imagenet  ImageNet-1k (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge"
    folders   ImageNet as folders
    tars      ImageNet as image-net.org ships it

May import: data_prep.config, data_prep.console, data_prep.errors, data_prep.sources, data_prep.sources.archives,
data_prep.sources.parsing, data_prep.storage.
"""
