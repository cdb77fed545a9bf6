"""The machine and the versions that a result was measured with."""

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("keras_gibbs", "keras", "tensorflow", "jax", "numpy", "tf_keras", "tensorflow-model-optimization")


def version(package):
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(packages=PACKAGES):
    """Where and with what a benchmark ran, as a dict for JSON."""
    import keras

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
        "commit": commit(),
        "versions": {name: version(name) for name in packages},
    }


@functools.cache
def commit():
    """The commit of the checkout that this process began with, or None outside of one."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def cores():
    """Cores that this process computes on: those it may use, or the threads that `TF_NUM_INTRAOP_THREADS` leaves TensorFlow, if that is fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed, int(os.environ.get("TF_NUM_INTRAOP_THREADS") or allowed))


def gpus():
    """The GPUs that the backend sees, as text."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return [str(device) for device in jax.devices() if device.platform != "cpu"]
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU")]
