"""Power is lost at every operation of a day of seven processes; every promise of the log is kept."""

from __future__ import annotations

import ast
import contextlib
import itertools
from pathlib import Path

import pytest

import splitinfer.egress
from splitinfer.egress.records import framed
from splitinfer.errors import SplitInferError
from tests.support.audit_scenario import (
    STATE_EVERY,
    Promises,
    a_day,
    check_promises,
    crashes,
    numbers,
    open_log,
    operations_of_a_day,
)
from tests.support.lossy_files import SYNC_HELPERS, LossyDisk, LossyFiles, PowerLoss, Survivors

SURVIVORS = ["none", "all", "torn", "zeros", *(f"random {seed}" for seed in range(6))]
SYNC_SITES = [
    "sync < append",
    "sync < _sync_foreign < append",
    "sync < _sync_foreign < save_state",
    "sync < _sync_foreign < checkpoint",
    "sync < write_small < save_state",
    "sync < write_small < checkpoint",
    "sync < write_small < commit",
    "sync_directory < _make",
    "sync_directory < erase",
    "sync_directory < write_small < save_state",
    "sync_directory < write_small < checkpoint",
    "sync_directory < write_small < commit",
]


@pytest.fixture(autouse=True)
def _state_is_saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinfer.egress.storage.STATE_EVERY", STATE_EVERY)


def test_a_day_without_a_crash_keeps_its_promises() -> None:
    disk, promises = LossyDisk(), Promises()
    a_day(disk, promises)
    assert len(promises.at_index) > 10
    check_promises(disk, promises)


@pytest.mark.parametrize("kind", SURVIVORS)
def test_log_opens_and_keeps_its_promises_after_a_loss_of_power_anywhere(kind: str) -> None:
    points = set()
    for point, _, disk, promises in crashes(survivors=[kind]):
        check_promises(disk, promises)
        points.add(point)
    assert points == set(range(1, operations_of_a_day() + 2))
    assert len(points) > 150


@pytest.mark.parametrize("kind", ["none", "torn", "zeros", "random 7"])
def test_second_loss_of_power_during_recovery_breaks_no_promise(kind: str) -> None:
    total = operations_of_a_day()
    for point in range(20, total + 1, 12):
        _, _, disk, promises = next(crashes(survivors=["torn"], points=[point]))
        recovery = 0
        is_recovered = False
        while not is_recovered:
            recovery += 1
            again = disk.after_power_loss(Survivors("all"))
            again.power_loss_at = recovery
            try:
                open_log(LossyFiles(again), numbers(start=1 << 40))
                is_recovered = True
            except PowerLoss:
                check_promises(again.after_power_loss(Survivors(kind)), promises)
        assert recovery > 5


def test_torn_record_is_never_lost_without_a_record_of_the_cut() -> None:
    disk, promises = LossyDisk(), Promises()
    a_day(disk, promises)
    log = disk.node(Path("/home/audit/log"))
    log.durable = log.current() + framed(b"x" * 300)[:250]
    log.pending = []
    promises.cuts += 1
    for point in range(1, 30):
        again = disk.after_power_loss(Survivors("all"))
        again.power_loss_at = point
        with contextlib.suppress(PowerLoss):
            open_log(LossyFiles(again), numbers(start=1 << 40))
        for kind in SURVIVORS:
            check_promises(again.after_power_loss(Survivors(kind)), promises)


@pytest.mark.parametrize("site", SYNC_SITES)
def test_every_fsync_is_needed(site: str) -> None:
    """Without the fsync of any one call site, some loss of power breaks a promise."""
    for _, _, disk, promises in crashes(survivors=SURVIVORS, ignored_site=site):
        try:
            check_promises(disk, promises)
        except (AssertionError, SplitInferError):
            return
    pytest.fail(f"nothing breaks without the fsync of: {site}")


def test_a_day_passes_every_fsync_call_site_of_the_product() -> None:
    disk = LossyDisk()
    a_day(disk, Promises())
    assert disk.sync_sites == set(SYNC_SITES)
    in_source = _calls_in_source()
    covered = {pair for site in SYNC_SITES for pair in _pairs(site)}
    assert {pair for pair in in_source if pair[1] not in {"fsync", "fsync_directory"}} == covered


def _pairs(site: str) -> list[tuple[str, str]]:
    """Split 'sync < write_small < commit' into (caller, called) pairs, innermost first."""
    names = site.split(" < ")
    return [(caller, called) for called, caller in itertools.pairwise(names)]


def _calls_in_source() -> set[tuple[str, str]]:
    found = set()
    for path in Path(splitinfer.egress.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                names = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
                found |= {(function.name, name) for name in names & (SYNC_HELPERS | {"fsync", "fsync_directory"})}
    return {pair for pair in found if pair[0] not in {"fsync", "fsync_directory"}}


def test_opening_after_a_loss_of_power_reads_only_the_records_behind_the_saved_state() -> None:
    disk = LossyDisk()
    log = open_log(LossyFiles(disk), numbers())
    for number in range(200):
        log.append({"type": "local", "name": f"{number}"})
    lost = disk.after_power_loss(Survivors("none"))
    length = len(lost.node(Path("/home/audit/log")).current())
    open_log(LossyFiles(lost), numbers(start=1 << 40))
    assert lost.bytes_read["log"] <= (STATE_EVERY + 1) * length // 200 + 200
