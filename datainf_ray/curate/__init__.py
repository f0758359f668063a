"""A finished run acted on: its corpus without its worst rows, or with scores, weights or a selection.

- `source`: a run with the corpora that it was made of, planned anew; they must be what they were.
- `rules`: what is asked for, and which rows go by it; `siblings` are their near-duplicates.
- `copy`, `lines`, `tables`: files of a corpus written again, some rows left out or columns added.
- `pictures`: the pictures that go with rows into a new folder.
- `target`: where the result goes, whole or not at all.
- `content`: what rows say, whole; `shown`: one row with all that the run knows of it; `top`: the strongest rows.
- `by`: influence summed by a column of the corpus.
- `act`: `curate`, which does all of it; `result` what it tells. `join`: the corpus' rows with their scores, in Python.

Memory does not grow with the rows, but for a byte of each: scores lie in files without a name, corpora are streamed.
"""
