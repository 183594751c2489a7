"""Reads, decodes and augments micro-batches.

Files in reading order:

    loader        Batches for one rank, by torch's DataLoader
    reader        The work of reader processes
    task_reading  The part of reading that differs from task to task
    batch_memory  A micro-batch's memory
    process_name  A reader process as the system sees it

May import: convmlp, data.dataset, data.sample_order, data.storage, data_prep.annotations, data_prep.dataset,
data_prep.errors, data_prep.images, distributed, errors, torch_internals.
"""
