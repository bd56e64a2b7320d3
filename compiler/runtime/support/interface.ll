; The C interface of a module. `api` in a function's name becomes the module's own prefix in a .so.

@plan_header = external hidden constant %plan_header
@plan_inputs = external hidden constant [0 x %port]
@plan_outputs = external hidden constant [0 x %port]
@plan_dtype_bits = external hidden constant [64 x i8]
@plan_site_offsets = external hidden constant [0 x i32]
@plan_site_text = external hidden constant [0 x i8]
@plan_description = external hidden constant [0 x i8]

declare hidden i32 @plan_init(ptr, ptr)
declare hidden i32 @plan_shapes(ptr, ptr, ptr)
declare hidden i64 @plan_arena(ptr)
declare hidden i64 @plan_scratch(ptr)
declare hidden i32 @plan_run(ptr, ptr, ptr, ptr, ptr, ptr, ptr, i64, ptr)
declare hidden i32 @plan_prepare(ptr, i32, ptr, ptr, ptr)

declare hidden void @fusile_error(ptr, i32, i32, i64, i64)
declare hidden i64 @fusile_size_mul(i64, i64)
declare hidden i64 @fusile_size_add(i64, i64)
declare hidden ptr @fusile_default_alloc(ptr, i64, i64)
declare hidden void @fusile_default_free(ptr, ptr)
declare hidden ptr @fusile_alloc(ptr, i64, i32, ptr)
declare hidden void @fusile_free(ptr, ptr)
declare hidden void @fusile_temp_free_all(ptr)
declare hidden i64 @fusile_fp_enter(i1)
declare hidden void @fusile_fp_set(i64)
declare hidden i32 @fusile_cpu_count()
declare hidden ptr @fusile_pool_create(i32)
declare hidden void @fusile_pool_request(ptr, i32)
declare hidden void @fusile_pool_enter(ptr)
declare hidden void @fusile_pool_destroy(ptr)

define i32 @api_abi_version() nounwind {
  ret i32 1
}

define ptr @api_describe(ptr %instance) nounwind {
  ret ptr @plan_description
}

; ------------------------------------------------------------ instances

; Fills an instance's (or a context's) four places with what the host gives, and the module's own in the gaps.
; 0 where the host's struct is of an older, shorter kind than host_v1.
define internal i1 @fusile_host_take(ptr %host, ptr %alloc.place, ptr %free.place, ptr %parallel.place,
    ptr %user.place) nounwind {
entry:
  store ptr @fusile_default_alloc, ptr %alloc.place
  store ptr @fusile_default_free, ptr %free.place
  store ptr null, ptr %parallel.place
  store ptr null, ptr %user.place
  %none = icmp eq ptr %host, null
  br i1 %none, label %done, label %size

size:
  %bytes = load i64, ptr %host
  %known = icmp sge i64 %bytes, 40
  br i1 %known, label %take, label %refuse

take: ; alloc and free go together: memory of one allocator never meets the other's free
  %user.given = getelementptr inbounds %host, ptr %host, i64 0, i32 4
  %user = load ptr, ptr %user.given
  store ptr %user, ptr %user.place
  %parallel.given = getelementptr inbounds %host, ptr %host, i64 0, i32 3
  %parallel = load ptr, ptr %parallel.given
  store ptr %parallel, ptr %parallel.place
  %alloc.given = getelementptr inbounds %host, ptr %host, i64 0, i32 1
  %alloc = load ptr, ptr %alloc.given
  %free.given = getelementptr inbounds %host, ptr %host, i64 0, i32 2
  %free = load ptr, ptr %free.given
  %no.alloc = icmp eq ptr %alloc, null
  %no.free = icmp eq ptr %free, null
  %differ = xor i1 %no.alloc, %no.free
  br i1 %differ, label %refuse, label %both

both:
  br i1 %no.alloc, label %done, label %own

own:
  store ptr %alloc, ptr %alloc.place
  store ptr %free, ptr %free.place
  br label %done

done:
  ret i1 true

refuse:
  ret i1 false
}

; In process: as api_create, with a pool that several modules share and that outlives the instance.
define hidden i32 @fusile_create(ptr %path, ptr %weights, i64 %weights.bytes, ptr %host, ptr %pool,
    ptr %out) nounwind {
entry:
  %stack = alloca %instance, align 8
  %error = alloca %error, align 8
  %size.place = getelementptr %instance, ptr null, i64 1
  %size = ptrtoint ptr %size.place to i64
  call void @llvm.memset.p0.i64(ptr align 8 %stack, i8 0, i64 %size, i1 false)
  call void @llvm.memset.p0.i64(ptr align 8 %error, i8 0, i64 24, i1 false)
  store ptr null, ptr %out
  %alloc.place = getelementptr inbounds %instance, ptr %stack, i64 0, i32 3
  %free.place = getelementptr inbounds %instance, ptr %stack, i64 0, i32 4
  %parallel.place = getelementptr inbounds %instance, ptr %stack, i64 0, i32 5
  %user.place = getelementptr inbounds %instance, ptr %stack, i64 0, i32 6
  %pool.place = getelementptr inbounds %instance, ptr %stack, i64 0, i32 7
  %sane = call i1 @fusile_host_take(ptr %host, ptr %alloc.place, ptr %free.place, ptr %parallel.place,
      ptr %user.place)
  br i1 %sane, label %find, label %refuse

find:
  store ptr %pool, ptr %pool.place
  %found = call i32 @fusile_weights_find(ptr %stack, ptr %path, ptr %weights, i64 %weights.bytes)
  %missing = icmp ne i32 %found, 0
  br i1 %missing, label %stop, label %make

make:
  %alloc = load ptr, ptr %alloc.place
  %user = load ptr, ptr %user.place
  %instance = call ptr %alloc(ptr %user, i64 %size, i64 64)
  %none = icmp eq ptr %instance, null
  br i1 %none, label %unmap, label %init

unmap:
  call void @fusile_weights_unmap(ptr %stack)
  ret i32 4

init:
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %instance, ptr align 8 %stack, i64 %size, i1 false)
  %status = call i32 @plan_init(ptr %instance, ptr %error)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %undo, label %done

undo:
  call void @api_destroy(ptr %instance)
  ret i32 %status

done:
  store ptr %instance, ptr %out
  ret i32 0

stop:
  ret i32 %found

refuse:
  ret i32 1
}

define i32 @api_create(ptr %path, ptr %weights, i64 %weights.bytes, ptr %host, ptr %out) nounwind {
  %status = call i32 @fusile_create(ptr %path, ptr %weights, i64 %weights.bytes, ptr %host, ptr null,
      ptr %out)
  ret i32 %status
}

define internal void @fusile_weights_unmap(ptr %instance) nounwind {
entry:
  %mapping.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 1
  %mapping = load ptr, ptr %mapping.place
  %none = icmp eq ptr %mapping, null
  br i1 %none, label %done, label %unmap

unmap:
  %mapped.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 2
  %mapped = load i64, ptr %mapped.place
  %status = call i32 @munmap(ptr %mapping, i64 %mapped)
  br label %done

done:
  ret void
}

; All contexts of the instance must be destroyed before.
define void @api_destroy(ptr %instance) nounwind {
entry:
  %none = icmp eq ptr %instance, null
  br i1 %none, label %done, label %some

some:
  %ours.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 8
  %ours = load i32, ptr %ours.place
  %is.ours = icmp ne i32 %ours, 0
  br i1 %is.ours, label %end.pool, label %rest

end.pool:
  %pool.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 7
  %pool = load ptr, ptr %pool.place
  call void @fusile_pool_destroy(ptr %pool)
  br label %rest

rest:
  call void @fusile_weights_unmap(ptr %instance)
  %free.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 4
  %free = load ptr, ptr %free.place
  %user.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 6
  %user = load ptr, ptr %user.place
  call void %free(ptr %user, ptr %instance)
  br label %done

done:
  ret void
}

; Gives back the memory of an output that the module allocated.
define void @api_release(ptr %instance, ptr %memory) nounwind {
entry:
  %none = icmp eq ptr %memory, null
  br i1 %none, label %done, label %give

give:
  %free.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 4
  %free = load ptr, ptr %free.place
  %user.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 6
  %user = load ptr, ptr %user.place
  call void %free(ptr %user, ptr %memory)
  br label %done

done:
  ret void
}

; ------------------------------------------------------------ contexts

; The instance's pool, made by the first context with more than one thread. Two that come at once: one pool
; stays.
define internal ptr @fusile_instance_pool(ptr %instance, i32 %threads) nounwind {
entry:
  %pool.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 7
  %there = load atomic ptr, ptr %pool.place acquire, align 8
  %none = icmp eq ptr %there, null
  br i1 %none, label %make, label %use

make:
  %made = call ptr @fusile_pool_create(i32 %threads)
  %failed = icmp eq ptr %made, null
  br i1 %failed, label %done, label %publish

publish:
  %pair = cmpxchg ptr %pool.place, ptr null, ptr %made acq_rel acquire
  %other = extractvalue { ptr, i1 } %pair, 0
  %won = extractvalue { ptr, i1 } %pair, 1
  br i1 %won, label %ours, label %theirs

ours:
  %ours.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 8
  store i32 1, ptr %ours.place
  br label %done

theirs:
  call void @fusile_pool_destroy(ptr %made)
  br label %use

use:
  %pool = phi ptr [ %there, %entry ], [ %other, %theirs ]
  call void @fusile_pool_request(ptr %pool, i32 %threads)
  br label %done

done:
  %answer = phi ptr [ null, %make ], [ %made, %ours ], [ %pool, %use ]
  ret ptr %answer
}

; What one run at a time uses: memory that stays between runs, and the last error. %threads < 1: one per
; processor. Null: no memory.
define ptr @api_context_create(ptr %instance, i32 %threads.given) nounwind {
entry:
  %automatic = icmp slt i32 %threads.given, 1
  br i1 %automatic, label %count, label %sized

count:
  %processors = call i32 @fusile_cpu_count()
  br label %sized

sized:
  %threads.any = phi i32 [ %threads.given, %entry ], [ %processors, %count ]
  %threads = call i32 @llvm.smin.i32(i32 %threads.any, i32 256)
  ; one block: the context, the dims, the shapes, a flag per output
  %head.place = getelementptr %context, ptr null, i64 1
  %head = ptrtoint ptr %head.place to i64
  %symbols.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 2
  %symbols = load i32, ptr %symbols.place
  %symbols.wide = zext i32 %symbols to i64
  %dims.bytes = shl i64 %symbols.wide, 3
  %outputs.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %outputs = load i32, ptr %outputs.place
  %outputs.wide = zext i32 %outputs to i64
  %shapes.bytes = shl i64 %outputs.wide, 6
  %shapes.offset = add i64 %head, %dims.bytes
  %owned.offset = add i64 %shapes.offset, %shapes.bytes
  %bytes = add i64 %owned.offset, %outputs.wide
  %alloc.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 3
  %alloc = load ptr, ptr %alloc.place
  %user.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 6
  %user = load ptr, ptr %user.place
  %ctx = call ptr %alloc(ptr %user, i64 %bytes, i64 64)
  %none = icmp eq ptr %ctx, null
  br i1 %none, label %done, label %fill

fill:
  call void @llvm.memset.p0.i64(ptr align 8 %ctx, i8 0, i64 %bytes, i1 false)
  store i32 %threads, ptr %ctx
  %parallel.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 5
  %parallel = load ptr, ptr %parallel.place
  %ctx.parallel = getelementptr inbounds %context, ptr %ctx, i64 0, i32 3
  store ptr %parallel, ptr %ctx.parallel
  %ctx.user = getelementptr inbounds %context, ptr %ctx, i64 0, i32 4
  store ptr %user, ptr %ctx.user
  %ctx.alloc = getelementptr inbounds %context, ptr %ctx, i64 0, i32 5
  store ptr %alloc, ptr %ctx.alloc
  %free.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 4
  %free = load ptr, ptr %free.place
  %ctx.free = getelementptr inbounds %context, ptr %ctx, i64 0, i32 6
  store ptr %free, ptr %ctx.free
  %ctx.instance = getelementptr inbounds %context, ptr %ctx, i64 0, i32 7
  store ptr %instance, ptr %ctx.instance
  %dims = getelementptr inbounds i8, ptr %ctx, i64 %head
  %ctx.dims = getelementptr inbounds %context, ptr %ctx, i64 0, i32 10
  store ptr %dims, ptr %ctx.dims
  %shapes = getelementptr inbounds i8, ptr %ctx, i64 %shapes.offset
  %ctx.shapes = getelementptr inbounds %context, ptr %ctx, i64 0, i32 11
  store ptr %shapes, ptr %ctx.shapes
  %owned = getelementptr inbounds i8, ptr %ctx, i64 %owned.offset
  %ctx.owned = getelementptr inbounds %context, ptr %ctx, i64 0, i32 12
  store ptr %owned, ptr %ctx.owned
  %many = icmp sgt i32 %threads, 1
  %no.host = icmp eq ptr %parallel, null
  %wants.pool = and i1 %many, %no.host
  br i1 %wants.pool, label %pool, label %done

pool: ; without memory for a pool runs use one thread
  %instance.pool = call ptr @fusile_instance_pool(ptr %instance, i32 %threads)
  %ctx.pool = getelementptr inbounds %context, ptr %ctx, i64 0, i32 2
  store ptr %instance.pool, ptr %ctx.pool
  br label %done

done:
  ret ptr %ctx
}

define void @api_context_destroy(ptr %ctx) nounwind {
entry:
  %none = icmp eq ptr %ctx, null
  br i1 %none, label %done, label %some

some:
  %memory.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 8
  %memory = load ptr, ptr %memory.place
  call void @fusile_free(ptr %ctx, ptr %memory)
  call void @fusile_free(ptr %ctx, ptr %ctx)
  br label %done

done:
  ret void
}

; ------------------------------------------------------------ packing of weights

; Packs one group of weights; needs no instance, since an instance needs the packed weights.
define i32 @api_prepare(ptr %host, i32 %step, ptr %raw, ptr %packed) nounwind {
entry:
  %ctx = alloca %context, align 8
  %size.place = getelementptr %context, ptr null, i64 1
  %size = ptrtoint ptr %size.place to i64
  call void @llvm.memset.p0.i64(ptr align 8 %ctx, i8 0, i64 %size, i1 false)
  store i32 1, ptr %ctx
  %user.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 4
  %alloc.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 5
  %free.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 6
  %parallel.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 3
  %sane = call i1 @fusile_host_take(ptr %host, ptr %alloc.place, ptr %free.place, ptr %parallel.place,
      ptr %user.place)
  %steps.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 6
  %steps = load i32, ptr %steps.place
  %known = icmp ult i32 %step, %steps
  %fits = and i1 %sane, %known
  br i1 %fits, label %pack, label %refuse

pack: ; denormals are kept: packing must not change weights
  %error = getelementptr inbounds %context, ptr %ctx, i64 0, i32 15
  %before = call i64 @fusile_fp_enter(i1 false)
  %status = call i32 @plan_prepare(ptr %ctx, i32 %step, ptr %raw, ptr %packed, ptr %error)
  call void @fusile_fp_set(i64 %before)
  call void @fusile_temp_free_all(ptr %ctx)
  ret i32 %status

refuse:
  ret i32 1
}
