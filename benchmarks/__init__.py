"""What pruning brings and costs.

    common/      networks, data, the files of results
    accuracy/    methods trained on the same terms, TF-MOT itself among them
    cost/        the time of a training step, on CPU and GPU
    device/      .tflite files on an ARM64 processor
    results/     one file of JSON lines a suite, the plots and tables made from them
"""
