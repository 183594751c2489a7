"""Runs a step under a strategy: device, precision, gradients, update.

Files in reading order:

    engine           The work that all strategies do alike
    types            The values that go into an engine and come out of it, and the scale of its loss
    ddp              Strategy ddp: Accelerate's DistributedDataParallel, or one process
    fsdp             Strategy fsdp: parameters in pieces over the ranks (FSDP2)
    deepspeed        Strategy deepspeed: ZeRO stages 0 to 3
    deepspeed_internals  DeepSpeed's names that its documentation doesn't promise
    batch_norm       BatchNorm's running statistics as a function of the global batch, not of who computed
    ema              An exponential moving average of the weights, kept in the same pieces in which a rank
    optimizer_state  Optimizer state by parameter name, for engines whose optimizer is a plain torch one

May import: convmlp, distributed, torch_internals.
"""
