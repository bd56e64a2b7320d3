; Shapes, working memory, runs and their errors: the second half of the C interface.

; ------------------------------------------------------------ sizes

; Bytes of scratch of one thread, rounded up to 64; -1 where that overflows.
define internal i64 @fusile_scratch_stride(ptr %dims) nounwind {
  %bytes = call i64 @plan_scratch(ptr %dims)
  %more = call i64 @fusile_size_add(i64 %bytes, i64 63)
  %negative = icmp slt i64 %more, 0
  %rounded = and i64 %more, -64
  %stride = select i1 %negative, i64 -1, i64 %rounded
  ret i64 %stride
}

; Offset of the scratch behind the arena; -1 where that overflows.
define internal i64 @fusile_arena_size(ptr %dims) nounwind {
  %bytes = call i64 @plan_arena(ptr %dims)
  %more = call i64 @fusile_size_add(i64 %bytes, i64 63)
  %negative = icmp slt i64 %more, 0
  %rounded = and i64 %more, -64
  %size = select i1 %negative, i64 -1, i64 %rounded
  ret i64 %size
}

; Bytes that a run with these dims takes besides its outputs; -1 where that overflows.
define internal i64 @fusile_memory_size(ptr %dims, i32 %threads) nounwind {
  %arena = call i64 @fusile_arena_size(ptr %dims)
  %stride = call i64 @fusile_scratch_stride(ptr %dims)
  %threads.wide = zext i32 %threads to i64
  %scratch = call i64 @fusile_size_mul(i64 %stride, i64 %threads.wide)
  %bytes = call i64 @fusile_size_add(i64 %arena, i64 %scratch)
  ret i64 %bytes
}

; Dims of the outputs for these inputs (data is not looked at); -1 where they depend on data.
define i32 @api_shapes(ptr %instance, ptr %inputs, ptr %outputs) nounwind {
  %symbols.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 2
  %symbols = load i32, ptr %symbols.place
  %dims = alloca i64, i32 %symbols, align 8
  %count.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %count = load i32, ptr %count.place
  %shapes = alloca [8 x i64], i32 %count, align 8
  %error = alloca %error, align 8
  call void @llvm.memset.p0.i64(ptr align 8 %error, i8 0, i64 24, i1 false)
  %status = call i32 @fusile_bind(ptr %inputs, ptr %dims, ptr %shapes, i1 false, ptr %error)
  %bad = icmp ne i32 %status, 0
  br i1 %bad, label %done, label %write

write:
  call void @fusile_describe_outputs(ptr %outputs, ptr %shapes)
  br label %done

done:
  ret i32 %status
}

; Bytes of working memory of a run with these inputs; the negative of a status where they do not fit.
define i64 @api_workspace(ptr %instance, ptr %inputs, i32 %threads) nounwind {
  %symbols.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 2
  %symbols = load i32, ptr %symbols.place
  %dims = alloca i64, i32 %symbols, align 8
  %count.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %count = load i32, ptr %count.place
  %shapes = alloca [8 x i64], i32 %count, align 8
  %error = alloca %error, align 8
  call void @llvm.memset.p0.i64(ptr align 8 %error, i8 0, i64 24, i1 false)
  %status = call i32 @fusile_bind(ptr %inputs, ptr %dims, ptr %shapes, i1 false, ptr %error)
  %bad = icmp ne i32 %status, 0
  br i1 %bad, label %refuse, label %measure

measure:
  %some = call i32 @llvm.smax.i32(i32 %threads, i32 1)
  %bytes = call i64 @fusile_memory_size(ptr %dims, i32 %some)
  %overflow = icmp slt i64 %bytes, 0
  %answer = select i1 %overflow, i64 -5, i64 %bytes
  ret i64 %answer

refuse:
  %wide = sext i32 %status to i64
  %negative = sub i64 0, %wide
  ret i64 %negative
}

; ------------------------------------------------------------ runs

; Sees to it that the context holds arena and scratch for these dims. 0 or a status.
define internal i32 @fusile_memory_begin(ptr %ctx, ptr %dims, ptr %error) nounwind {
entry:
  %threads = load i32, ptr %ctx
  %bytes = call i64 @fusile_memory_size(ptr %dims, i32 %threads)
  %memory.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 8
  %size.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 9
  %size = load i64, ptr %size.place
  %overflow = icmp slt i64 %bytes, 0
  %short = icmp sgt i64 %bytes, %size
  %change = or i1 %overflow, %short
  br i1 %change, label %grow, label %done

grow:
  %old = load ptr, ptr %memory.place
  call void @fusile_free(ptr %ctx, ptr %old)
  store ptr null, ptr %memory.place
  store i64 0, ptr %size.place
  %new = call ptr @fusile_alloc(ptr %ctx, i64 %bytes, i32 0, ptr %error)
  %failed = icmp eq ptr %new, null
  br i1 %failed, label %stop, label %keep

keep:
  store ptr %new, ptr %memory.place
  store i64 %bytes, ptr %size.place
  br label %done

done:
  ret i32 0

stop:
  %status = load i32, ptr %error
  ret i32 %status
}

; A run, between the setting and the restoring of the floating point state. 0 or a status, with the error
; record written.
define internal i32 @fusile_run(ptr %instance, ptr %ctx, ptr %inputs, ptr %outputs, ptr %error) nounwind {
entry:
  %dims.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 10
  %dims = load ptr, ptr %dims.place
  %shapes.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 11
  %shapes = load ptr, ptr %shapes.place
  %bound = call i32 @fusile_bind(ptr %inputs, ptr %dims, ptr %shapes, i1 true, ptr %error)
  %unfit = icmp ne i32 %bound, 0
  br i1 %unfit, label %stop, label %describe

describe:
  call void @fusile_describe_outputs(ptr %outputs, ptr %shapes)
  %sized = call i32 @fusile_outputs_begin(ptr %ctx, ptr %error)
  %no.outputs = icmp ne i32 %sized, 0
  br i1 %no.outputs, label %stop, label %memory

memory:
  %ready = call i32 @fusile_memory_begin(ptr %ctx, ptr %dims, ptr %error)
  %no.memory = icmp ne i32 %ready, 0
  br i1 %no.memory, label %stop, label %run

run:
  %weights = load ptr, ptr %instance
  %arena.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 8
  %arena = load ptr, ptr %arena.place
  %offset = call i64 @fusile_arena_size(ptr %dims)
  %scratch = getelementptr i8, ptr %arena, i64 %offset
  %stride = call i64 @fusile_scratch_stride(ptr %dims)
  %status = call i32 @plan_run(ptr %ctx, ptr %weights, ptr %inputs, ptr %outputs, ptr %dims, ptr %arena,
      ptr %scratch, i64 %stride, ptr %error)
  ret i32 %status

stop:
  %answer = phi i32 [ %bound, %entry ], [ %sized, %describe ], [ %ready, %memory ]
  ret i32 %answer
}

define i32 @api_run(ptr %instance, ptr %ctx, ptr %inputs, ptr %outputs) nounwind {
entry:
  %no.instance = icmp eq ptr %instance, null
  %no.context = icmp eq ptr %ctx, null
  %missing = or i1 %no.instance, %no.context
  br i1 %missing, label %refuse, label %match

match:
  %owner.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 7
  %owner = load ptr, ptr %owner.place
  %same = icmp eq ptr %owner, %instance
  br i1 %same, label %begin, label %refuse

begin:
  %error = getelementptr inbounds %context, ptr %ctx, i64 0, i32 15
  call void @llvm.memset.p0.i64(ptr align 8 %error, i8 0, i64 24, i1 false)
  %outputs.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 13
  store ptr %outputs, ptr %outputs.place
  %owned.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 12
  %owned = load ptr, ptr %owned.place
  %count.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %count = load i32, ptr %count.place
  %count.wide = zext i32 %count to i64
  call void @llvm.memset.p0.i64(ptr %owned, i8 0, i64 %count.wide, i1 false)
  %pool.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 2
  %pool = load ptr, ptr %pool.place
  %has.pool = icmp ne ptr %pool, null
  br i1 %has.pool, label %enter, label %run

enter:
  call void @fusile_pool_enter(ptr %pool)
  br label %run

run:
  %flags.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 5
  %flags = load i32, ptr %flags.place
  %flush = trunc i32 %flags to i1
  %before = call i64 @fusile_fp_enter(i1 %flush)
  %status = call i32 @fusile_run(ptr %instance, ptr %ctx, ptr %inputs, ptr %outputs, ptr %error)
  call void @fusile_fp_set(i64 %before)
  call void @fusile_temp_free_all(ptr %ctx)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %undo, label %done

undo: ; a status without a record (7, say) is recorded here; a record that is there stays
  call void @fusile_error(ptr %error, i32 %status, i32 0, i64 0, i64 0)
  call void @fusile_outputs_undo(ptr %ctx)
  br label %done

done:
  ret i32 %status

refuse:
  ret i32 1
}

; What went wrong in the context's last run: code, the node's name and two numbers. Returns the code.
define i32 @api_last_error(ptr %ctx, ptr %out) nounwind {
entry:
  call void @llvm.memset.p0.i64(ptr align 8 %out, i8 0, i64 280, i1 false)
  %none = icmp eq ptr %ctx, null
  br i1 %none, label %refuse, label %copy

copy:
  %error = getelementptr inbounds %context, ptr %ctx, i64 0, i32 15
  %code = load i32, ptr %error
  store i32 %code, ptr %out
  %a.place = getelementptr inbounds %error, ptr %error, i64 0, i32 2
  %a = load i64, ptr %a.place
  %a.out = getelementptr inbounds %report, ptr %out, i64 0, i32 3
  store i64 %a, ptr %a.out
  %b.place = getelementptr inbounds %error, ptr %error, i64 0, i32 3
  %b = load i64, ptr %b.place
  %b.out = getelementptr inbounds %report, ptr %out, i64 0, i32 4
  store i64 %b, ptr %b.out
  %site.place = getelementptr inbounds %error, ptr %error, i64 0, i32 1
  %site = load i32, ptr %site.place
  %sites.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 3
  %sites = load i32, ptr %sites.place
  %known = icmp ult i32 %site, %sites
  br i1 %known, label %name, label %done

name: ; names are at most 255 bytes, and the zeros are there already
  %begin.place = getelementptr inbounds i32, ptr @plan_site_offsets, i32 %site
  %begin = load i32, ptr %begin.place
  %end.place = getelementptr inbounds i32, ptr %begin.place, i64 1
  %end = load i32, ptr %end.place
  %length = sub i32 %end, %begin
  %length.wide = zext i32 %length to i64
  %text = getelementptr inbounds i8, ptr @plan_site_text, i32 %begin
  %node = getelementptr inbounds %report, ptr %out, i64 0, i32 1
  call void @llvm.memcpy.p0.p0.i64(ptr %node, ptr %text, i64 %length.wide, i1 false)
  br label %done

done:
  ret i32 %code

refuse:
  store i32 1, ptr %out
  ret i32 1
}
