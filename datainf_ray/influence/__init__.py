"""From gradients to numbers: folds, damping, DataInf and Hessian-free. Torch alone, to be read next to the paper.

A method is a short program of sweeps (`methods`); a sweep feeds every example's gradients to a fold (`folds`), block by
block. Where the gradients come from is for `Sweeps` to know: `InMemory` has them in matrices, the cluster makes them.
"""
