"""Scripts that know nothing of epochcast: what they tell TensorBoard, Lightning or Transformers becomes progress."""

from epochcast.integrations import lightning, tensorboard, transformers


def observe() -> None:
    """For the trainer, before it runs a script: waits for these libraries. Nothing happens until one is imported."""
    tensorboard.observe()
    lightning.observe()
    transformers.observe()


def script_ended() -> None:
    """For the trainer, after a script that ended well: what was not reported yet is."""
    tensorboard.script_ended()
