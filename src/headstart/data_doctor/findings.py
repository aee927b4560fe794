"""The kinds of findings of the data check: one name, one title and one explanation each. Needs no numpy."""

from dataclasses import dataclass

from headstart.results import Finding as Finding
from headstart.wording import counted

KEEP, DROP, MOVE = "keep", "drop", "move"
MAYBE = "move?"  # stays in place until a person removes the question mark


@dataclass(frozen=True)
class Kind:
    """counted: the noun of one finding, singular and plural; pictured: whether its files have thumbnails on the
    page."""

    title: str
    counted: tuple[str, str]
    what_to_do: str
    pictured: bool = False


_FILE, _GROUP, _FOLDER, _CLASS = ("file", "files"), ("group", "groups"), ("folder", "folders"), ("class", "classes")
_ENTRY, _FINDING = ("entry", "entries"), ("finding", "findings")

# in the order of the report: what makes an accuracy meaningless first
KINDS = {
    "duplicate_across_splits": Kind(
        "Leak: the same file in train and in val",
        _GROUP,
        "The accuracy counts images that the model was trained on. Drop the training copies.",
        pictured=True,
    ),
    "near_duplicate_across_splits": Kind(
        "Leak: nearly the same image in train and in val",
        _GROUP,
        "Copies that were re-encoded, resized or mirrored, or pictures of one scene. Drop the training copies.",
        pictured=True,
    ),
    "duplicate_across_classes": Kind(
        "The same file under different labels",
        _GROUP,
        "At most one of the labels is correct. Keep that copy and drop the others.",
        pictured=True,
    ),
    "near_duplicate_across_classes": Kind(
        "Nearly the same image under different labels",
        _GROUP,
        "One of the labels may be wrong. Compare the images.",
        pictured=True,
    ),
    "suspected_label": Kind(
        "Suspected wrong labels",
        _FILE,
        "A model that was not trained on the image predicts another class with confidence. Many are merely hard: look "
        "at each, and remove the question mark where the suggestion is correct.",
        pictured=True,
    ),
    "placeholder": Kind(
        "One file under many names, as a placeholder is",
        _GROUP,
        "If it shows 'image not available', drop all of its copies.",
        pictured=True,
    ),
    "empty_file": Kind("Files of 0 bytes", _FILE, "Download them again or drop them."),
    "truncated": Kind("Truncated images", _FILE, "Download them again or drop them."),
    "unreadable": Kind("Files that are not images, or damaged", _FILE, "Download them again or drop them."),
    "excessive": Kind("Files with far more comments, segments, scans or tags than images have", _FILE, "Re-save them."),
    "unsupported_pixels": Kind("Images whose pixels have no agreed range", _FILE, "Convert them to 8 or 16 bits."),
    "too_large": Kind("Extremely large images", _FILE, "Shrink them; they would fill the memory."),
    "tiny": Kind("Tiny images", _FILE, "Probably placeholders or icons.", pictured=True),
    "single_colour": Kind(
        "Images of a single colour", _FILE, "Probably placeholders or failed exposures.", pictured=True
    ),
    "animated": Kind(
        "Images of several frames", _FILE, "Only the first frame is used. Split them if you need the others.", True
    ),
    "wrong_extension": Kind(
        "Files whose extension does not match their content",
        _FILE,
        "They are read by their content. Other programs may refuse them.",
        pictured=True,
    ),
    "unsupported_type": Kind(
        "Files of a type that is not read", _FILE, "Convert images to .jpg or .png; other files are skipped."
    ),
    "bad_name": Kind("Names that cannot be used", _FILE, "Rename them by hand; training refuses the folder."),
    "outside_class": Kind(
        "Images outside the class folders", _FILE, "Move them into a class; they are skipped.", pictured=True
    ),
    "hidden": Kind("Hidden files and folders", _ENTRY, "They are skipped."),
    "unused_folder": Kind("Folders beside train and val", _FOLDER, "They are skipped."),
    "left_out": Kind(
        "Entries that are skipped", _ENTRY, "Rows without a path or a class, repeated rows, shards that are not used."
    ),
    "missing_split": Kind("One half of the split is missing", _FOLDER, "Training refuses the folder."),
    "empty_class": Kind("Classes without a usable image", _CLASS, "Fill them or remove them."),
    "class_in_one_split": Kind("Classes on one side of the split only", _CLASS, "Both sides need the same classes."),
    "near_empty_class": Kind("Nearly empty classes", _CLASS, "Collect more images, or merge classes."),
    "imbalance": Kind(
        "Imbalance", _FINDING, "Use class weights or balanced sampling, and look at the accuracy per class."
    ),
    "duplicate": Kind("The same file several times", _GROUP, "Each copy counts again. Keep one.", pictured=True),
    "near_duplicate": Kind(
        "Nearly the same image several times", _GROUP, "Keep them on the same side of a split.", pictured=True
    ),
}


def number_of(kind: str, count: int) -> str:
    """'1 file', '3 groups'."""
    return counted(count, *KINDS[kind].counted)
