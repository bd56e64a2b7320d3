; Floating point state and spinning: AArch64. The state is FPCR.

declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
declare void @llvm.aarch64.isb(i32)

define hidden i64 @fusile_fp_get() nounwind {
  %state = call i64 @llvm.aarch64.get.fpcr()
  ret i64 %state
}

define hidden void @fusile_fp_set(i64 %state) nounwind {
  call void @llvm.aarch64.set.fpcr(i64 %state)
  ret void
}

; Round to nearest, no traps; FZ (bit 24) where %flush. FZ16 stays off: x86 keeps half precision denormals
; too.
define hidden i64 @fusile_fp_enter(i1 %flush) nounwind {
  %before = call i64 @fusile_fp_get()
  %state = select i1 %flush, i64 16777216, i64 0
  call void @fusile_fp_set(i64 %state)
  ret i64 %before
}

; ISB holds a core for some ten nanoseconds; YIELD is a no-op on most.
define hidden void @fusile_pause() alwaysinline nounwind {
  call void @llvm.aarch64.isb(i32 15)
  ret void
}
