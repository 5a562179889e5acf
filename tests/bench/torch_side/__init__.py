"""What PyTorch and transformers reach, for `side_by_side.py`.

Each module measures one thing: it takes the arguments of a run and calls
`record` with every result as soon as it is there.
"""
