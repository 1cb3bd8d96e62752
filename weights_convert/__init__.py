"""Reads public torch checkpoints without torch and converts them for jaxmlip: `jaxmlip convert`.

`python -m weights_convert.golden OUT` records results of the original packages; it needs torch.
"""
