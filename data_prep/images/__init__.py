"""Checks and decodes image files.

Files in reading order:

    check_image      One source sample → what is stored of it
    image_file       Image files of others, opened within limits
    orientation      EXIF orientation
    jpeg             The structure of a JPEG file, read without decoding it
    jpeg_decode      Strict decoding of JPEG files with libjpeg-turbo
    jpeg_box         Partial decoding: a rectangle of a JPEG's pixels
    jpeg_crop.c      The same inside libjpeg-turbo, compiled where its header is at hand
    build_jpeg_crop  The part of the build that compiles it
    png              Are all pixels of a PNG file there and undamaged?
    masks            Segmentation masks

May import: data_prep.config, data_prep.dataset, data_prep.errors.
"""
