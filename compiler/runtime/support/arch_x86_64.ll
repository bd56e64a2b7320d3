; Floating point state and spinning: x86-64. The state is MXCSR.

declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse2.pause()

define hidden i64 @fusile_fp_get() nounwind {
  %place = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %place)
  %word = load i32, ptr %place
  %state = zext i32 %word to i64
  ret i64 %state
}

define hidden void @fusile_fp_set(i64 %state) nounwind {
  %place = alloca i32, align 4
  %word = trunc i64 %state to i32
  store i32 %word, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}

; Round to nearest, all exceptions masked; FTZ (bit 15) and DAZ (bit 6) where %flush. Returns the state
; before.
define hidden i64 @fusile_fp_enter(i1 %flush) nounwind {
  %before = call i64 @fusile_fp_get()
  %state = select i1 %flush, i64 40896, i64 8064 ; 0x9FC0, 0x1F80
  call void @fusile_fp_set(i64 %state)
  ret i64 %before
}

define hidden void @fusile_pause() alwaysinline nounwind {
  call void @llvm.x86.sse2.pause()
  ret void
}
