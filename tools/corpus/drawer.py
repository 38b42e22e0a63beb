"""Draws entities (names, numbers, amounts) from a seeded generator, keeping training and held-out ones apart."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from tools.corpus import words
from tools.corpus.marked import capitalised

__all__ = ["Drawer", "Split", "is_held_out"]

Split = Literal["train", "test"]
Item = TypeVar("Item")

_COMMON_STRENGTHS = ("5", "10", "20", "25", "40", "50", "75", "100", "150", "200", "250", "400", "500", "850")
_INTAKES = (
    "once daily",
    "twice daily",
    "every 8 hours",
    "at night",
    "weekly",
    "every morning",
    "with food",
    "three times daily",
)


def is_held_out(entity: str) -> bool:
    """Tell whether an entity belongs to the test split: its CRC-32 is divisible by 8."""
    return zlib.crc32(entity.encode()) % 8 == 0


class Drawer:
    """Draws one entity a call; "test" draws held-out entities only, "train" all the others.

    What comes from a short list or a small range (cities, dates, doses) is shared by both splits.
    """

    def __init__(self, rng: random.Random, *, split: Split) -> None:
        self.rng = rng
        self._is_test = split == "test"

    def pick(self, items: Sequence[Item]) -> Item:
        """Choose one of the items."""
        return items[int(self.rng.random() * len(items))]

    def draw(self, make: Callable[[], str]) -> str:
        """Repeat `make` until its text belongs to the split."""
        while True:
            text = make()
            if is_held_out(text) == self._is_test:
                return text

    def digits(self, count: int) -> str:
        """Draw digits of either split, as parts of an entity."""
        return "".join(self.pick("0123456789") for _ in range(count))

    def number(self, count: int) -> str:
        """Draw a number of `count` digits."""
        return self.draw(lambda: self.digits(count))

    def syllables(self, low: int = 2, high: int = 3) -> str:
        """Draw a made-up word of either split, of `low` to `high` syllables and an ending."""
        count = self.rng.randint(low, high)
        first = self.pick(words.SYLLABLES_FIRST)
        middle = "".join(self.pick(words.SYLLABLES_MIDDLE) for _ in range(max(count - 2, 0) + (count > 1)))
        return first + middle + self.pick(words.SYLLABLES_LAST)

    def word(self, low: int = 2, high: int = 3) -> str:
        """Draw a made-up word, capitalised."""
        return self.draw(lambda: self.syllables(low, high)).capitalize()

    def name(self) -> str:
        """Draw a person's name: the pair of names, or the made-up half of it, is of the split."""
        share = self.rng.random()
        if share < 0.35:
            return self.draw(lambda: f"{self.pick(words.FIRST_NAMES)} {self.pick(words.LAST_NAMES)}")
        if share < 0.6:
            return f"{self.pick(words.FIRST_NAMES)} {self.word()}"
        if share < 0.75:
            return f"{self.word(1, 2)} {self.pick(words.LAST_NAMES)}"
        return f"{self.word(1, 2)} {self.word()}"

    def date(self) -> str:
        """Draw a date between 1940 and 2029 in one of three formats."""
        year, month, day = self.rng.randint(1940, 2029), self.rng.randint(1, 12), self.rng.randint(1, 28)
        share = self.rng.random()
        if share < 0.5:
            return f"{year}-{month:02d}-{day:02d}"
        return f"{day} {words.MONTHS[month - 1]} {year}" if share < 0.8 else f"{day:02d}/{month:02d}/{year}"

    def phone(self) -> str:
        """Draw a phone number in one of three formats."""
        share = self.rng.random()
        if share < 0.4:
            return self.draw(lambda: f"{self.digits(3)}-{self.digits(3)}-{self.digits(4)}")
        if share < 0.7:
            return self.draw(lambda: f"+{self.rng.randint(1, 99)} {self.digits(3)} {self.digits(3)} {self.digits(3)}")
        return self.draw(lambda: f"0{self.digits(3)} {self.digits(6)}")

    def email(self) -> str:
        """Draw an address whose user or host is a made-up word."""
        user, share = self.draw(self.syllables), self.rng.random()
        if 0.3 <= share < 0.6:
            user += self.digits(2)
        elif 0.6 <= share < 0.8:
            user = f"{self.pick(words.FIRST_NAMES).lower()}.{user}"
        elif share >= 0.8:
            user = f"{self.pick('abcdefghijklmnoprstvw')}.{self.pick(words.LAST_NAMES).lower()}{self.digits(2)}"
        return f"{user}@{self.draw(self.syllables)}{self.pick(('.com', '.org', '.net', '.io', '.de', '.eu'))}"

    def card(self) -> str:
        """Draw a card number: four groups of four digits."""
        return self.draw(lambda: " ".join(self.digits(4) for _ in range(4)))

    def iban(self) -> str:
        """Draw a shortened IBAN."""
        countries = ("DE", "FR", "CH", "ES", "NL", "GB", "IT")
        return self.draw(
            lambda: f"{self.pick(countries)}{self.digits(2)} {self.digits(4)} {self.digits(4)} {self.digits(2)}"
        )

    def account(self) -> str:
        """Draw an account id: two letters and 5 to 8 digits."""
        return self.draw(lambda: f"{self.pick(('AC', 'KX', 'ZN', 'PT', 'MB'))}-{self.digits(self.rng.randint(5, 8))}")

    def national_id(self) -> str:
        """Draw a number of the form 000-00-0000."""
        return self.draw(lambda: f"{self.digits(3)}-{self.digits(2)}-{self.digits(4)}")

    def amount(self) -> str:
        """Draw an amount of money up to five digits, with cents or without; of either split."""
        currency, count = self.pick(("$", "EUR ", "CHF ", "$")), self.rng.randint(1, 5)
        whole = self.pick("123456789") + self.digits(count - 1)
        whole = whole if count < 4 else f"{whole[:-3]},{whole[-3:]}"
        return currency + whole + (f".{self.digits(2)}" if self.rng.random() < 0.6 else "")

    def code(self, prefix: str) -> str:
        """Draw a record id: the prefix and 3 to 6 digits."""
        return self.draw(lambda: f"{prefix}-{self.digits(self.rng.randint(3, 6))}")

    def drug(self) -> str:
        """Draw a made-up drug."""
        return self.draw(lambda: self.syllables(1, 2) + self.pick(words.DRUG_ENDINGS)).capitalize()

    def label(self) -> str:
        """Draw the noun of a field: a plain noun, or a noun after another word or a made-up one."""
        share, noun = self.rng.random(), self.pick(words.LABEL_NOUNS)
        if share < 0.2:
            return noun
        if share < 0.35:
            return self.draw(lambda: f"{self.syllables(1, 2)} {self.pick(words.LABEL_NOUNS)}")
        return self.draw(lambda: f"{self.pick(words.LABEL_ADJECTIVES)} {self.pick(words.LABEL_NOUNS)}")

    def time(self) -> str:
        """Draw a time of day; of either split."""
        return f"{self.rng.randint(0, 23):02d}:{self.rng.randint(0, 59):02d}"

    def measure(self) -> str:
        """Draw a number and its unit; of either split."""
        unit = self.pick(("units", "kg", "km", "days", "weeks", "months", "hours", "minutes", "W", "cm", "litres", "%"))
        return f"{self.rng.randint(1, 9)}{self.digits(self.rng.randint(0, 2))} {unit}"

    def thing(self) -> str:
        """Draw a thing, animal or place with a made-up name or number."""
        thing, share = self.pick(words.THINGS), self.rng.random()
        if share < 0.3:
            return f"{capitalised(thing)} {self.draw(lambda: self.digits(self.rng.randint(1, 4)))}"
        return f"{self.word()} {thing}" if share < 0.65 else f"{self.pick(words.CITIES)} {self.word(1, 2)} {thing}"

    def value(self) -> str:
        """Draw a value of any kind, for a field whose noun says nothing of its kind."""
        draws = (
            *(self.time, self.measure, self.date, self.amount, self.phone, self.word, self.name, self.company),
            *(self.account, self.password, lambda: self.number(self.rng.randint(2, 6)), self.product, self.dose),
            *((lambda: self.code(self.pick("ABCDEFGHKLMPRSTVX"))), self.email, self.address, self.drug),
            *(lambda: self.pick(words.VALUES),) * 4,
            *(lambda: f"{self.pick('ABCDEFGHK')}{self.rng.randint(1, 99)}",) * 2,
        )
        return self.pick(draws)()

    def dose(self) -> str:
        """Draw a strength and how often it is taken; of either split."""
        odd_strengths = [self.pick("123456789") + self.digits(count) for count in (1, 2)]
        return f"{self.pick((*_COMMON_STRENGTHS, *odd_strengths))} mg {self.pick(_INTAKES)}"

    def address(self) -> str:
        """Draw a street, its number and a city."""
        number = self.rng.randint(1, 299)
        street = self.pick(words.STREETS) if self.rng.random() < 0.5 else self.word()
        return f"{number} {street} {self.pick(('Street', 'Road', 'Lane', 'Avenue'))}, {self.pick(words.CITIES)}"

    def company(self) -> str:
        """Draw a made-up company."""
        return f"{self.word()} {self.pick(words.COMPANY_ENDINGS)}"

    def product(self) -> str:
        """Draw a thing with a made-up brand."""
        return f"{self.word()} {self.pick(words.NOUNS)}"

    def password(self) -> str:
        """Draw a password of a made-up word, digits, a sign and a letter."""
        return self.draw(
            lambda: (
                f"{self.syllables(1, 2)}{self.digits(3)}{self.pick('#!$%&')}{self.digits(1)}"
                f"{self.pick('ABCDEFGHKLMNPRSTXYZ')}"
            )
        )
