"""The kinds of private notes, as data: patient records, tickets, contracts, transfers, staff files and claims."""

from __future__ import annotations

from tools.corpus import words
from tools.corpus.drawer import Drawer
from tools.corpus.marked import capitalised
from tools.corpus.schema import Field, NoteKind

__all__ = ["DOSE", "MEDICATION", "NOTE_KINDS", "free_kind", "free_name_labels"]

# Identity and contact.
BIRTH_DATE = Field(("DOB", "Date of birth", "Born"), ("date of birth", "birth date"), Drawer.date)
PHONE = Field(("Phone", "Tel", "Phone number"), ("phone number", "telephone number"), Drawer.phone)
EMAIL = Field(("Email", "E-mail"), ("email", "email address"), Drawer.email)
ADDRESS = Field(("Address", "Home address"), ("address", "home address"), Drawer.address)
NATIONAL_ID = Field(("SSN", "National id"), ("SSN", "national id"), Drawer.national_id)

# Health.
DIAGNOSIS = Field(("Diagnosis", "Condition"), ("diagnosis", "condition"), lambda d: d.pick(words.CONDITIONS))
MEDICATION = Field(("Medication", "Drug", "Prescribed"), ("medication", "prescribed drug"), Drawer.drug)
DOSE = Field(("Dosage", "Dose"), ("dosage", "dose"), Drawer.dose)
ALLERGY = Field(("Allergy",), ("allergy",), lambda d: d.pick(words.ALLERGIES))
DOCTOR = Field(("Doctor", "Physician"), ("doctor", "physician"), lambda d: f"Dr. {d.word()}")
VISIT = Field(("Visit", "Last visit"), ("visit date", "last visit"), Drawer.date)

# Money.
CARD = Field(("Card", "Card number"), ("card number", "credit card number"), Drawer.card)
IBAN = Field(("IBAN", "Account IBAN"), ("IBAN",), Drawer.iban)
ACCOUNT = Field(("Account id", "Account number"), ("account id", "account number"), Drawer.account)
AMOUNT = Field(("Amount", "Total"), ("amount", "total"), Drawer.amount)
REFUND = Field(("Refund",), ("refund", "refund amount"), Drawer.amount)
PAYEE = Field(("Beneficiary", "Paid to"), ("beneficiary", "payee"), Drawer.name)
REASON = Field(("Reason", "Purpose"), ("reason", "purpose"), lambda d: d.pick(words.REASONS))
TRANSFER_DATE = Field(("Transfer date", "Executed on"), ("transfer date", "execution date"), Drawer.date)
REFERENCE = Field(("Reference", "Ref"), ("reference", "reference number"), lambda d: d.code("REF"))

# Orders and contracts.
ORDER = Field(("Order", "Order number"), ("order number",), lambda d: d.code("ORD"))
PRODUCT = Field(("Product", "Item"), ("product", "item"), Drawer.product)
ISSUE = Field(("Issue", "Problem"), ("issue", "problem"), lambda d: d.pick(words.ISSUES))
PASSWORD = Field(("Password", "Temporary password"), ("password", "temporary password"), Drawer.password)
SUPPLIER = Field(("Supplier", "Company"), ("supplier", "company"), Drawer.company)
SUBJECT = Field(("Subject", "Services"), ("subject", "services"), lambda d: d.pick(words.SUBJECTS))
CONTRACT_VALUE = Field(("Contract value", "Value"), ("contract value", "value"), Drawer.amount)
START_DATE = Field(("Start date", "Starts"), ("start date",), Drawer.date)
END_DATE = Field(("End date", "Ends"), ("end date",), Drawer.date)
POLICY = Field(("Policy", "Policy number"), ("policy number",), lambda d: d.code("POL"))

# Work.
JOB = Field(("Role", "Position"), ("role", "position"), lambda d: d.pick(words.JOBS))
DEPARTMENT = Field(("Department", "Dept"), ("department",), lambda d: d.pick(words.DEPARTMENTS))
SALARY = Field(("Salary", "Annual salary"), ("salary", "annual salary"), Drawer.amount)
MANAGER = Field(("Manager", "Reports to"), ("manager", "line manager"), Drawer.name)

NOTE_KINDS = (
    NoteKind(
        title="Patient record",
        name_labels=("Patient", "Name"),
        person="patient",
        id_prefix="MRN",
        fields=(
            *(BIRTH_DATE, PHONE, EMAIL, ADDRESS, DIAGNOSIS, MEDICATION),
            *(DOSE, ALLERGY, DOCTOR, VISIT, NATIONAL_ID),
        ),
    ),
    NoteKind(
        title="Support ticket",
        name_labels=("Customer", "Name"),
        person="customer",
        id_prefix="TCK",
        fields=(PHONE, EMAIL, ORDER, PRODUCT, ISSUE, REFUND, CARD, PASSWORD, ACCOUNT, ADDRESS),
    ),
    NoteKind(
        title="Contract",
        name_labels=("Client", "Signed by"),
        person="client",
        id_prefix="CTR",
        fields=(SUPPLIER, SUBJECT, CONTRACT_VALUE, START_DATE, END_DATE, EMAIL, PHONE, IBAN),
    ),
    NoteKind(
        title="Bank transfer",
        name_labels=("Sender", "From"),
        person="sender",
        id_prefix="TRX",
        fields=(PAYEE, AMOUNT, IBAN, ACCOUNT, TRANSFER_DATE, REASON, REFERENCE),
    ),
    NoteKind(
        title="Employee file",
        name_labels=("Employee", "Name"),
        person="employee",
        id_prefix="EMP",
        fields=(JOB, DEPARTMENT, SALARY, MANAGER, BIRTH_DATE, PHONE, EMAIL, IBAN, NATIONAL_ID),
    ),
    NoteKind(
        title="Insurance claim",
        name_labels=("Policy holder", "Name"),
        person="policy holder",
        id_prefix="CLM",
        fields=(POLICY, AMOUNT, VISIT, REASON, PHONE, EMAIL, ACCOUNT, ADDRESS),
    ),
)

_FREE_FIELDS = 9
_FREE_NAME_LABELS = (("Name",), ("Guest",), ("Member",), ("Owner",), ("Holder",), ("Visitor",), ("Driver",), ("For",))


def free_name_labels() -> tuple[str, ...]:
    """Return what stands before the name in a note of a free kind."""
    return tuple(label for labels in _FREE_NAME_LABELS for label in labels)


def free_kind(drawer: Drawer) -> NoteKind:
    """Draw a kind of note whose fields have any noun and any value, so that labels are read and not remembered."""
    nouns = {drawer.label(): None for _ in range(_FREE_FIELDS)}
    name_labels = drawer.pick(_FREE_NAME_LABELS)
    return NoteKind(
        title=drawer.pick(words.RECORD_TITLES),
        name_labels=name_labels,
        person=name_labels[0].lower() if name_labels[0] not in ("Name", "For") else "person",
        id_prefix=drawer.pick("ABCDEFGHKLMPRSTVX") + drawer.pick("ABCDEFGHKLMPRSTVX"),
        fields=tuple(Field((capitalised(noun),), (noun,), Drawer.value) for noun in nouns),
    )
