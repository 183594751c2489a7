"""Prepared datasets for any training loop: by index, as a torch Dataset, as stock webdataset and FFCV pipelines.

Files in reading order:

    prepared_dataset     `open_dataset`: a split's images and targets by index
    targets              From a stored annotation to arrays: objects, label maps
    torch_items          Images and targets as PyTorch's tools expect them; the map-style Dataset
    webdataset_pipeline  A stock `webdataset` pipeline over the .tar shards
    ffcv_loader          A stock `ffcv.Loader` over the .beton files
    ffcv_targets         FFCV's decoders of whole images and annotations
    whole_beton          All samples of a split as one upright .beton file

May import: convmlp, data, data_prep.annotations, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.images, data_prep.storage, data_prep.writers, errors, runs.
"""
