"""What a fork server imports must leave CUDA alone: under a CUDA build of torch, with no GPU.

The driver is a stub that notes each call; NVML, which may be asked, says that there are GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import castor_configs
import castor_policy
import castor_records
import castor_runtime

VARIABLE = "CASTOR_CUDA_PYTHON"
PYTHON = os.environ.get(VARIABLE, "")
PROGRAM = Path(__file__).with_name("cuda_preload_program.py")
PACKAGES: tuple[Any, ...] = (castor_configs, castor_policy, castor_records, castor_runtime)
DRIVER = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
static int told(const char* what) {
  FILE* calls = std::fopen(std::getenv("CASTOR_STUB_CALLS"), "a");
  if (calls) { std::fprintf(calls, "%s\\n", what); std::fclose(calls); }
  return 100;  // CUDA_ERROR_NO_DEVICE
}
extern "C" {
int cuInit(unsigned) { return told("cuInit"); }
int cuDriverGetVersion(int* version) { told("cuDriverGetVersion"); *version = 13020; return 0; }
int cuDeviceGetCount(int* count) { *count = 0; return told("cuDeviceGetCount"); }
int cuGetProcAddress(const char* name, void** found, int, unsigned long long) {
  told(name);
  *found = std::strcmp(name, "cuInit") ? nullptr : reinterpret_cast<void*>(&cuInit);
  return *found ? 0 : 500;
}
int cuGetProcAddress_v2(const char* name, void** found, int v, unsigned long long f, void*) {
  return cuGetProcAddress(name, found, v, f);
}
}
"""
NVML = """
extern "C" {
int nvmlInit() { return 0; }
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 8; return 0; }
}
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not PYTHON,
        reason=f"set {VARIABLE} to the Python (this version) of an environment with a CUDA build "
        "of torch (python -m venv cuda; cuda/bin/pip install torch: some GB); no GPU is needed",
    ),
]


def _is_of_packages(place: str) -> bool:
    return Path(place).name == "site-packages"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cuda")
    compiler = shutil.which("c++")
    assert compiler is not None, "the stub of the driver needs a C++ compiler"
    for name, source in (("libcuda.so.1", DRIVER), ("libnvidia-ml.so.1", NVML)):
        (folder / f"{name}.cc").write_text(source)
        made = ["-shared", "-fPIC", "-o", str(folder / name), str(folder / f"{name}.cc")]
        subprocess.run([compiler, *made], check=True)
    rooms = {str(Path(one.__file__).parents[1]) for one in PACKAGES}
    ended = subprocess.run(
        [PYTHON, str(PROGRAM), str(folder), *sorted(rooms), *filter(_is_of_packages, sys.path)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LD_LIBRARY_PATH": str(folder),
            "CASTOR_STUB_CALLS": str(folder / "calls"),
            # numpy's own thread ends by itself at a fork, and would hide one of CUDA's here.
            "OPENBLAS_NUM_THREADS": "1",
        },
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert said["code"] == 0, said["log"]
    return said


def test_it_is_a_build_for_gpus_that_sees_some(found: dict[str, Any]) -> None:
    assert found["cuda"]
    assert found["available"]
    assert found["accelerator"] == "cuda"


def test_nothing_that_is_imported_asks_the_driver(found: dict[str, Any]) -> None:
    assert found["calls_before"] == []
    assert "cuInit" in found["calls_after"], "else the stub would not tell"


def test_the_fork_server_has_one_thread(found: dict[str, Any]) -> None:
    assert len(found["threads"]) == 1, found["threads"]


def test_a_trainer_may_use_its_gpu(found: dict[str, Any]) -> None:
    assert not found["initialized"]
    assert not found["bad_fork"]
