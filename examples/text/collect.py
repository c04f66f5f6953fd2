"""Write training.csv and heldout.csv from the translations of an installed Django, 5.2.19 for those here.

A message's translations all go into the same file: no held-out sentence has its counterpart in the training.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import re
from pathlib import Path

import django

LANGUAGES = ("de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv", "tr")
HERE, PLACE = Path(__file__).parent, Path(django.__file__).parent
ENTRY = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n?)+)', re.MULTILINE)


def messages(language: str) -> dict[str, str]:
    """Return the translations of whole sentences: the English message -> the translated one."""
    found = {}
    for file in sorted(PLACE.glob(f"**/locale/{language}/LC_MESSAGES/django.po")):
        for pair in ENTRY.findall(file.read_text()):
            english, other = ("".join(map(ast.literal_eval, text.splitlines())) for text in pair)
            if other and "%" not in other and "{" not in other and "\n" not in other:
                found[english] = other
    return found


def main() -> None:
    rows: dict[str, list[tuple[str, str]]] = {"training": [], "heldout": []}
    for language in LANGUAGES:
        for english, text in messages(language if language != "en" else "de").items():
            text = english if language == "en" else text
            if 20 <= len(text) <= 120 and " " in text:
                heldout = hashlib.sha256(english.encode()).digest()[0] % 4 == 0
                rows["heldout" if heldout else "training"].append((text, language))
    for name, found in rows.items():
        with (HERE / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["text", "label"])
            table.writerows(sorted(set(found), key=lambda row: (row[1], row[0])))


if __name__ == "__main__":
    main()
