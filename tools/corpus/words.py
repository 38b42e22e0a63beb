"""The word lists of the corpus, read from words.toml beside this file."""

from __future__ import annotations

import tomllib
from pathlib import Path

_LISTS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

FIRST_NAMES = tuple(_LISTS["first_names"])
LAST_NAMES = tuple(_LISTS["last_names"])
CITIES = tuple(_LISTS["cities"])
STREETS = tuple(_LISTS["streets"])
CONDITIONS = tuple(_LISTS["conditions"])
ALLERGIES = tuple(_LISTS["allergies"])
ISSUES = tuple(_LISTS["issues"])
JOBS = tuple(_LISTS["jobs"])
DEPARTMENTS = tuple(_LISTS["departments"])
SUBJECTS = tuple(_LISTS["subjects"])
REASONS = tuple(_LISTS["reasons"])
MONTHS = tuple(_LISTS["months"])
SYLLABLES_FIRST = tuple(_LISTS["syllables_first"])
SYLLABLES_MIDDLE = tuple(_LISTS["syllables_middle"])
SYLLABLES_LAST = tuple(_LISTS["syllables_last"])
DRUG_ENDINGS = tuple(_LISTS["drug_endings"])
COMPANY_ENDINGS = tuple(_LISTS["company_endings"])
NOUNS = tuple(_LISTS["nouns"])
LABEL_ADJECTIVES = tuple(_LISTS["label_adjectives"])
LABEL_NOUNS = tuple(_LISTS["label_nouns"])
VALUES = tuple(_LISTS["values"])
THINGS = tuple(_LISTS["things"])
RECORD_TITLES = tuple(_LISTS["record_titles"])
TABLE_TITLES = tuple(_LISTS["table_titles"])
REMARKS = tuple(_LISTS["remarks"])
