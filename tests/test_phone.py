"""The bundle that times files on a phone: its script, run with an adb of its own, and the reader of what `benchmark_model` prints."""

import os
import subprocess

import pytest

from keras_gibbs.export import phone

pytestmark = pytest.mark.once

# As LiteRT's benchmark_model prints it: tools/benchmark/benchmark_model.cc, and `StatWithPercentiles` for the lines with counts.
LOG = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [50]
INFO: Num threads: [1]
INFO: Min warmup runs: [3]
INFO: Graph: [/data/local/tmp/keras_gibbs/sparse.tflite]
INFO: Use xnnpack: [1]
INFO: #threads used for CPU inference: [1]
INFO: Loaded model /data/local/tmp/keras_gibbs/sparse.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate.
INFO: The input model file size (MB): 1.66464
INFO: Initialized session in 14.203ms.
INFO: Running benchmark for at least 3 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=61 first=9913 curr=8120 min=8044 max=9913 avg=8197.6 std=252 p5=8071 median=8133 p95=8524

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=123 first=8102 curr=8093 min=8031 max=8377 avg=8110.25 std=49 p5=8050 median=8101 p95=8195

INFO: Inference timings in us: Init: 14203, First inference: 9913, Warmup (avg): 8197.6, Inference (avg): 8110.25
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime.
INFO: Memory footprint delta from the start of the tool (MB): init=9.76562 overall=12.6094
"""
SLOW = """Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
"""
BROKEN = """INFO: Loaded model /data/local/tmp/keras_gibbs/sparse.tflite
ERROR: XNNPack delegate failed to reshape runtime
ERROR: Failed to allocate tensors!
ERROR: Benchmarking failed.
"""


def test_the_output_of_benchmark_model_is_read():
    assert phone.read(LOG) == {"ms": 8.11025, "least_ms": 8.031, "init_ms": 14.203, "runs": 123, "failure": ""}
    assert phone.read(SLOW) == {"ms": 2950.34, "least_ms": 2727.568, "init_ms": 17.187, "runs": 50, "failure": ""}
    once = SLOW.replace("count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798", "count=1 curr=2913402 p5=1 median=1 p95=1")
    assert phone.read(once)["least_ms"] == 2913.402 and phone.read(once)["runs"] == 1
    assert phone.read(BROKEN) == {"failure": "ERROR: XNNPack delegate failed to reshape runtime"}
    assert phone.read("") == {"failure": "benchmark_model printed no times"}


@pytest.fixture
def bundled(tmp_path):
    for name, size in (("dense.tflite", 2000), ("sparse.tflite", 300)):
        (tmp_path / name).write_bytes(b"x" * size)
    return phone.bundle([tmp_path / "dense.tflite", tmp_path / "sparse.tflite"], tmp_path / "bundle", rounds=3, runs=20)


def run(script, adb):
    """Run the script with an `adb` of our own in front of the PATH."""
    folder = script.parent.parent / "bin"
    folder.mkdir()
    (folder / "adb").write_text(f"#!/bin/sh\n{adb}")
    (folder / "adb").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CORES": "f0"}
    return subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_script_times_the_files_in_turns_and_the_table_compares_them(bundled, tmp_path, capsys):
    (tmp_path / "dense.log").write_text(LOG.replace("(avg): 8110.25", "(avg): 24330.75"))
    (tmp_path / "sparse.log").write_text(LOG)
    answers = f"*dense.tflite*num_t*) cat {tmp_path}/dense.log;; *graph*) cat {tmp_path}/sparse.log;;"
    done = run(bundled, f'echo "$*" >> {tmp_path}/calls\ncase "$*" in {answers} esac\n')
    assert done.returncode == 0 and "it failed" not in done.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1] == "push benchmark_model dense.tflite sparse.tflite /data/local/tmp/keras_gibbs"
    assert calls[3].startswith("shell taskset f0 /data/local/tmp/keras_gibbs/benchmark_model --graph=/data/local/tmp/keras_gibbs/dense.tflite --num_threads=1")
    assert calls[3].endswith("--num_runs=20") and ["dense" in call for call in calls[3:]] == [True, False] * 3
    dense, sparse = phone.table(bundled.parent).rows
    assert (dense["ratio"], sparse["bytes"], sparse["rounds"]) == (1.0, 300, [8.11025] * 3) and sparse["ratio"] == pytest.approx(1 / 3)
    phone.main(["table", str(bundled.parent)])
    assert "3.00" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_file_that_fails_leaves_the_others_alone(bundled, tmp_path):
    (tmp_path / "good.log").write_text(LOG)
    (tmp_path / "bad.log").write_text(BROKEN)
    done = run(bundled, f'case "$*" in *dense.tflite*num_t*) cat {tmp_path}/good.log;; *graph*) cat {tmp_path}/bad.log; exit 1;; esac\n')
    assert done.returncode == 0 and done.stdout.count("it failed: see logs/sparse.tflite.") == 3
    dense, sparse = phone.table(bundled.parent).rows
    assert dense["ms"] == 8.11025 and sparse["failure"].endswith("failed to reshape runtime") and sparse["ratio"] is None
    assert "FAILS" in str(phone.Timings([dense, sparse])) and "sparse.tflite: ERROR: XNNPack" in str(phone.Timings([dense, sparse]))


def test_wrong_arguments_are_named(bundled, tmp_path, capsys):
    dense = tmp_path / "dense.tflite"
    for files, kwargs, message in (
        ([], {}, "at least one"),
        ([dense, dense], {}, "different names"),
        ([tmp_path / "none.tflite"], {}, "must exist"),
        ([dense], {"rounds": 0}, "`rounds` must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            phone.bundle(files, tmp_path / "new", **kwargs)
    with pytest.raises(ValueError, match="must be new or empty"):
        phone.bundle([dense], bundled.parent)
    with pytest.raises(ValueError, match="Run its run.sh first"):
        phone.table(bundled.parent)
    with pytest.raises(SystemExit):
        phone.main(["table", str(tmp_path)])
    assert "must be one that `bundle` wrote" in capsys.readouterr().err and not (tmp_path / "new").exists()
