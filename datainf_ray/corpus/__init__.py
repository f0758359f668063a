"""Rows in: files on any filesystem become chunks of rows, rows become tokens, tokens become batches.

    files     which files are meant, and how each is opened
    records   the records of a text file: JSON lines and CSV
    tables    the record batches of a Parquet or Arrow file
    columns   which columns mean what to the task
    chunks    the corpus as it was planned, from file metadata, and its chunks
    labels    class labels, and the check that they fit the model
    rows      the rows of a chunk, good and bad
    tokens    rows as token ids, targets and a preview; chat has the conversations, preview the lines of text
    batches   examples of like length, padded together

Only `batches` imports torch, and nothing here imports Ray.
"""
