"""How well a run's scores find the rows of which something is known: `datainf evaluate`.

    truth       which rows are to be found, from a column of the corpus; the corpus is checked to be the run's own
    rankings    the orders in which a run would have them looked through: by influence, loss, norm, self-influence
    words       BM25, the order by words in common with the queries
    figures     AUC, average precision, recall@k and MRR of an order, and their bootstrap intervals; only NumPy
    compare     `evaluate`, from a run's URL to an `Evaluation`
    tell        an evaluation as a table, as JSON and as CSV
    draw        an evaluation as a figure

It is not called `evaluate` because `datainf_ray.evaluate` is the function.
"""
