"""From gradients to numbers: folds, damping and the methods. Torch alone, to be read next to the paper.

A method is a short program of sweeps, one file each (`datainf`, `hessian_free`, `cosine`; `register` names them); a
sweep feeds every example's gradients to a fold (`folds`), block by block. Where the gradients come from is for `Sweeps`
to know: `memory.InMemory` has them in matrices, the cluster makes them.
"""
