"""Reads public torch checkpoints without torch and converts them for jaxmlip: `jaxmlip convert`.

`python -m weights_convert.golden OUT` records what the original computes, in an environment that has torch.
"""
