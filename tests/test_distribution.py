"""Distributed training: replicas, workers and devices make together what one device makes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cases import JAX

FOLDER = Path(__file__).parent / "distributed"


def start(script, **environment):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "jax" if JAX else "tensorflow", **environment}
    return subprocess.Popen([sys.executable, FOLDER / script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return output.strip().splitlines()[-1]


@pytest.mark.skipif(JAX, reason="a strategy of TensorFlow")
def test_two_replicas_train_as_one_device():
    assert finish(start("mirrored.py", KERAS_GIBBS_XLA="0")) == "fine"


@pytest.mark.skipif(not JAX, reason="a distribution on JAX")
def test_two_devices_train_as_one_whether_they_share_the_batch_or_the_kernels():
    assert finish(start("devices.py", XLA_FLAGS="--xla_force_host_platform_device_count=2")) == "fine"


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


@pytest.mark.skipif(JAX, reason="a strategy of TensorFlow")
def test_two_workers_train_alike_in_a_loop_of_their_own():
    addresses = free_addresses(2)
    tasks = [json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}) for index in range(2)]
    workers = [start("worker.py", TF_CONFIG=task, KERAS_GIBBS_XLA="0") for task in tasks]
    first, second = (finish(worker) for worker in workers)
    assert first == second and first.startswith("worker: ") and " 0.75" in first
