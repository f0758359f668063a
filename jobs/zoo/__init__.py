"""Small random models of many architectures with adapters of many kinds, and what DataInf is for them in float64.

`architectures` has the models, `cases` which adapters they get, `make` saves both as their users do, and `exact` takes
gradients one bare row at a time. adapters.py beside this folder runs them.
"""
