"""Text of .csv files that a spreadsheet program opens: a byte order mark, and cells that would be formulas."""

BOM = "\ufeff"
"""At the start of a file. Without it, Excel reads UTF-8 as the code page of the computer."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def defused(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet program would compute it (OWASP, "CSV Injection")."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def restored(text: str) -> str:
    """The text before `defused`."""
    return text[1:] if text[:1] == "'" and text.lstrip("'").startswith(_FORMULA) else text
