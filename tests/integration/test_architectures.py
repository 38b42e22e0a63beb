"""Caches of states travel sealed between two processes: the cloud serves a tiny model of each kind over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitinfer.errors import UnsupportedCacheError
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.segments import note, public, question
from splitinfer.session import Session
from tests.support.architectures import save_architecture
from tests.support.memory_clouds import EXACT_REMOTE_MODES, policy_of
from tests.support.processes import cloud_process

# Longer than every window and stride, before and after the border of public and private text.
PROMPT = [public("a public list of lamps and kettles " * 2), note("a private note " * 2), question("which one?")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v4", "mamba2", "zaya", "minimax"])
def test_cache_of_states_gives_identical_ids_in_all_modes_between_two_processes(name: str, tmp_path: Path) -> None:
    directory = str(save_architecture(tmp_path / name, name))
    engine = Engine(load(directory))
    with cloud_process(tmp_path / "run", model=directory) as cloud:
        device = Home(cloud.home.parent / "device")

        def run(mode: str, **transfer: int) -> tuple[int, ...]:
            with Session.open(policy_of(mode, **transfer), home=device, engine=engine) as session:
                answer = session.run(PROMPT, max_new_tokens=8)
            assert answer.exact
            return answer.token_ids

        local = run("local")
        assert len(local) > 0
        for mode in EXACT_REMOTE_MODES:
            assert run(mode) == local, mode
        with pytest.raises(UnsupportedCacheError, match="verify_rows = 0"):
            run("public-prefix", verify_rows=4)
