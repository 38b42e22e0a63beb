"""What the corpus speaks of: fields of notes, kinds of notes, kinds of tables, forms of questions."""

from __future__ import annotations

from collections.abc import Callable

from tools.corpus import words
from tools.corpus.drawer import Drawer

Draw = Callable[[Drawer], str]

# name: (labels in forms, nouns in questions, drawer)
FIELDS: dict[str, tuple[list[str], list[str], Draw]] = {
    "dob": (["DOB", "Date of birth", "Born"], ["date of birth", "birth date"], Drawer.date),
    "phone": (["Phone", "Tel", "Phone number"], ["phone number", "telephone number"], Drawer.phone),
    "email": (["Email", "E-mail"], ["email", "email address"], Drawer.email),
    "addr": (["Address", "Home address"], ["address", "home address"], Drawer.address),
    "card": (["Card", "Card number"], ["card number", "credit card number"], Drawer.card),
    "iban": (["IBAN", "Account IBAN"], ["IBAN", "bank account"], Drawer.iban),
    "acct": (["Account", "Account id"], ["account id", "account"], Drawer.account),
    "cond": (["Diagnosis", "Condition"], ["diagnosis", "condition"], lambda d: d.pick(words.CONDITIONS)),
    "drug": (["Medication", "Drug", "Prescribed"], ["medication", "prescribed drug"], Drawer.drug),
    "dose": (["Dosage", "Dose"], ["dosage", "dose"], Drawer.dose),
    "allergy": (["Allergy", "Allergies"], ["allergy"], lambda d: d.pick(words.ALLERGIES)),
    "doctor": (["Doctor", "Physician"], ["doctor", "physician"], lambda d: "Dr. " + d.word()),
    "visit": (["Visit", "Last visit"], ["visit date", "last visit"], Drawer.date),
    "order": (["Order", "Order number"], ["order number", "order"], lambda d: d.code("ORD")),
    "product": (["Product", "Item"], ["product", "item"], Drawer.product),
    "issue": (["Issue", "Problem"], ["issue", "problem"], lambda d: d.pick(words.ISSUES)),
    "amount": (["Amount", "Total"], ["amount", "total"], Drawer.amount),
    "refund": (["Refund"], ["refund", "refund amount"], Drawer.amount),
    "pw": (["Password", "Temporary password"], ["password", "temporary password"], Drawer.password),
    "company": (["Supplier", "Company"], ["supplier", "company"], Drawer.company),
    "subject": (["Subject", "Services"], ["subject", "services"], lambda d: d.pick(words.SUBJECTS)),
    "value": (["Contract value", "Value"], ["contract value", "value"], Drawer.amount),
    "start": (["Start date", "Starts"], ["start date"], Drawer.date),
    "end": (["End date", "Ends"], ["end date"], Drawer.date),
    "payee": (["Beneficiary", "Paid to"], ["beneficiary", "payee"], Drawer.name),
    "reason": (["Reason", "Purpose"], ["reason", "purpose"], lambda d: d.pick(words.REASONS)),
    "tdate": (["Transfer date", "Executed on"], ["transfer date", "execution date"], Drawer.date),
    "ref": (["Reference", "Ref"], ["reference", "reference number"], lambda d: d.code("REF")),
    "role": (["Role", "Position"], ["role", "position"], lambda d: d.pick(words.JOBS)),
    "dept": (["Department", "Dept"], ["department"], lambda d: d.pick(words.DEPARTMENTS)),
    "salary": (["Salary", "Annual salary"], ["salary", "annual salary"], Drawer.amount),
    "manager": (["Manager", "Reports to"], ["manager", "line manager"], Drawer.name),
    "policy": (["Policy", "Policy number"], ["policy number", "policy"], lambda d: d.code("POL")),
    "ssn": (
        ["SSN", "National id"],
        ["SSN", "national id"],
        lambda d: d.draw(lambda: f"{d.digits(3)}-{d.digits(2)}-{d.digits(4)}"),
    ),
}
# name: (title, labels of the name, noun of the person, prefix of the record id, fields)
NOTES: dict[str, tuple[str, list[str], str, str, list[str]]] = {
    "patient": (
        "Patient record",
        ["Patient", "Name"],
        "patient",
        "MRN",
        ["dob", "phone", "email", "addr", "cond", "drug", "dose", "allergy", "doctor", "visit", "ssn"],
    ),
    "ticket": (
        "Support ticket",
        ["Customer", "Name"],
        "customer",
        "TCK",
        ["phone", "email", "order", "product", "issue", "refund", "card", "pw", "acct", "addr"],
    ),
    "contract": (
        "Contract",
        ["Client", "Signed by"],
        "client",
        "CTR",
        ["company", "subject", "value", "start", "end", "email", "phone", "iban"],
    ),
    "transfer": (
        "Bank transfer",
        ["Sender", "From"],
        "sender",
        "TRX",
        ["payee", "amount", "iban", "acct", "tdate", "reason", "ref"],
    ),
    "employee": (
        "Employee file",
        ["Employee", "Name"],
        "employee",
        "EMP",
        ["role", "dept", "salary", "manager", "dob", "phone", "email", "iban", "ssn"],
    ),
    "claim": (
        "Insurance claim",
        ["Policy holder", "Name"],
        "policy holder",
        "CLM",
        ["policy", "amount", "visit", "reason", "phone", "email", "acct", "addr"],
    ),
}
PROSE = [
    "The {q} of {n} is {v}.",
    "{n} has {q} {v}.",
    "The {q} is {v}.",
    "{Q}: {v}.",
    "We noted the {q} as {v}.",
    "The {q} on file is {v}.",
]
ASK_BY_NAME = [
    "What is the {q} of {n}?",
    "{q} of {n}?",
    "Give me the {q} of {n}.",
    "Tell me the {q} for {n}.",
    "{n}: {q}?",
    "What {q} does {n} have?",
]
ASK_BY_ID = ["What is the {q} in {i}?", "{i}: {q}?", "Give me the {q} for {i}."]
ASK_ALONE = ["What is the {q}?", "Give me the {q}.", "{q}?"]
# (title, drawer of the key, columns: label, noun in questions, drawer)
TABLES: list[tuple[str, Draw, list[tuple[str, str, Draw]]]] = [
    (
        "Price list of {c}",
        Drawer.product,
        [
            ("Price", "price", Drawer.amount),
            ("Stock", "stock", lambda d: d.digits(d.rng.randint(1, 3)) + " units"),
            ("Part", "part number", lambda d: d.code("P")),
        ],
    ),
    (
        "Product manual of {c}: error codes",
        lambda d: "E" + d.number(3),
        [
            ("Meaning", "meaning", lambda d: d.pick(words.ISSUES)),
            (
                "Action",
                "action",
                lambda d: (
                    d.pick(["replace the ", "clean the ", "reset the ", "check the ", "tighten the "])
                    + d.pick(words.NOUNS)
                ),
            ),
            ("Page", "page", lambda d: d.digits(2)),
        ],
    ),
    (
        "Phone directory of {c}",
        Drawer.name,
        [
            ("Extension", "extension", lambda d: d.number(4)),
            ("Room", "room", lambda d: d.pick("ABCDEFG") + d.digits(3)),
            ("Email", "email", Drawer.email),
        ],
    ),
    (
        "Policy table of {c}",
        lambda d: d.pick(words.CITIES) + " plan " + d.word(1, 2),
        [
            ("Limit", "limit", Drawer.amount),
            ("Deductible", "deductible", Drawer.amount),
            (
                "Waiting period",
                "waiting period",
                lambda d: d.pick("123456789") + d.pick(["", d.digits(1)]) + " " + d.pick(["days", "weeks", "months"]),
            ),
        ],
    ),
    (
        "Timetable of {c}",
        lambda d: "Line " + d.number(3),
        [
            ("Departure", "departure", lambda d: f"{d.rng.randint(0, 23):02d}:{d.rng.randint(0, 59):02d}"),
            ("Platform", "platform", lambda d: str(d.rng.randint(1, 30))),
            ("To", "destination", lambda d: d.pick(words.CITIES)),
        ],
    ),
    (
        "Drug formulary of {c}",
        Drawer.drug,
        [("Dose", "dose", Drawer.dose), ("Price", "price", Drawer.amount), ("Code", "code", lambda d: d.code("RX"))],
    ),
]
