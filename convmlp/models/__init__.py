"""The networks: each is a backbone with a head.

Files in reading order:

    backbone   The interface of this package's hierarchical networks
    conv_mlp   ConvMLP (arXiv:2109.04454) with timm's model interface
    mixer      MLP-Mixer (Tolstikhin et al., arXiv:2105.01601)
    cycle_mlp  CycleMLP (Chen et al., arXiv:2107.10224) and its operator CycleFC
    pure_mlp   The pure-MLP baseline that ConvMLP is measured against (arXiv:2109.04454)
    layers     Layers that several networks share
    variants   The networks by name
    timm_models  Our networks among timm's

May import: nothing of ours.
"""
