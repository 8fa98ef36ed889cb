"""What a machine tells, from a tree of files that a test writes."""

from __future__ import annotations

import json

import pytest

from runtimes.machine import Conditions, conditions, description, environment, peak_rss_mb


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPUINFO = (
    "processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz: yes\ncpu MHz\t\t: 2000.0\n\nmodel name\t: x\ncpu MHz\t: 3000.0\n"
)
CPU = "sys/devices/system/cpu"


def test_load_clock_and_governor_are_read(tmp_path):
    root = machine(
        tmp_path,
        {
            "proc/loadavg": "1.25 0.50 0.10 2/300 777\n",
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
            f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{CPU}/cpu1/cpufreq/scaling_governor": "performance\n",
            "proc/cpuinfo": CPUINFO,
        },
    )
    assert conditions(root) == Conditions(load=1.25, mhz=1500.0, governor="performance,powersave")


def test_without_cpufreq_the_clock_is_the_processors_own_word(tmp_path):
    assert conditions(machine(tmp_path, {"proc/cpuinfo": CPUINFO})) == Conditions(None, 2500.0, None)


def test_what_a_machine_does_not_tell_is_null(tmp_path):
    assert conditions(tmp_path) == Conditions(None, None, None)
    assert peak_rss_mb(tmp_path) is None


@pytest.mark.parametrize("text", ["", "unknown"])
def test_what_is_no_number_is_null(tmp_path, text):
    root = machine(tmp_path, {"proc/loadavg": text, f"{CPU}/cpu0/cpufreq/scaling_cur_freq": text})
    assert conditions(root) == Conditions(None, None, None)


def test_the_description_names_the_processor_and_what_is_installed(tmp_path):
    found = description(machine(tmp_path, {"proc/cpuinfo": CPUINFO}))
    assert found["cpu"] == "Fast CPU @ 3 GHz: yes"
    assert found["cores"] >= 1
    assert {"numpy", "onnxruntime", "torch"} <= set(found["versions"])
    assert description(tmp_path / "none")["cpu"]


def test_the_environment_is_json_with_the_state_before_and_after(tmp_path):
    found = environment(Conditions(1.0, None, None), Conditions(2.0, 3.0, "x"), tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert (found["load_before"], found["load_after"], found["mhz"], found["mhz_after"]) == (1.0, 2.0, None, 3.0)


def test_the_peak_is_in_mib(tmp_path):
    assert peak_rss_mb(machine(tmp_path, {"proc/self/status": "VmPeak:\t9 kB\nVmHWM:\t    2048 kB\n"})) == 2.0
