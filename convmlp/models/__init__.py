"""The network families, one file each; `convmlp.zoo` names the published sizes."""
