"""Rows in: files on any filesystem become chunks of rows, rows become tokens, tokens become batches.

    find      which files are meant; folders says what of a folder is rows
    files     what is known of a file, and how it is opened
    records   the records of a text file: JSON lines and CSV; arrays has those of a JSON array
    tables    the record batches of a Parquet or Arrow file; arrow_values has their values
    columns   which columns mean what to the task; mappings has what is usual
    lookup    where a column stands in a row; templates has the Jinja texts over several
    chunks    the corpus as it was planned, from file metadata, and its chunks
    labels    class labels, and the check that they fit the model
    rows      the rows of a chunk, good and bad
    tokens    rows as token ids, targets and a preview; chat has the conversations
    passages  what a row says, for people; preview makes a line of it, common_words finds what two texts share
    alike     which texts are nearly the same
    pictures  pictures among rows; beside knows those that rows name, in a table by named; thumbnails makes small ones
    batches   examples of like length, padded together

Only `batches` imports torch, and nothing here imports Ray.
"""
