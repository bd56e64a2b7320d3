; Numbers and calls that differ between operating systems: Linux.

@os_clock_monotonic = private unnamed_addr constant i32 1
@os_sig_setmask = private unnamed_addr constant i32 2

declare i32 @sched_getaffinity(i32, i64, ptr)

; Processors that this process may run on, at least 1.
define hidden i32 @fusile_cpu_count() nounwind {
entry:
  %mask = alloca [16 x i64], align 8
  call void @llvm.memset.p0.i64(ptr align 8 %mask, i8 0, i64 128, i1 false)
  %status = call i32 @sched_getaffinity(i32 0, i64 128, ptr %mask)
  br label %word

word:
  %index = phi i64 [ 0, %entry ], [ %following, %word ]
  %sum = phi i64 [ 0, %entry ], [ %total, %word ]
  %place = getelementptr inbounds i64, ptr %mask, i64 %index
  %bits = load i64, ptr %place
  %ones = call i64 @llvm.ctpop.i64(i64 %bits)
  %total = add i64 %sum, %ones
  %following = add i64 %index, 1
  %more = icmp ult i64 %following, 16
  br i1 %more, label %word, label %done

done:
  %atleast = call i64 @llvm.umax.i64(i64 %total, i64 1)
  %count = trunc i64 %atleast to i32
  ret i32 %count
}
