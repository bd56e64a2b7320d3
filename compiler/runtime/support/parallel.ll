; Parallel loops: on the pool (pool.ll), by the host, or in one call.

; Wakes up to %helpers sleeping workers.
define internal void @fusile_pool_wake(ptr %pool, i32 %helpers) cold noinline nounwind {
entry:
  %sleeping.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 2
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %idle = getelementptr inbounds %pool, ptr %pool, i64 0, i32 9
  %s.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %sleeping = load atomic i32, ptr %sleeping.place monotonic, align 4
  %all = icmp sge i32 %helpers, %sleeping
  br i1 %all, label %everybody, label %one

everybody:
  %s.2 = call i32 @pthread_cond_broadcast(ptr %idle)
  br label %done

one:
  %index = phi i32 [ 0, %entry ], [ %following, %one ]
  %s.3 = call i32 @pthread_cond_signal(ptr %idle)
  %following = add i32 %index, 1
  %more = icmp slt i32 %following, %helpers
  br i1 %more, label %one, label %done

done:
  %s.4 = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

; Waits until no helper is inside a closed slot: spins for a moment, then sleeps.
define internal void @fusile_slot_wait(ptr %pool, ptr %slot) nounwind {
entry:
  %patience = load i64, ptr @spin_nanoseconds
  %start = call i64 @fusile_clock()
  %deadline = add i64 %start, %patience
  br label %spin

spin:
  %turn = phi i32 [ 0, %entry ], [ %turns, %calm ], [ %turns, %check ]
  %control = load atomic i64, ptr %slot acquire, align 8
  %inside = and i64 %control, 65535
  %empty = icmp eq i64 %inside, 0
  br i1 %empty, label %done, label %calm

calm:
  call void @fusile_pause()
  %turns = add i32 %turn, 1
  %low = and i32 %turns, 15
  %due = icmp eq i32 %low, 0
  br i1 %due, label %check, label %spin

check:
  %now = call i64 @fusile_clock()
  %late = icmp sgt i64 %now, %deadline
  br i1 %late, label %sleep, label %spin

sleep:
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %waiting = getelementptr inbounds %pool, ptr %pool, i64 0, i32 10
  %waits.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 2
  %s.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  store atomic i32 1, ptr %waits.place seq_cst, align 4
  br label %still

still:
  %last = load atomic i64, ptr %slot seq_cst, align 8
  %last.inside = and i64 %last, 65535
  %gone = icmp eq i64 %last.inside, 0
  br i1 %gone, label %woken, label %wait

wait:
  %s.2 = call i32 @pthread_cond_wait(ptr %waiting, ptr %mutex)
  br label %still

woken:
  store atomic i32 0, ptr %waits.place monotonic, align 4
  %s.3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %done

done:
  ret void
}

; A free slot of the pool, claimed, or null.
define internal ptr @fusile_slot_claim(ptr %pool) nounwind {
entry:
  br label %look

look:
  %index = phi i64 [ 0, %entry ], [ %following, %next ]
  %slot = getelementptr inbounds %pool, ptr %pool, i64 0, i32 11, i64 %index
  %claim.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 1
  %pair = cmpxchg ptr %claim.place, i32 0, i32 1 acquire monotonic
  %won = extractvalue { i32, i1 } %pair, 1
  br i1 %won, label %done, label %next

next:
  %following = add i64 %index, 1
  %more = icmp ult i64 %following, 8
  br i1 %more, label %look, label %done

done:
  %answer = phi ptr [ %slot, %look ], [ null, %next ]
  ret ptr %answer
}

; Divides the iterations of a loop among at most 16 spans of whole chunks.
define internal void @fusile_spans_open(ptr %slot, i64 %count, i64 %grain, i32 %threads) nounwind {
entry:
  %few = call i32 @llvm.smin.i32(i32 %threads, i32 16)
  %spans = zext i32 %few to i64
  %share = call i64 @fusile_ceil_div(i64 %count, i64 %spans)
  %chunks = call i64 @fusile_ceil_div(i64 %share, i64 %grain)
  %length = mul i64 %chunks, %grain
  %spans.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 10
  store atomic i64 %spans, ptr %spans.place monotonic, align 8
  %length.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 11
  store atomic i64 %length, ptr %length.place monotonic, align 8
  br label %span

span:
  %index = phi i64 [ 0, %entry ], [ %following, %span ]
  %first = mul i64 %index, %length
  %next.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 13, i64 %index, i32 0
  store atomic i64 %first, ptr %next.place monotonic, align 8
  %following = add i64 %index, 1
  %more = icmp ult i64 %following, %spans
  br i1 %more, label %span, label %done

done:
  ret void
}

; Opens a claimed slot for the loop and tells the workers. %threads >= 2 may take part, the caller among them.
define internal void @fusile_slot_open(ptr %pool, ptr %slot, ptr %kernel, ptr %frame, i64 %count,
    i64 %grain, ptr %scratch, i64 %stride, i32 %threads) nounwind {
  %kernel.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 3
  store ptr %kernel, ptr %kernel.place
  %frame.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 4
  store ptr %frame, ptr %frame.place
  %count.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 5
  store atomic i64 %count, ptr %count.place monotonic, align 8
  %grain.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 6
  store i64 %grain, ptr %grain.place
  %scratch.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 7
  store ptr %scratch, ptr %scratch.place
  %stride.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 8
  store i64 %stride, ptr %stride.place
  %fp = call i64 @fusile_fp_get()
  %fp.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 9
  store i64 %fp, ptr %fp.place
  call void @fusile_spans_open(ptr %slot, i64 %count, i64 %grain, i32 %threads)
  %limit = zext i32 %threads to i64
  %limit.high = shl i64 %limit, 32
  %joined = or i64 %limit.high, 65536 ; the caller is participant 0
  %control = or i64 %joined, -9223372036854775808
  store atomic i64 %control, ptr %slot release, align 8
  %epoch.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 1
  %epoch = atomicrmw add ptr %epoch.place, i32 1 seq_cst
  %sleeping.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 2
  %sleeping = load atomic i32, ptr %sleeping.place seq_cst, align 4
  %asleep = icmp sgt i32 %sleeping, 0
  br i1 %asleep, label %wake, label %done

wake:
  %helpers = sub i32 %threads, 1
  call void @fusile_pool_wake(ptr %pool, i32 %helpers)
  br label %done

done:
  ret void
}

; A loop on the pool with up to %threads >= 2 threads; count > grain >= 1.
define internal void @fusile_pool_run(ptr %pool, ptr %kernel, ptr %frame, i64 %count, i64 %grain,
    ptr %scratch, i64 %stride, i32 %threads) nounwind {
entry:
  %wanted.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 4
  %wanted = load atomic i32, ptr %wanted.place monotonic, align 4
  %most = call i32 @llvm.smin.i32(i32 %threads, i32 %wanted)
  %workers = sub i32 %most, 1
  %started.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 3
  %started = load atomic i32, ptr %started.place acquire, align 4
  %few = icmp slt i32 %started, %workers
  br i1 %few, label %start, label %claim

start:
  call void @fusile_pool_start(ptr %pool, i32 %workers)
  br label %claim

claim:
  %alone = icmp slt i32 %most, 2
  br i1 %alone, label %serial, label %ask

ask:
  %slot = call ptr @fusile_slot_claim(ptr %pool)
  %full = icmp eq ptr %slot, null
  br i1 %full, label %serial, label %open

open:
  call void @fusile_slot_open(ptr %pool, ptr %slot, ptr %kernel, ptr %frame, i64 %count, i64 %grain,
      ptr %scratch, i64 %stride, i32 %most)
  call void @fusile_slot_work(ptr %slot, i64 0, ptr %scratch)
  %before = atomicrmw and ptr %slot, i64 9223372036854775807 acq_rel
  %inside = and i64 %before, 65535
  %empty = icmp eq i64 %inside, 0
  br i1 %empty, label %free, label %wait

wait:
  call void @fusile_slot_wait(ptr %pool, ptr %slot)
  br label %free

free:
  %claim.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 1
  store atomic i32 0, ptr %claim.place release, align 4
  ret void

serial:
  call void %kernel(ptr %frame, i64 0, i64 %count, ptr %scratch)
  ret void
}

; What a host's parallel_for is given: { kernel, frame, count, grain, floating point state }, and iterations
; that are whole chunks.
%chunks = type { ptr, ptr, i64, i64, i64 }

define internal void @fusile_chunk_task(ptr %chunks, i64 %begin, i64 %end, ptr %scratch) nounwind {
entry:
  %kernel = load ptr, ptr %chunks
  %frame.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 1
  %frame = load ptr, ptr %frame.place
  %count.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 2
  %count = load i64, ptr %count.place
  %grain.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 3
  %grain = load i64, ptr %grain.place
  %fp.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 4
  %fp = load i64, ptr %fp.place
  %before = call i64 @fusile_fp_get()
  call void @fusile_fp_set(i64 %fp)
  br label %test

test:
  %index = phi i64 [ %begin, %entry ], [ %following, %chunk ]
  %more = icmp slt i64 %index, %end
  br i1 %more, label %chunk, label %done

chunk:
  %first = mul i64 %index, %grain
  %stop = add i64 %first, %grain
  %last = call i64 @llvm.smin.i64(i64 %stop, i64 %count)
  call void %kernel(ptr %frame, i64 %first, i64 %last, ptr %scratch)
  %following = add i64 %index, 1
  br label %test

done:
  call void @fusile_fp_set(i64 %before)
  ret void
}

; The parallel loop of the ABI; see abi.py.
define hidden void @fusile_parallel(ptr %ctx, ptr %kernel, ptr %frame, i64 %count, i64 %grain.given,
    ptr %scratch, i64 %stride) nounwind {
entry:
  %chunks = alloca %chunks, align 8
  %grain = call i64 @llvm.smax.i64(i64 %grain.given, i64 1)
  %threads = load i32, ptr %ctx
  %single = icmp slt i32 %threads, 2
  %short = icmp sle i64 %count, %grain
  %plain = or i1 %single, %short
  br i1 %plain, label %serial, label %shared

shared:
  %less = sub i64 %count, 1
  %whole = udiv i64 %less, %grain
  %number = add i64 %whole, 1
  %threads.wide = sext i32 %threads to i64
  %useful.wide = call i64 @llvm.smin.i64(i64 %number, i64 %threads.wide)
  %useful = trunc i64 %useful.wide to i32
  %host.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 3
  %host = load ptr, ptr %host.place
  %has.host = icmp ne ptr %host, null
  br i1 %has.host, label %by.host, label %by.pool

by.host:
  store ptr %kernel, ptr %chunks
  %frame.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 1
  store ptr %frame, ptr %frame.place
  %count.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 2
  store i64 %count, ptr %count.place
  %grain.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 3
  store i64 %grain, ptr %grain.place
  %fp = call i64 @fusile_fp_get()
  %fp.place = getelementptr inbounds %chunks, ptr %chunks, i64 0, i32 4
  store i64 %fp, ptr %fp.place
  %user.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 4
  %user = load ptr, ptr %user.place
  call void %host(ptr %user, ptr @fusile_chunk_task, ptr %chunks, i64 %number, ptr %scratch, i64 %stride,
      i32 %useful)
  ret void

by.pool:
  %pool.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 2
  %pool = load ptr, ptr %pool.place
  %has.pool = icmp ne ptr %pool, null
  br i1 %has.pool, label %run, label %serial

run:
  call void @fusile_pool_run(ptr %pool, ptr %kernel, ptr %frame, i64 %count, i64 %grain, ptr %scratch,
      i64 %stride, i32 %useful)
  ret void

serial:
  %some = icmp sgt i64 %count, 0
  br i1 %some, label %call, label %done

call:
  call void %kernel(ptr %frame, i64 0, i64 %count, ptr %scratch)
  br label %done

done:
  ret void
}
