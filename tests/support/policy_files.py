"""Policies for the command line: the built-in one's name, or a file where a mode's sampling stands in the policy."""

from __future__ import annotations

from pathlib import Path

from tests.support.memory_clouds import NOISE, NOISED_MODES, STATED_MODES


def named_or_written(mode: str, folder: Path, *, max_new_tokens: int) -> str:
    """Return what `--policy` takes; a noised mode's file has little noise and a budget that no test spends."""
    if mode not in NOISED_MODES:
        return mode
    lines = [f'mode = "{mode}"', "[remote]", 'name = "default"', "[noise]"]
    lines += [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in NOISE.items()]
    if mode in STATED_MODES:
        lines += ["[sampling]", f"max_new_tokens = {max_new_tokens}"]
    file = folder / f"{mode}.toml"
    file.write_text("\n".join(lines) + "\n")
    return str(file)
