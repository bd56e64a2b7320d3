; How the support code lays out memory. Put in front of every support module; `abi.py` says the same in
; ctypes, and a test compares.

%tensor = type { ptr, i32, i32, [8 x i64], i64 }       ; data, dtype, rank, dims, capacity in bytes
%error = type { i32, i32, i64, i64 }                   ; code, site, a, b
%report = type { i32, [256 x i8], [4 x i8], i64, i64 } ; code, node, (padding), a, b: what last_error writes
%host = type { i64, ptr, ptr, ptr, ptr }               ; size, alloc, free, parallel_for, user
%port = type { i32, i32, [8 x i64] } ; dtype, rank, dims: fixed, or -1 - symbol, or the least i64 (computed)
%plan_header = type { i32, i32, i32, i32, i64, i32, i32, [32 x i8] }
;   inputs, outputs, symbols, sites, bytes of packed weights, flags (bit 0: flush denormals), prepare steps,
;   layout key

; What an instance owns. Fields 4 to 7 are the host's, with the module's own in the gaps.
%instance = type { ptr, ptr, i64, ptr, ptr, ptr, ptr, ptr, i32 }
;   0 weights, 1 file mapping or null, 2 its bytes, 3 alloc, 4 free, 5 parallel_for or null, 6 user, 7 pool or
;   null, 8 pool is ours

; What one run at a time uses. The first fields are what fusile_parallel reads.
%context = type { i32, i32, ptr, ptr, ptr, ptr, ptr, ptr, ptr, i64, ptr, ptr, ptr, ptr, ptr, %error }
;   0 threads, 1 (unused), 2 pool or null, 3 parallel_for or null, 4 user, 5 alloc, 6 free, 7 instance, 8
;   memory (arena, then scratch of each thread), 9 its bytes, 10 dims: i64[symbols], 11 shapes:
;   i64[outputs][8], 12 owned: i8[outputs], 1 where this run allocated the output, 13 outputs of this run, 14
;   list of temporaries, 15 error record

; A parallel loop that workers may join. `control` is the only word that decides who may: bit 63 open, bits 32
; to 47 how many may take part, bits 16 to 31 how many have joined so far (the number of a participant), bits
; 0 to 15 how many helpers are inside now.
%slot = type { i64, i32, i32, ptr, ptr, i64, i64, ptr, i64, i64, i64, i64, [5 x i64], [16 x %span] }
;   0 control, 1 claimed, 2 caller waits, 3 kernel, 4 frame, 5 count, 6 grain, 7 scratch, 8 scratch stride;
;   second cache line: 9 floating point state of the caller, 10 spans in use, 11 iterations of a span; then the
;   spans, a cache line each

; A contiguous part of a loop's iterations. Participant p takes chunks of span p first and helps in the others
; after that, so that threads keep to different parts of memory for as long as they can.
%span = type { i64, [7 x i64] }
;   0 next iteration to give out

%pool = type { i32, i32, i32, i32, i32, i32, ptr, [32 x i8], [64 x i8], [64 x i8], [64 x i8], [8 x %slot],
               [255 x ptr] }
;   0 process id, 1 epoch (counts published loops), 2 sleeping workers, 3 started workers, 4 wanted workers, 5
;   stopping, 6 entry of a worker, 7 (unused), 8 mutex, 9 condition of idle workers, 10 condition of waiting
;   callers, 11 slots, 12 threads

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.ctpop.i64(i64)
declare { i64, i1 } @llvm.smul.with.overflow.i64(i64, i64)
declare i32 @llvm.smax.i32(i32, i32)
declare i32 @llvm.smin.i32(i32, i32)
