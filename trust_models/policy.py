"""Policy files: a TOML file, text or built-in name -> Policy, or PolicyError; device side.

Everything that is unknown, contradictory or weak is refused with a sentence that says what to write instead.
"""

from __future__ import annotations

import os
import stat
import tomllib
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from splitinfer.errors import PolicyError
from trust_models.modes import TrustMode
from trust_models.noise import Noise, Sampling
from trust_models.rounds import Homomorphic, Masked
from trust_models.schema import Audit, Fallback, Model, Policy, Remote, SegmentRule, Segments, Session, Store, Transfer
from trust_models.translation import sentence

__all__ = [
    "MAX_POLICY_BYTES",
    "Audit",
    "Fallback",
    "Homomorphic",
    "Masked",
    "Model",
    "Noise",
    "Policy",
    "Remote",
    "Sampling",
    "SegmentRule",
    "Segments",
    "Session",
    "Store",
    "Transfer",
    "builtin_names",
    "builtin_text",
    "load_builtin",
    "load_policy",
    "parse_policy",
    "policy_text",
    "resolve",
]

MAX_POLICY_BYTES = 64 * 1024


def resolve(name_or_path: str) -> Policy:
    """Return the built-in policy of this name, or else the policy in this file; write ./NAME for a file called so.

    Raises PolicyError.
    """
    text, origin = policy_text(name_or_path)
    return parse_policy(text, origin=origin)


def policy_text(name_or_path: str) -> tuple[str, str]:
    """Return the TOML text that `resolve` reads, unchecked, and its origin for messages. Raises PolicyError."""
    if name_or_path in builtin_names():
        return builtin_text(name_or_path), f"built-in policy {name_or_path}"
    try:
        return _read(Path(name_or_path)), f"policy {name_or_path}"
    except FileNotFoundError:
        raise PolicyError(
            f"there is neither a built-in policy nor a file {name_or_path!r}; "
            f"write one of {', '.join(builtin_names())}, or the path of a policy file"
        ) from None


def load_policy(path: Path) -> Policy:
    """Return the policy in this file. Raises PolicyError, also where the file cannot be read or exceeds 64 KiB."""
    try:
        text = _read(path)
    except FileNotFoundError:
        raise PolicyError(f"there is no policy file {path}; write the path of one") from None
    return parse_policy(text, origin=f"policy {path}")


def parse_policy(text: str, *, origin: str) -> Policy:
    """Return the policy that the text says; `origin` names the text in messages. Raises PolicyError."""
    _require_small(len(text.encode("utf-8", "surrogatepass")), origin)
    tables = _tables(text, origin)
    if not tables:
        raise PolicyError(f'{origin} is empty; write at least mode = "local", or start from a built-in policy')
    try:
        return Policy.model_validate(tables)
    except ValidationError as error:
        found = sentence(error)
    raise PolicyError(f"{origin}: {found}")


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in policies: one for each trust mode."""
    return tuple(mode.value for mode in TrustMode)


def builtin_text(name: str) -> str:
    """Return a built-in policy as it is written, comments included. Raises PolicyError for an unknown name."""
    if name not in builtin_names():
        raise PolicyError(f"there is no built-in policy {name!r}; write one of {', '.join(builtin_names())}")
    return (resources.files("trust_models") / "builtin" / f"{name}.toml").read_text(encoding="utf-8")


def load_builtin(name: str) -> Policy:
    """Return a built-in policy. Raises PolicyError for an unknown name."""
    return parse_policy(builtin_text(name), origin=f"built-in policy {name}")


def _tables(text: str, origin: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise PolicyError(f"{origin} is nested too deeply; write sections of plain keys") from None
    except ValueError as error:  # TOMLDecodeError, and int() on thousands of digits
        raise PolicyError(f'{origin} is not TOML: {error}; write lines such as key = "text"') from None


def _read(path: Path) -> str:
    try:
        # A pipe or device could block or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise PolicyError(f"policy {path} is not a file; write the path of a TOML file")
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PolicyError(f"policy {path} cannot be read ({error.strerror}); check its path and permissions") from None
    except ValueError:
        raise PolicyError("the policy's path holds a NUL character; write the path of a TOML file") from None
    _require_small(len(data), f"policy {path}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"policy {path} is not TOML: it is not UTF-8 text; save it as UTF-8") from None


def _require_small(size_bytes: int, origin: str) -> None:
    if size_bytes > MAX_POLICY_BYTES:
        raise PolicyError(f"{origin} is larger than {MAX_POLICY_BYTES} bytes; write fewer rules, with patterns")
