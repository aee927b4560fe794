"""What the data doctor can find: one name, one title and one explanation per kind. Knows no numpy."""

from dataclasses import dataclass

KEEP, DROP, MOVE = "keep", "drop", "move"
MAYBE = "move?"  # stays where it is until a person takes the question mark away


@dataclass(frozen=True)
class Finding:
    """One fault, or one group of files that share it. `paths` are relative to the data root, in posix form.

    suggestions: for each path "keep", "drop", "move FOLDER" or "move? FOLDER"; nobody acts on them but `headstart data apply`.
    """

    kind: str
    paths: tuple[str, ...]
    message: str
    suggestions: tuple[str, ...]

    @staticmethod
    def of(kind: str, path: str, message: str, suggestion: str = DROP) -> "Finding":
        return Finding(kind, (path,), message, (suggestion,))


@dataclass(frozen=True)
class Kind:
    """`counted`: what one finding of it is, in the singular and the plural."""

    title: str
    counted: tuple[str, str]
    what_to_do: str


_FILE, _GROUP, _FOLDER, _CLASS = ("file", "files"), ("group", "groups"), ("folder", "folders"), ("class", "classes")

# in the order in which they are reported: what spoils a measurement first
KINDS = {
    "duplicate_across_splits": Kind("Leak: the same file in train and in val", _GROUP,
        "The accuracy counts images that were trained on. Drop the training copies."),
    "near_duplicate_across_splits": Kind("Leak: nearly the same image in train and in val", _GROUP,
        "Copies that were re-encoded, resized or mirrored, or pictures of one scene. Drop the training copies."),
    "duplicate_across_classes": Kind("The same file under different labels", _GROUP,
        "At most one of the labels is right. Keep the copy in the right class and drop the others."),
    "near_duplicate_across_classes": Kind("Nearly the same image under different labels", _GROUP,
        "One of the labels may be wrong. Look at them."),
    "suspected_label": Kind("Suspected wrong labels", _FILE,
        "A model that did not see the image is sure of another class. Many are merely hard: look at each, and take the "
        "question mark away where it is right."),
    "placeholder": Kind("One file under many names, as a placeholder is", _GROUP,
        "If it says 'image not available', drop all of its copies."),
    "empty_file": Kind("Files of 0 bytes", _FILE, "Fetch them again or drop them."),
    "truncated": Kind("Truncated images", _FILE, "Fetch them again or drop them."),
    "unreadable": Kind("Files that are no image, or damaged", _FILE, "Fetch them again or drop them."),
    "excessive": Kind("Files with far more comments, segments, scans or tags than images have", _FILE, "Re-save them."),
    "unsupported_pixels": Kind("Images whose pixels have no agreed range", _FILE, "Convert them to 8 or 16 bits."),
    "too_large": Kind("Absurdly large images", _FILE, "Shrink them; they would fill the memory."),
    "tiny": Kind("Tiny images", _FILE, "Placeholders or icons, most likely."),
    "single_colour": Kind("Images of a single colour", _FILE, "Placeholders or failed exposures, most likely."),
    "animated": Kind("Images of several frames", _FILE, "Only the first frame is used. Split them if the others count."),
    "wrong_extension": Kind("Files whose name tells another format than their content", _FILE,
        "They are read by their content. Other programs may refuse them."),
    "unsupported_type": Kind("Files of a type that is not read", _FILE,
        "Convert images to .jpg or .png; all else is passed over."),
    "bad_name": Kind("Names that cannot be used", _FILE, "Rename them by hand; training refuses the folder."),
    "outside_class": Kind("Images outside the class folders", _FILE, "Move them into a class; they are passed over."),
    "hidden": Kind("Hidden files and folders", ("entry", "entries"), "They are passed over."),
    "unused_folder": Kind("Folders beside train and val", _FOLDER, "They are passed over."),
    "left_out": Kind("Entries that are passed over", ("entry", "entries"),
        "Rows without a path or a class, repeated rows, shards that take no part: they are passed over."),
    "missing_split": Kind("One half of the split is missing", _FOLDER, "Training refuses the folder."),
    "empty_class": Kind("Classes without a usable image", _CLASS, "Fill them or remove them."),
    "class_in_one_split": Kind("Classes on one side of the split only", _CLASS, "Both sides need the same classes."),
    "near_empty_class": Kind("Nearly empty classes", _CLASS, "Collect more images, or merge classes."),
    "imbalance": Kind("Imbalance", ("finding", "findings"),
        "Weigh the classes or sample them evenly, and look at the accuracy per class."),
    "duplicate": Kind("The same file several times", _GROUP, "Each copy counts again. Keep one."),
    "near_duplicate": Kind("Nearly the same image several times", _GROUP,
        "They count as one picture seen often. Keep them out of different splits."),
}  # fmt: skip


def number_of(kind: str, count: int) -> str:
    """'1 file', '3 groups'."""
    singular, plural = KINDS[kind].counted
    return f"{count} {singular if count == 1 else plural}"
