"""What a run leaves behind: the run directory, its tables, the best rows per query, the report.

- `directory`: files in a run directory at any fsspec URL, written whole or not at all.
- `schemas`: the columns of its Parquet tables.
- `parts`: the rows on their way into examples/, from a file per chunk to parts of a sensible size.
- `top`: the most helpful and most harmful rows, as a state that merges.
- `texts`: the full texts of these rows and of the queries, and the previews that follow from both.
- `pictures`: small pictures of these rows and of the queries, where they have some.
- `index`: the gradient index, from which later queries are answered.
- `lease`: who is at work on a run directory, how far the run is, and who wants it to stop.
- `events`: what happened in a run and when, written while it goes on.
- `scores`: what each row is blamed with across queries and runs; `column` keeps it in a file, `order` cuts it.
- `cut`: how much the first rows carry, and which stand out; `magnitudes` counts, `gaps` tells chance from what is not.
- `labels`: those that rows were given, and those that the model predicts.
- `together`: the strongest rows of all queries together, and a row's place on each. `by`: influence by a column.
- `results`: `open_run` and `Run`, which read a run directory back.
- `report`: `report.html`, one self-contained page: `verdict` is its first section, `by_column` another; `listed` has
  what is known of the rows on it, `beside` what goes with each (`near`: near-duplicates; `choices`: what rows are
  filtered by), `pictured` their pictures, `doubts` where they may mislead; `figures`, `timeline`, `drawing` and
  `render` make its parts; `cell` is what a notebook shows.
- `plots`: the same figures for notebooks.

Nothing here knows Ray or torch: a run can be read where neither a GPU nor a cluster is.
"""
