"""Labelled images: locating files, label values, reading and augmentation."""
