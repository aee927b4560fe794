"""The kinds of findings of the data check: one name, one title and one explanation each. Needs no numpy."""

from dataclasses import dataclass

from headstart.results import Finding as Finding
from headstart.wording import plural

KEEP, DROP, MOVE = "keep", "drop", "move"
MAYBE = "move?"  # stays in place until a person removes the question mark


@dataclass(frozen=True)
class Kind:
    """noun: of one finding; pictured: whether its files have thumbnails on the page; about_files: whether the entries
    are files that can be dropped or moved, and not folders, classes or skipped entries."""

    title: str
    what_to_do: str
    noun: str = "file"
    pictured: bool = False
    about_files: bool = True


def _of_copies(title: str, what_to_do: str) -> Kind:
    return Kind(title, what_to_do, noun="group", pictured=True)


# in the order of the report: what makes an accuracy meaningless first
KINDS = {
    "duplicate_across_splits": _of_copies(
        "Leak: the same file in several splits",
        "The accuracy counts images that the model was trained on. Drop the training copies.",
    ),
    "near_duplicate_across_splits": _of_copies(
        "Leak: nearly the same image in several splits",
        "Copies that were re-encoded, resized or mirrored, or pictures of one scene. Drop the training copies.",
    ),
    "duplicate_across_classes": _of_copies(
        "The same file under different labels",
        "At most one of the labels is correct. Keep that copy and drop the others.",
    ),
    "near_duplicate_across_classes": _of_copies(
        "Nearly the same image under different labels", "One of the labels may be wrong. Compare the images."
    ),
    "suspected_label": Kind(
        "Suspected wrong labels",
        "A model that was not trained on the image predicts another class with confidence. Many are merely hard: look "
        "at each, and agree to the move only where the suggestion is correct.",
        pictured=True,
    ),
    "placeholder": _of_copies(
        "One file under many names, as a placeholder is", "If it shows 'image not available', drop all of its copies."
    ),
    "empty_file": Kind("Files of 0 bytes", "Download them again or drop them."),
    "truncated": Kind("Truncated images", "Download them again or drop them."),
    "unreadable": Kind("Files that are not images, or damaged", "Download them again or drop them."),
    "other_kind": Kind("Files that are something else than an image", "See each, or drop them."),
    "lacks_extra": Kind("Images that this installation cannot read", "Install what is missing; they are images."),
    "excessive": Kind("Files with far more comments, segments, scans or tags than images have", "Re-save them."),
    "unsupported_pixels": Kind("Images whose pixels have no agreed range", "Convert them to 8 or 16 bits."),
    "dim": Kind(
        "Dark 16-bit images, which use a small part of the range",
        "They look black to the model, as 12-bit values do. Multiply the values, by 16 for 12 bits, and save them "
        "again.",
        pictured=True,
    ),
    "too_large": Kind("Extremely large images", "Shrink them; they would fill the memory."),
    "tiny": Kind("Tiny images", "Probably placeholders or icons.", pictured=True),
    "single_colour": Kind("Images of a single colour", "Probably placeholders or failed exposures.", pictured=True),
    "animated": Kind(
        "Images of several frames", "Only the first frame is used. Split them if you need the others.", pictured=True
    ),
    "wrong_extension": Kind(
        "Files whose extension does not match their content",
        "They are read by their content. Other programs may refuse them.",
        pictured=True,
    ),
    "unsupported_type": Kind(
        "Files of a type that is not read", "Convert images to .jpg or .png; other files are skipped."
    ),
    "bad_name": Kind(
        "Names that cannot be used", "Rename them by hand; training refuses the folder.", about_files=False
    ),
    "outside_class": Kind(
        "Images outside the class folders", "Move them into a class; they are skipped.", pictured=True
    ),
    "hidden": Kind("Hidden files and folders", "They are skipped.", noun="entry", about_files=False),
    "unused_folder": Kind("Folders that are not used", "They are skipped.", noun="folder", about_files=False),
    "left_out": Kind(
        "Entries that are skipped",
        "Rows without a path or a class, repeated rows, shards that are not used.",
        noun="entry",
        about_files=False,
    ),
    "conflicting_labels": Kind(
        "Images with two classes",
        "The table lists them under two classes. Remove the wrong rows; training refuses them.",
        noun="image",
        pictured=True,
        about_files=False,
    ),
    "mirrored_classes": Kind(
        "Classes that are mirror images of each other",
        "Flips make them equal, so no model can tell them apart. Train with --data.hflip false (--data.vflip false).",
        noun="pair",
        about_files=False,
    ),
    "single_class": Kind("A single class", "Add images of another class.", noun="class", about_files=False),
    "refused": Kind("What training refuses", "Change the data as described.", noun="reason", about_files=False),
    "missing_split": Kind(
        "One half of the split is missing", "Training refuses the folder.", noun="folder", about_files=False
    ),
    "empty_class": Kind("Classes without a usable image", "Fill them or remove them.", noun="class", about_files=False),
    "class_in_one_split": Kind(
        "Classes on one side of the split only", "Both sides need the same classes.", noun="class", about_files=False
    ),
    "alike_names": Kind(
        "Names of classes that differ only in case or white space",
        "If they mean the same class, give them one name. White space at the ends is ignored.",
        noun="group",
        about_files=False,
    ),
    "near_empty_class": Kind(
        "Nearly empty classes", "Collect more images, or merge classes.", noun="class", about_files=False
    ),
    "imbalance": Kind(
        "Imbalance",
        "Use class weights or balanced sampling, and look at the accuracy per class.",
        noun="finding",
        about_files=False,
    ),
    "duplicate": _of_copies("The same file several times", "Each copy counts again. Keep one."),
    "near_duplicate": _of_copies("Nearly the same image several times", "Keep them on the same side of a split."),
}


def number_of(kind: str, count: int) -> str:
    """'1 file', '3 groups'."""
    noun = KINDS[kind].noun
    return plural(count, noun, {"class": "classes", "entry": "entries"}.get(noun, ""))
