"""One prompt for demonstrations, as data: a public price list, a private ticket, a question and its right answer."""

from __future__ import annotations

__all__ = ["ANSWER", "DOCUMENT", "NOTE", "QUESTION"]

DOCUMENT = """Price list of Velmora Systems
- Torvan kettle: price $48.50, stock 120 units
- Belsa lamp: price $19.90, stock 36 units
- Karimo router: price $215.00, stock 8 units
- Danora heater: price $84.25, stock 57 units"""
NOTE = """Support ticket TCK-48213
Customer: Maria Lopez
Phone: 415-203-7786
Order: ORD-90417
Product: Karimo router
Issue: login failure"""
QUESTION = "What is the phone number of Maria Lopez?"
ANSWER = "415-203-7786"
