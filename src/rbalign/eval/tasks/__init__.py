"""Public benchmarks, by name: what their data must look like, how answers to them are scored, what is printed beside.

`registry` knows them (tasks.toml), `load` reads a local copy, `measure` scores predictions made anywhere. No torch.
"""
