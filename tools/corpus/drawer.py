"""Draws entities (names, numbers, amounts) from a seeded generator, keeping training and held-out ones apart."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from tools.corpus import words

Split = Literal["train", "test"]
Item = TypeVar("Item")


class Drawer:
    """Draws one entity a call. An entity is held out if CRC-32 of its text is divisible by 8: only "test" draws it."""

    def __init__(self, rng: random.Random, *, split: Split) -> None:
        self.rng = rng
        self._split = split

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.random() * len(items))]

    def draw(self, make: Callable[[], str]) -> str:
        while True:
            text = make()
            if (zlib.crc32(text.encode()) % 8 == 0) == (self._split == "test"):
                return text

    def digits(self, count: int) -> str:
        return "".join(self.pick("0123456789") for _ in range(count))

    def number(self, count: int) -> str:
        return self.draw(lambda: self.digits(count))

    def syllables(self, low: int = 2, high: int = 3) -> str:
        count = self.rng.randint(low, high)
        first = self.pick(words.SYLLABLES_FIRST)
        middle = "".join(self.pick(words.SYLLABLES_MIDDLE) for _ in range(max(count - 2, 0) + (count > 1)))
        return first + middle + self.pick(words.SYLLABLES_LAST)

    def word(self, low: int = 2, high: int = 3) -> str:
        return self.draw(lambda: self.syllables(low, high)).capitalize()

    def name(self) -> str:
        share = self.rng.random()
        if share < 0.35:
            return self.draw(lambda: f"{self.pick(words.FIRST_NAMES)} {self.pick(words.LAST_NAMES)}")
        if share < 0.6:
            return f"{self.pick(words.FIRST_NAMES)} {self.word()}"
        if share < 0.75:
            return f"{self.word(1, 2)} {self.pick(words.LAST_NAMES)}"
        return f"{self.word(1, 2)} {self.word()}"

    def date(self) -> str:
        year, month, day = self.rng.randint(1940, 2029), self.rng.randint(1, 12), self.rng.randint(1, 28)
        share = self.rng.random()
        if share < 0.5:
            return f"{year}-{month:02d}-{day:02d}"
        return f"{day} {words.MONTHS[month - 1]} {year}" if share < 0.8 else f"{day:02d}/{month:02d}/{year}"

    def phone(self) -> str:
        share = self.rng.random()
        if share < 0.4:
            return self.draw(lambda: f"{self.digits(3)}-{self.digits(3)}-{self.digits(4)}")
        if share < 0.7:
            groups = lambda: " ".join(self.digits(3) for _ in range(3))  # noqa: E731
            return self.draw(lambda: f"+{self.rng.randint(1, 99)} {groups()}")
        return self.draw(lambda: f"0{self.digits(3)} {self.digits(6)}")

    def email(self) -> str:
        user, share = self.draw(self.syllables), self.rng.random()
        if 0.3 <= share < 0.6:
            user += self.digits(2)
        elif 0.6 <= share < 0.8:
            user = f"{self.pick(words.FIRST_NAMES).lower()}.{user}"
        elif share >= 0.8:
            user = f"{self.pick('abcdefghijklmnoprstvw')}.{self.pick(words.LAST_NAMES).lower()}{self.digits(2)}"
        return f"{user}@{self.draw(self.syllables)}{self.pick(['.com', '.org', '.net', '.io', '.de', '.eu'])}"

    def card(self) -> str:
        return self.draw(lambda: " ".join(self.digits(4) for _ in range(4)))

    def iban(self) -> str:
        country = ["DE", "FR", "CH", "ES", "NL", "GB", "IT"]
        return self.draw(
            lambda: f"{self.pick(country)}{self.digits(2)} {self.digits(4)} {self.digits(4)} {self.digits(2)}"
        )

    def account(self) -> str:
        return self.draw(lambda: f"{self.pick(['AC', 'KX', 'ZN', 'PT', 'MB'])}-{self.digits(self.rng.randint(5, 8))}")

    def amount(self) -> str:
        currency, count = self.pick(["$", "EUR ", "CHF ", "$"]), self.rng.randint(1, 5)
        whole = self.pick("123456789") + self.digits(count - 1)
        whole = whole if count < 4 else f"{whole[:-3]},{whole[-3:]}"
        return currency + whole + (f".{self.digits(2)}" if self.rng.random() < 0.6 else "")

    def code(self, prefix: str) -> str:
        return self.draw(lambda: f"{prefix}-{self.digits(self.rng.randint(3, 6))}")

    def drug(self) -> str:
        return self.draw(lambda: self.syllables(1, 2) + self.pick(words.DRUG_ENDINGS)).capitalize()

    def dose(self) -> str:
        common = ["5", "10", "20", "25", "40", "50", "75", "100", "150", "200", "250", "400", "500", "850"]
        strength = self.pick([*common, *(self.pick("123456789") + self.digits(n) for n in (1, 2))])
        often = ["once daily", "twice daily", "every 8 hours", "at night", "weekly", "every morning", "with food"]
        return f"{strength} mg {self.pick([*often, 'three times daily'])}"

    def address(self) -> str:
        number = self.rng.randint(1, 299)
        street = self.pick(words.STREETS) if self.rng.random() < 0.5 else self.word()
        return f"{number} {street} {self.pick(['Street', 'Road', 'Lane', 'Avenue'])}, {self.pick(words.CITIES)}"

    def company(self) -> str:
        return f"{self.word()} {self.pick(words.COMPANY_ENDINGS)}"

    def product(self) -> str:
        return f"{self.word()} {self.pick(words.NOUNS)}"

    def password(self) -> str:
        return self.draw(
            lambda: (
                f"{self.syllables(1, 2)}{self.digits(3)}{self.pick('#!$%&')}{self.digits(1)}"
                f"{self.pick('ABCDEFGHKLMNPRSTXYZ')}"
            )
        )
