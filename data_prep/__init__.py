"""Prepares datasets: from source images to verified shards in two formats; no torch, no platform.

Files in reading order:

    prepare        The story of a data-prep job
    config         The configuration of a data-prep job
    output_folder  The folder that a preparation fills
    summary        From finished shards to the manifest
    sources/       Reads source images; `open_source` opens the one that a configuration names
    images/        Checks and decodes image files
    annotations/   Boxes, masks and their checks, as they are stored beside an image
    shards/        Turns the samples of a source into shards, in parallel
    writers/       Writes shards: a writer for each format
    dataset/       A prepared dataset on disk: its manifest, its indexes, its digest
    verify         Is a prepared dataset what its manifest says?
    repair/        Makes damaged or missing shards anew, byte for byte
    copy_dataset   Copying a prepared dataset between folders and remote storage
    storage/       Files, JSON, locks, URLs and retries; the platform uses them too
    console        The console: lines that jobs and commands print, in a form that any terminal can show
    errors         The errors of data preparation

May import: nothing of ours.
"""
