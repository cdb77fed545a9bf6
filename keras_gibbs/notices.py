"""What `GibbsPruningCallback` says about the course of the schedules."""

import warnings

FEW_UPDATES = 5  # a schedule moved fewer times than this between its begin and its end jumps rather than anneals
LEVEL = 5  # the frames between a notice and Keras
EPSILON = 1e-6  # of a progress that is stored in float32


def schedules_of(layers) -> dict:
    """The schedules that move, by name and value: `{(name, schedule): None}`."""
    items = (item for layer in layers for item in layer.method.schedules().items())
    return {item: None for item in items if item[1].span is not None}


def tell_of_jumps(layers, updates: float, horizon: int) -> None:
    """Warn of schedules that few of the `updates` in a training of `horizon` epochs move."""
    for name, schedule in schedules_of(layers):
        begin, end = schedule.span
        if begin < end and (moves := (end - begin) * updates) < FEW_UPDATES:
            _warn(
                f"The schedule of `{name}`, {schedule!r}, moves {int(moves)} times only in this training of {horizon} epochs: it jumps to its end. "
                "Train longer, stretch the schedule, or move it more often with `GibbsPruningCallback(update_freq='batch')`."
            )


def tell_of_end() -> None:
    """Say that the schedules have ended in an earlier `fit`."""
    _warn(
        "The schedules of this model ended in an earlier `fit`: they stay at their end, and this `fit` trains on under the final state. To begin "
        "again, pass `GibbsPruningCallback(restart=True)`."
    )


def tell_of_stop(layers, progress: float, epoch: int, horizon: int, restored: bool) -> None:
    """Say at which progress training has left the schedules, and how to go on from `epoch` of `horizon`."""
    where = ", ".join(f"`{name}` at {schedule(progress):.4g} on its way to {schedule(1.0):.4g}" for name, schedule in schedules_of(layers))
    why = "another callback restored weights, which keep the progress they were trained at" if restored else "training was stopped early"
    _warn(
        f"The schedules stand at progress {progress:.3g}, as the model was last validated, since {why}: {where}. To go on, call "
        f"`fit(..., initial_epoch={epoch}, epochs={horizon})`; to train shorter, call `fit` with fewer `epochs` on a newly pruned model. To take the end "
        "of the schedules without training, call `layer.anneal(1.0)` for every layer of `keras_gibbs.pruned_layers(model)`: accuracy may fall."
    )


def tell_of_setback(progress: float, epoch: int, horizon: int, steps: int | None, done: int | None) -> None:
    """Warn where weights at `progress`, which have made `done` optimizer steps, are further than the begin of `epoch` of `horizon`, `steps` batches each."""
    begin = epoch / horizon
    ahead = progress > begin + EPSILON
    repeated = epoch and steps and done and abs(progress - begin) <= EPSILON and done > epoch * steps
    if ahead:
        _warn(
            f"This `fit` begins with epoch {epoch} of {horizon}, at progress {begin:.3g}, and the weights of the model were already trained to progress "
            f"{progress:.3g}: the schedules go back. If the model was resumed from a backup, its weights are newer than its record of the epoch. To go on "
            "where it stopped, pass `initial_epoch`; to begin again, pass `GibbsPruningCallback(restart=True)`."
        )
    elif repeated:
        _warn(
            f"This `fit` begins with epoch {epoch} of {horizon}, at progress {begin:.3g}, which comes after {epoch * steps} steps, and the weights of the "
            f"model have made {done}. If it was resumed from a backup, its weights are newer than its record of the epoch, and that epoch is trained twice."
        )


def _warn(message):
    warnings.warn(message, stacklevel=LEVEL)
