"""What a run leaves behind: the run directory, its tables, the best rows per query, the report.

- `directory`: files in a run directory at any fsspec URL, written whole or not at all.
- `schemas`: the columns of its Parquet tables.
- `parts`: the rows on their way into examples/, from a file per chunk to parts of a sensible size.
- `top`: the most helpful and most harmful rows, as a state that merges.
- `results`: `open_run` and `Run`, which read a run directory back.
- `report`: `report.html`, one self-contained page.

Nothing here knows Ray or torch: a run can be read where neither a GPU nor a cluster is.
"""
