"""Saves and loads a run's state; a checkpoint is whole or doesn't exist.

Files in reading order:

    checkpointer        Saving and finding a run's state
    async_checkpointer  Saving while training goes on
    collective_saver    The rules of saving, for all ranks alike
    snapshot            A run's tensors as they are at one instant, in host memory that is used again for every
    tensor_file         Tensors in a safetensors file
    layout              Layout of a stored checkpoint, the same in a folder and on an object store
    inventory           `convmlp checkpoints list | verify | export`
    stores/             Where checkpoints lie: a folder or an object store

May import: data_prep.dataset, data_prep.errors, data_prep.storage, distributed, errors.
"""
