"""Checks of a folder of images: unreadable files, duplicates, label noise, fixes."""
