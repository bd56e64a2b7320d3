; The module's own allocator, and temporaries of a run.

declare i32 @posix_memalign(ptr, i64, i64)
declare void @free(ptr)

; Memory aligned to %align (a power of two, at least 8), or null. Never of zero bytes, so null always means
; failure.
define hidden ptr @fusile_default_alloc(ptr %user, i64 %bytes, i64 %align) nounwind {
  %place = alloca ptr, align 8
  %some = call i64 @llvm.umax.i64(i64 %bytes, i64 1)
  %wide = call i64 @llvm.umax.i64(i64 %align, i64 8)
  %status = call i32 @posix_memalign(ptr %place, i64 %wide, i64 %some)
  %ok = icmp eq i32 %status, 0
  %memory = load ptr, ptr %place
  %answer = select i1 %ok, ptr %memory, ptr null
  ret ptr %answer
}

define hidden void @fusile_default_free(ptr %user, ptr %memory) nounwind {
  call void @free(ptr %memory)
  ret void
}

; Memory from the context's host, aligned to 64. Null after setting error 4 (or 5 for the size -1).
define hidden ptr @fusile_alloc(ptr %ctx, i64 %bytes, i32 %site, ptr %error) nounwind {
  %overflow = icmp slt i64 %bytes, 0
  br i1 %overflow, label %too.large, label %ask

ask:
  %alloc.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 5
  %alloc = load ptr, ptr %alloc.place
  %user.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 4
  %user = load ptr, ptr %user.place
  %some = call i64 @llvm.umax.i64(i64 %bytes, i64 64)
  %memory = call ptr %alloc(ptr %user, i64 %some, i64 64)
  %none = icmp eq ptr %memory, null
  br i1 %none, label %fail, label %done

done:
  ret ptr %memory

too.large:
  call void @fusile_error(ptr %error, i32 5, i32 %site, i64 0, i64 0)
  ret ptr null

fail:
  call void @fusile_error(ptr %error, i32 4, i32 %site, i64 %bytes, i64 0)
  ret ptr null
}

define hidden void @fusile_free(ptr %ctx, ptr %memory) nounwind {
  %none = icmp eq ptr %memory, null
  br i1 %none, label %done, label %give

give:
  %free.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 6
  %free = load ptr, ptr %free.place
  %user.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 4
  %user = load ptr, ptr %user.place
  call void %free(ptr %user, ptr %memory)
  br label %done

done:
  ret void
}

; A temporary is a block with a 64 byte head: { next, previous } in the context's list. Only the plan's own
; thread makes and frees them.
define hidden ptr @fusile_temp(ptr %ctx, i64 %bytes, i32 %site, ptr %error) nounwind {
  %whole = call i64 @fusile_size_add(i64 %bytes, i64 64)
  %head = call ptr @fusile_alloc(ptr %ctx, i64 %whole, i32 %site, ptr %error)
  %none = icmp eq ptr %head, null
  br i1 %none, label %fail, label %link

link:
  %list = getelementptr inbounds %context, ptr %ctx, i64 0, i32 14
  %first = load ptr, ptr %list
  store ptr %first, ptr %head
  %previous = getelementptr inbounds ptr, ptr %head, i64 1
  store ptr null, ptr %previous
  store ptr %head, ptr %list
  %alone = icmp eq ptr %first, null
  br i1 %alone, label %done, label %back

back:
  %first.previous = getelementptr inbounds ptr, ptr %first, i64 1
  store ptr %head, ptr %first.previous
  br label %done

done:
  %memory = getelementptr inbounds i8, ptr %head, i64 64
  ret ptr %memory

fail:
  ret ptr null
}

define hidden void @fusile_temp_free(ptr %ctx, ptr %memory) nounwind {
  %none = icmp eq ptr %memory, null
  br i1 %none, label %done, label %unlink

unlink:
  %head = getelementptr inbounds i8, ptr %memory, i64 -64
  %next = load ptr, ptr %head
  %previous.place = getelementptr inbounds ptr, ptr %head, i64 1
  %previous = load ptr, ptr %previous.place
  %list = getelementptr inbounds %context, ptr %ctx, i64 0, i32 14
  %is.first = icmp eq ptr %previous, null
  %before = select i1 %is.first, ptr %list, ptr %previous
  store ptr %next, ptr %before
  %is.last = icmp eq ptr %next, null
  br i1 %is.last, label %give, label %back

back:
  %next.previous = getelementptr inbounds ptr, ptr %next, i64 1
  store ptr %previous, ptr %next.previous
  br label %give

give:
  call void @fusile_free(ptr %ctx, ptr %head)
  br label %done

done:
  ret void
}

; Frees the temporaries that a run left.
define hidden void @fusile_temp_free_all(ptr %ctx) nounwind {
entry:
  %list = getelementptr inbounds %context, ptr %ctx, i64 0, i32 14
  %first = load ptr, ptr %list
  store ptr null, ptr %list
  br label %test

test:
  %head = phi ptr [ %first, %entry ], [ %next, %give ]
  %end = icmp eq ptr %head, null
  br i1 %end, label %done, label %give

give:
  %next = load ptr, ptr %head
  call void @fusile_free(ptr %ctx, ptr %head)
  br label %test

done:
  ret void
}

; Memory that grows: { ptr memory, i64 capacity } holding %used bytes gets room for %more. Answers the memory,
; null after setting the error.
define hidden ptr @fusile_grow(ptr %ctx, ptr %place, i64 %used, i64 %more, i32 %site, ptr %error) nounwind {
  %memory = load ptr, ptr %place
  %capacity.place = getelementptr inbounds i64, ptr %place, i64 1
  %capacity = load i64, ptr %capacity.place
  %needed = call i64 @fusile_size_add(i64 %used, i64 %more)
  %some = icmp ne ptr %memory, null
  %large = icmp sge i64 %capacity, %needed
  %whole = icmp sge i64 %needed, 0
  %fits = and i1 %large, %whole
  %enough = and i1 %some, %fits
  br i1 %enough, label %done, label %grow

grow:
  %twice = call i64 @fusile_size_add(i64 %capacity, i64 %capacity)
  %wide = call i64 @llvm.smax.i64(i64 %twice, i64 256)
  %larger = call i64 @llvm.smax.i64(i64 %wide, i64 %needed)
  %bytes = select i1 %whole, i64 %larger, i64 -1
  %made = call ptr @fusile_temp(ptr %ctx, i64 %bytes, i32 %site, ptr %error)
  %none = icmp eq ptr %made, null
  br i1 %none, label %fail, label %move

move:
  call void @llvm.memcpy.p0.p0.i64(ptr %made, ptr %memory, i64 %used, i1 false)
  call void @fusile_temp_free(ptr %ctx, ptr %memory)
  store ptr %made, ptr %place
  store i64 %bytes, ptr %capacity.place
  ret ptr %made

done:
  ret ptr %memory

fail:
  ret ptr null
}
