from fusile.ir.loops import Kernel
from fusile.target import TargetSpec
def schedule(kernel: Kernel, target: TargetSpec) -> Kernel:
    return kernel
