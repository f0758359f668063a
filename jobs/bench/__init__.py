"""What `benchmark.py` measures, a module for every table.

measure     figures, interleaved timing, the machine
models      random models, rows, batches; a training step and our sweep over the same batches
commands    `datainf run` as a process of its own, watched from outside
sweep, capture, pictures, whole, closed_form, peers, workers, queue, memory, gpu    the tables
"""
