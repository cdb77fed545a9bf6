"""Run one .tflite file in LiteRT, on one thread, and time it. It needs LiteRT and numpy, nothing else, so that any machine can run it.

    python benchmarks/device/run_tflite.py model.tflite inputs.npz outputs.npz --runs 10

`inputs.npz` holds the arrays `input0`, `input1` ..., each of samples of the file's own input shape: (samples, *shape). Every run takes the next sample.
The outputs of the first run of each sample go into `outputs.npz` as `output0` ...; standard output gets one line of JSON, the milliseconds of CPU time
of every run, or what the runtime had to say against the file.
"""

import argparse
import json
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def run(path, inputs, runs):
    """Run a file.

    Args:
        path: The .tflite file.
        inputs: Arrays (samples, *shape), one for each input of the file.
        runs: Number of timed runs; before them every sample is run once.

    Returns:
        The milliseconds of each run, and the outputs as arrays (samples, *shape).
    """
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    places, results = interpreter.get_input_details(), interpreter.get_output_details()
    samples = len(inputs[0])

    def invoke(sample):
        for place, values in zip(places, inputs, strict=True):
            interpreter.set_tensor(place["index"], values[sample])
        start = time.process_time()  # on one thread the time of a quiet machine, whatever else runs on this one
        interpreter.invoke()
        return 1e3 * (time.process_time() - start)

    outputs = []
    for sample in range(samples):
        invoke(sample)
        outputs.append([interpreter.get_tensor(result["index"]) for result in results])
    return [invoke(index % samples) for index in range(runs)], [np.stack(parts) for parts in zip(*outputs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description="Run and time one .tflite file.")
    parser.add_argument("file")
    parser.add_argument("inputs")
    parser.add_argument("outputs")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    with np.load(arguments.inputs) as held:
        inputs = [held[f"input{index}"] for index in range(len(held.files))]
    try:
        times, outputs = run(arguments.file, inputs, arguments.runs)
    except (RuntimeError, ValueError) as error:  # what LiteRT raises
        print(json.dumps({"failure": str(error)}))
        sys.exit(1)
    np.savez(arguments.outputs, **{f"output{index}": values for index, values in enumerate(outputs)})
    print(json.dumps({"milliseconds": times}))


if __name__ == "__main__":
    main()
