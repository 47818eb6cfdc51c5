"""Sensors as Linux shows them: files in folders, of which any may be missing, asleep or unnamed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from nexus_client import sensors


def files(folder: Path, **content: str) -> None:
    folder.mkdir(parents=True)
    for name, text in content.items():
        (folder / name).write_text(text)


def test_temperatures_are_told_by_zone_and_a_sleeping_one_is_left_out(tmp_path: Path) -> None:
    files(tmp_path / "thermal_zone0", type="cpu-thermal\n", temp="48500\n")
    files(tmp_path / "thermal_zone1", type="cpu-thermal\n", temp="-2500\n")
    files(tmp_path / "thermal_zone2", type="gpu thermal {x}\n", temp="51000\n")
    files(tmp_path / "thermal_zone3", type="cv0-thermal\n", temp="")
    files(tmp_path / "thermal_zone4", temp="1000\n")
    assert sensors.temperatures(tmp_path) == {
        "cpu-thermal": 48.5,
        "cpu-thermal-2": -2.5,
        "gpu-thermal-x-": 51.0,
        "thermal_zone4": 1.0,
    }


def test_power_is_told_by_rail_as_measured_or_as_voltage_times_current(tmp_path: Path) -> None:
    rail = {"in1_label": "VDD_IN\n", "in1_input": "5000\n", "curr1_input": "1200\n", "curr2_input": "7\n"}
    files(tmp_path / "hwmon0", name="ina3221\n", **rail)
    files(tmp_path / "hwmon1", name="amdgpu\n", power1_average="35000000\n")
    files(tmp_path / "hwmon2", name="acpitz\n", temp1_input="27800\n")
    assert sensors.powers(tmp_path) == {"VDD_IN": 6.0, "amdgpu-power1": 35.0}


def test_a_machine_without_sensors_tells_nothing(tmp_path: Path) -> None:
    assert sensors.temperatures(tmp_path / "none") == sensors.powers(tmp_path / "none") == {}


def test_a_gpu_is_looked_at_only_once_this_process_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: False)  # anything else would begin to use it
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert sensors.gpu_memory_used() is None
    cuda.is_initialized, cuda.mem_get_info = lambda: True, lambda device: (3 << 30, 8 << 30)
    assert sensors.gpu_memory_used() == 5 << 30
