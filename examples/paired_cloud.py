"""Start a cloud on this machine, pair it with a fresh device, and let it prefill a sealed prompt.

`serve --pair` writes both state folders: the cloud allows the device's key, and the device pins the cloud's identity
under the name `default`, which the built-in policies use. Between two machines, `splitinfer keys allow` and
`splitinfer keys trust` do the same.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitinfer import Session, note, question


@contextmanager
def paired_cloud(base: Path) -> Iterator[str]:
    """Run a cloud process until the block ends; yields its URL."""
    command = [sys.executable, "-m", "splitinfer", "--home", str(base / "cloud"), "serve", "--port", "0", "--json"]
    with subprocess.Popen([*command, "--pair", str(base / "device")], stdout=subprocess.PIPE, text=True) as cloud:
        try:
            line = cloud.stdout.readline() if cloud.stdout else ""
            yield json.loads(line)["url"]
        finally:
            cloud.terminate()


def main() -> None:
    """Ask one question; the answer comes as it is made."""
    prompt = [
        note("Support ticket TCK-48213\nCustomer: Maria Lopez\nPhone: 415-203-7786\nProduct: Karimo router"),
        question("What is the phone number of Maria Lopez?"),
    ]
    with tempfile.TemporaryDirectory() as scratch, paired_cloud(Path(scratch)) as url:
        print(f"cloud at {url}")
        with Session.open("sealed-prefill", home=Path(scratch) / "device") as session:
            stream = session.stream(prompt, max_new_tokens=40)
            for piece in stream:
                print(piece, end="", flush=True)
            print(f"\n{stream.answer.egress}")
            if receipt := stream.answer.receipt:
                print(f"the cloud's receipt: { {event.event: event.count for event in receipt.body.events} }")


if __name__ == "__main__":
    main()
