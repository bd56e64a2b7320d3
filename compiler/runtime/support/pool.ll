; The thread pool. Its whole state is one block on the heap, so any number of pools may live in a process and
; any module image may use one that another made. Workers are started by the first parallel loops, look for
; open slots, spin briefly when there are none and then sleep on a condition. A loop takes a slot, helps
; itself to chunks like everybody else, closes the slot and waits for helpers inside. A full table of slots, a
; thread that cannot be started, a pool that is busy: all only mean fewer helpers.

declare i32 @getpid()
declare i32 @clock_gettime(i32, ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(ptr, ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_mutex_destroy(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @pthread_cond_destroy(ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sigfillset(ptr)

; How long to spin for work or for helpers before sleeping: 50 microseconds.
@spin_nanoseconds = private unnamed_addr constant i64 50000

; ------------------------------------------------------------ making and ending

; A pool in which loops may use %threads threads, the caller's among them. Null where there is no memory.
; Starts nothing.
define hidden ptr @fusile_pool_create(i32 %threads) nounwind {
  %bytes.place = getelementptr %pool, ptr null, i64 1
  %bytes = ptrtoint ptr %bytes.place to i64
  %pool = call ptr @fusile_default_alloc(ptr null, i64 %bytes, i64 64)
  %none = icmp eq ptr %pool, null
  br i1 %none, label %done, label %fill

fill:
  call void @llvm.memset.p0.i64(ptr align 64 %pool, i8 0, i64 %bytes, i1 false)
  %entry.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 6
  store ptr @fusile_worker, ptr %entry.place
  call void @fusile_pool_request(ptr %pool, i32 %threads)
  call void @fusile_pool_begin(ptr %pool)
  %pid = call i32 @getpid()
  store atomic i32 %pid, ptr %pool release, align 4
  br label %done

done:
  ret ptr %pool
}

; Allows loops to use %threads threads if they could not yet (at most 256: 255 workers and the caller).
define hidden void @fusile_pool_request(ptr %pool, i32 %threads) nounwind {
  %low = call i32 @llvm.smax.i32(i32 %threads, i32 1)
  %wanted = call i32 @llvm.smin.i32(i32 %low, i32 256)
  %wanted.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 4
  %before = atomicrmw max ptr %wanted.place, i32 %wanted monotonic
  ret void
}

; Mutex and conditions anew, no workers, all slots free.
define internal void @fusile_pool_begin(ptr %pool) nounwind {
  %sleeping = getelementptr inbounds %pool, ptr %pool, i64 0, i32 2
  store i32 0, ptr %sleeping
  %started = getelementptr inbounds %pool, ptr %pool, i64 0, i32 3
  store atomic i32 0, ptr %started monotonic, align 4
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %slots = getelementptr inbounds %pool, ptr %pool, i64 0, i32 11
  %length.place = getelementptr [8 x %slot], ptr null, i64 1
  %length = ptrtoint ptr %length.place to i64
  ; mutex and both conditions lie together before the slots
  %whole = add i64 %length, 192
  call void @llvm.memset.p0.i64(ptr align 8 %mutex, i8 0, i64 %whole, i1 false)
  %s.1 = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %idle = getelementptr inbounds %pool, ptr %pool, i64 0, i32 9
  %s.2 = call i32 @pthread_cond_init(ptr %idle, ptr null)
  %waiting = getelementptr inbounds %pool, ptr %pool, i64 0, i32 10
  %s.3 = call i32 @pthread_cond_init(ptr %waiting, ptr null)
  ret void
}

; To be called before a run's first loop: after a fork the child has the pool's memory but none of its
; threads, so it begins anew. Several threads of a child may come here at once: one changes the process id to
; the negative of theirs, begins anew and then writes the id.
define hidden void @fusile_pool_enter(ptr %pool) nounwind {
entry:
  %pid = call i32 @getpid()
  %beginning = sub i32 0, %pid
  br label %look

look:
  %owner = load atomic i32, ptr %pool acquire, align 4
  %ours = icmp eq i32 %owner, %pid
  br i1 %ours, label %done, label %foreign

foreign:
  %busy = icmp eq i32 %owner, %beginning
  br i1 %busy, label %again, label %claim

claim:
  %exchange = cmpxchg ptr %pool, i32 %owner, i32 %beginning acquire monotonic
  %won = extractvalue { i32, i1 } %exchange, 1
  br i1 %won, label %anew, label %again

again:
  call void @fusile_pause()
  br label %look

anew:
  call void @fusile_pool_begin(ptr %pool)
  store atomic i32 %pid, ptr %pool release, align 4
  br label %done

done:
  ret void
}

; Ends the workers, waits for them and frees the pool. No loop may be running. In a forked child there is
; nobody to wait for.
define hidden void @fusile_pool_destroy(ptr %pool) nounwind {
entry:
  %pid = call i32 @getpid()
  %owner = load atomic i32, ptr %pool acquire, align 4
  %ours = icmp eq i32 %pid, %owner
  br i1 %ours, label %stop, label %give

stop:
  %stopping = getelementptr inbounds %pool, ptr %pool, i64 0, i32 5
  store atomic i32 1, ptr %stopping seq_cst, align 4
  %epoch = getelementptr inbounds %pool, ptr %pool, i64 0, i32 1
  %e = atomicrmw add ptr %epoch, i32 1 seq_cst
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %idle = getelementptr inbounds %pool, ptr %pool, i64 0, i32 9
  %s.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %s.2 = call i32 @pthread_cond_broadcast(ptr %idle)
  %s.3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  %started.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 3
  %started = load atomic i32, ptr %started.place acquire, align 4
  br label %test

test:
  %index = phi i32 [ 0, %stop ], [ %following, %join ]
  %more = icmp slt i32 %index, %started
  br i1 %more, label %join, label %clean

join:
  %place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 12, i32 %index
  %thread = load ptr, ptr %place
  %s.4 = call i32 @pthread_join(ptr %thread, ptr null)
  %following = add i32 %index, 1
  br label %test

clean:
  %waiting = getelementptr inbounds %pool, ptr %pool, i64 0, i32 10
  %s.5 = call i32 @pthread_cond_destroy(ptr %idle)
  %s.6 = call i32 @pthread_cond_destroy(ptr %waiting)
  %s.7 = call i32 @pthread_mutex_destroy(ptr %mutex)
  br label %give

give:
  call void @fusile_default_free(ptr null, ptr %pool)
  ret void
}

; Starts workers until %workers of them run. They block all signals: those are for the application's threads.
; A thread that cannot be made lowers what the pool wants to what it has, so that nobody tries again at each
; loop.
define internal void @fusile_pool_start(ptr %pool, i32 %workers) cold noinline nounwind {
entry:
  %all = alloca [128 x i8], align 8
  %before = alloca [128 x i8], align 8
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %started.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 3
  %wanted.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 4
  %entry.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 6
  %worker = load ptr, ptr %entry.place
  %mode = load i32, ptr @os_sig_setmask
  %s.1 = call i32 @sigfillset(ptr %all)
  %s.2 = call i32 @pthread_mutex_lock(ptr %mutex)
  %s.3 = call i32 @pthread_sigmask(i32 %mode, ptr %all, ptr %before)
  br label %test

test:
  %started = load atomic i32, ptr %started.place monotonic, align 4
  %enough = icmp sge i32 %started, %workers
  br i1 %enough, label %done, label %start

start:
  %place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 12, i32 %started
  %status = call i32 @pthread_create(ptr %place, ptr null, ptr %worker, ptr %pool)
  %made = icmp eq i32 %status, 0
  %now = add i32 %started, 1
  br i1 %made, label %count, label %fewer

count:
  store atomic i32 %now, ptr %started.place release, align 4
  br label %test

fewer:
  store atomic i32 %now, ptr %wanted.place monotonic, align 4
  br label %done

done:
  %s.4 = call i32 @pthread_sigmask(i32 %mode, ptr %before, ptr null)
  %s.5 = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

; ------------------------------------------------------------ workers

; Nanoseconds of the monotonic clock.
define internal i64 @fusile_clock() nounwind {
  %time = alloca { i64, i64 }, align 8
  %which = load i32, ptr @os_clock_monotonic
  %status = call i32 @clock_gettime(i32 %which, ptr %time)
  %seconds = load i64, ptr %time
  %rest.place = getelementptr inbounds { i64, i64 }, ptr %time, i64 0, i32 1
  %rest = load i64, ptr %rest.place
  %scaled = mul i64 %seconds, 1000000000
  %now = add i64 %scaled, %rest
  ret i64 %now
}

; a / b, rounded up, for a >= 0 and b > 0.
define internal i64 @fusile_ceil_div(i64 %a, i64 %b) nounwind {
  %less = sub i64 %b, 1
  %most = add i64 %a, %less
  %quotient = udiv i64 %most, %b
  ret i64 %quotient
}

; Where a span of a slot ends.
define internal i64 @fusile_span_end(ptr %slot, i64 %span) nounwind {
  %count.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 5
  %count = load atomic i64, ptr %count.place monotonic, align 8
  %length.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 11
  %length = load atomic i64, ptr %length.place monotonic, align 8
  %behind = add i64 %span, 1
  %whole = mul i64 %behind, %length
  %end = call i64 @llvm.smin.i64(i64 %whole, i64 %count)
  ret i64 %end
}

; Takes chunks of a slot's loop until none is left: of the participant's own span first.
define internal void @fusile_slot_work(ptr %slot, i64 %participant, ptr %scratch) nounwind {
entry:
  %kernel.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 3
  %kernel = load ptr, ptr %kernel.place
  %frame.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 4
  %frame = load ptr, ptr %frame.place
  %grain.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 6
  %grain = load i64, ptr %grain.place
  %spans.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 10
  %spans = load atomic i64, ptr %spans.place monotonic, align 8
  br label %enter

enter:
  %turn = phi i64 [ 0, %entry ], [ %turns, %leave ]
  %place = add i64 %participant, %turn
  %span = urem i64 %place, %spans
  %next.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 13, i64 %span, i32 0
  %last = call i64 @fusile_span_end(ptr %slot, i64 %span)
  br label %take

take:
  %begin = atomicrmw add ptr %next.place, i64 %grain monotonic
  %more = icmp slt i64 %begin, %last
  br i1 %more, label %chunk, label %leave

chunk:
  %stop = add i64 %begin, %grain
  %end = call i64 @llvm.smin.i64(i64 %stop, i64 %last)
  call void %kernel(ptr %frame, i64 %begin, i64 %end, ptr %scratch)
  br label %take

leave:
  %turns = add i64 %turn, 1
  %others = icmp ult i64 %turns, %spans
  br i1 %others, label %enter, label %done

done:
  ret void
}

; Whether a slot seems to have chunks left. Only a hint: the slot may be somebody else's by now.
define internal i1 @fusile_slot_left(ptr %slot) nounwind {
entry:
  %spans.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 10
  %spans = load atomic i64, ptr %spans.place monotonic, align 8
  br label %look

look:
  %index = phi i64 [ 0, %entry ], [ %following, %again ]
  %in = icmp ult i64 %index, %spans
  br i1 %in, label %ask, label %no

ask:
  %next.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 13, i64 %index, i32 0
  %next = load atomic i64, ptr %next.place monotonic, align 8
  %last = call i64 @fusile_span_end(ptr %slot, i64 %index)
  %left = icmp slt i64 %next, %last
  br i1 %left, label %yes, label %again

again:
  %following = add i64 %index, 1
  br label %look

yes:
  ret i1 true

no:
  ret i1 false
}

; Joins the loop of a slot if it is open, wants one more and has chunks left. 1 where it did something.
define internal i1 @fusile_slot_help(ptr %pool, ptr %slot) nounwind {
entry:
  %seen = load atomic i64, ptr %slot monotonic, align 8
  %open = icmp slt i64 %seen, 0
  br i1 %open, label %look, label %no

look: ; joining is right even where the hint was wrong
  %left = call i1 @fusile_slot_left(ptr %slot)
  br i1 %left, label %try, label %no

try:
  %control = phi i64 [ %seen, %look ], [ %found, %retry ]
  %joined.high = lshr i64 %control, 16
  %joined = and i64 %joined.high, 65535
  %limit.high = lshr i64 %control, 32
  %limit = and i64 %limit.high, 32767
  %is.open = icmp slt i64 %control, 0
  %room = icmp ult i64 %joined, %limit
  %may = and i1 %is.open, %room
  br i1 %may, label %exchange, label %no

exchange: ; one more inside, one more joined
  %taken = add i64 %control, 65537
  %pair = cmpxchg weak ptr %slot, i64 %control, i64 %taken acquire monotonic
  %found = extractvalue { i64, i1 } %pair, 0
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %work, label %retry

retry:
  br label %try

work:
  %fp.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 9
  %fp = load i64, ptr %fp.place
  call void @fusile_fp_set(i64 %fp)
  %base.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 7
  %base = load ptr, ptr %base.place
  %stride.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 8
  %stride = load i64, ptr %stride.place
  %offset = mul i64 %joined, %stride
  %scratch = getelementptr i8, ptr %base, i64 %offset
  call void @fusile_slot_work(ptr %slot, i64 %joined, ptr %scratch)
  %before = atomicrmw sub ptr %slot, i64 1 seq_cst
  %inside = and i64 %before, 65535
  %last = icmp eq i64 %inside, 1
  %closed = icmp sge i64 %before, 0
  %final = and i1 %last, %closed
  br i1 %final, label %tell, label %yes

tell: ; the caller has closed the slot: it spins, or sleeps and says so
  %waits.place = getelementptr inbounds %slot, ptr %slot, i64 0, i32 2
  %waits = load atomic i32, ptr %waits.place seq_cst, align 4
  %asleep = icmp ne i32 %waits, 0
  br i1 %asleep, label %wake, label %yes

wake:
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %waiting = getelementptr inbounds %pool, ptr %pool, i64 0, i32 10
  %s.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %s.2 = call i32 @pthread_cond_broadcast(ptr %waiting)
  %s.3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %yes

yes:
  ret i1 true

no:
  ret i1 false
}

; A worker: helps where it can; where nothing is to do it spins for a moment, then sleeps until the next loop
; is published.
define internal ptr @fusile_worker(ptr %pool) nounwind {
entry:
  %epoch.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 1
  %sleeping.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 2
  %stopping.place = getelementptr inbounds %pool, ptr %pool, i64 0, i32 5
  %mutex = getelementptr inbounds %pool, ptr %pool, i64 0, i32 8
  %idle = getelementptr inbounds %pool, ptr %pool, i64 0, i32 9
  %patience = load i64, ptr @spin_nanoseconds
  br label %round

round: ; the epoch is read before the slots: a loop published after that changes it
  %epoch = load atomic i32, ptr %epoch.place seq_cst, align 4
  %stopping = load atomic i32, ptr %stopping.place seq_cst, align 4
  %stop = icmp ne i32 %stopping, 0
  br i1 %stop, label %end, label %scan

scan:
  %index = phi i64 [ 0, %round ], [ %following, %next ]
  %slot = getelementptr inbounds %pool, ptr %pool, i64 0, i32 11, i64 %index
  %helped = call i1 @fusile_slot_help(ptr %pool, ptr %slot)
  br i1 %helped, label %round, label %next

next:
  %following = add i64 %index, 1
  %more = icmp ult i64 %following, 8
  br i1 %more, label %scan, label %spin.begin

spin.begin:
  %start = call i64 @fusile_clock()
  %deadline = add i64 %start, %patience
  br label %spin

spin:
  %turn = phi i32 [ 0, %spin.begin ], [ %turns, %calm ], [ %turns, %check ]
  %now.epoch = load atomic i32, ptr %epoch.place acquire, align 4
  %changed = icmp ne i32 %now.epoch, %epoch
  br i1 %changed, label %round, label %calm

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

sleep: ; says that it sleeps, then looks once more; a publisher changes the epoch, then looks who sleeps
  %s.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %sleepers = atomicrmw add ptr %sleeping.place, i32 1 seq_cst
  br label %still

still:
  %last.epoch = load atomic i32, ptr %epoch.place seq_cst, align 4
  %same = icmp eq i32 %last.epoch, %epoch
  br i1 %same, label %wait, label %woken

wait:
  %s.2 = call i32 @pthread_cond_wait(ptr %idle, ptr %mutex)
  br label %still

woken:
  %left = atomicrmw sub ptr %sleeping.place, i32 1 seq_cst
  %s.3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %round

end:
  ret ptr null
}
