"""The last step before printing a kernel: sums of products become fma, and every expression one that the
target prints.
"""

from __future__ import annotations

from dataclasses import replace

from fusile.capabilities import Capabilities
from fusile.ir.loops import Kernel, dims_of, map_exprs
from fusile.passes.legalise import Legaliser, contract


def finish(kernel: Kernel, target: Capabilities) -> Kernel:
    """A kernel whose expressions are all legal for `target`. Raises UnsupportedError for an operation that it
    can in no way compute.
    """
    legalise = Legaliser(target, kernel.origins[-1] if kernel.origins else "")
    body = map_exprs(kernel.body, lambda e: legalise(contract(e) if target.has_fma else e))
    made = kernel.with_body(body)
    dims = dims_of(body, kernel.params)
    assert set(dims) <= set(kernel.dims), f"legalising {kernel.name} needs sizes that it did not have"
    # Where there is nothing to loop over, sizes may have gone with the loops.
    return made if dims == kernel.dims else replace(made, dims=dims)
