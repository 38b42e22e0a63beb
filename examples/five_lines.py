"""Ask a private question about a public document and a private note, on the model that ships with the package.

Under the policy `local` nothing leaves this machine. To let a cloud take part, write another policy's name instead
("public-prefix", "sealed-prefill", "sealed-decode") or the path of your own TOML file, leave `home` out so that the
keys and the log of your own state folder are used, and trust a cloud first: `splitinfer keys trust default URL`.
"""

import tempfile

from splitinfer import Session, note, public, question

PRICES = "Price list of Velmora Systems\n- Belsa lamp: price $19.90, stock 36 units\n- Karimo router: price $215.00"
TICKET = "Support ticket TCK-48213\nCustomer: Maria Lopez\nPhone: 415-203-7786\nProduct: Karimo router"

with tempfile.TemporaryDirectory() as home, Session.open("local", home=home) as session:
    answer = session.run([public(PRICES), note(TICKET), question("What is the phone number of Maria Lopez?")])
    print(answer.text.strip())
    print(answer.egress)  # also answer.token_ids, answer.receipt, answer.ttft_seconds
