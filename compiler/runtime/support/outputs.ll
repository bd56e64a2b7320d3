; Memory of the outputs: the caller's where it gave some, else allocated, and given back where the run fails.

; Sees to the memory of one output whose dims stand in %outputs. Null after setting the error.
define internal ptr @fusile_output_memory(ptr %ctx, i32 %index, i32 %site, ptr %error) nounwind {
entry:
  %outputs.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 13
  %outputs = load ptr, ptr %outputs.place
  %tensor = getelementptr inbounds %tensor, ptr %outputs, i32 %index
  %dtype.place = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 1
  %dtype = load i32, ptr %dtype.place
  %rank.place = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 2
  %rank = load i32, ptr %rank.place
  %dims = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 3
  %bytes = call i64 @fusile_tensor_bytes(i32 %dtype, i32 %rank, ptr %dims)
  %overflow = icmp slt i64 %bytes, 0
  br i1 %overflow, label %too.large, label %given

given:
  %data = load ptr, ptr %tensor
  %none = icmp eq ptr %data, null
  %capacity.place = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 4
  br i1 %none, label %make, label %check

check:
  %capacity = load i64, ptr %capacity.place
  %small = icmp slt i64 %capacity, %bytes
  br i1 %small, label %too.small, label %done

make:
  %memory = call ptr @fusile_alloc(ptr %ctx, i64 %bytes, i32 %site, ptr %error)
  %failed = icmp eq ptr %memory, null
  br i1 %failed, label %stop, label %own

own:
  store ptr %memory, ptr %tensor
  store i64 %bytes, ptr %capacity.place
  %owned.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 12
  %owned = load ptr, ptr %owned.place
  %flag = getelementptr inbounds i8, ptr %owned, i32 %index
  store i8 1, ptr %flag
  ret ptr %memory

done:
  ret ptr %data

too.large:
  call void @fusile_error(ptr %error, i32 5, i32 %site, i64 0, i64 0)
  br label %stop

too.small:
  %which = zext i32 %index to i64
  call void @fusile_error(ptr %error, i32 6, i32 %site, i64 %which, i64 %bytes)
  br label %stop

stop:
  ret ptr null
}

; For the plan: the memory of an output whose dims depend on data and are known now.
define hidden ptr @fusile_output(ptr %ctx, i32 %index, ptr %dims, i32 %site, ptr %error) nounwind {
  %outputs.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 13
  %outputs = load ptr, ptr %outputs.place
  %rank.place = getelementptr inbounds %tensor, ptr %outputs, i32 %index, i32 2
  %rank = load i32, ptr %rank.place
  %rank.wide = zext i32 %rank to i64
  %length = shl i64 %rank.wide, 3
  %place = getelementptr inbounds %tensor, ptr %outputs, i32 %index, i32 3
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %place, ptr align 8 %dims, i64 %length, i1 false)
  %memory = call ptr @fusile_output_memory(ptr %ctx, i32 %index, i32 %site, ptr %error)
  ret ptr %memory
}

; 1 where all dims of a shape are known.
define internal i1 @fusile_known(i32 %rank, ptr %dims) nounwind {
entry:
  br label %test

test:
  %index = phi i32 [ 0, %entry ], [ %following, %dim ]
  %more = icmp slt i32 %index, %rank
  br i1 %more, label %dim, label %done

dim:
  %place = getelementptr inbounds i64, ptr %dims, i32 %index
  %extent = load i64, ptr %place
  %unknown = icmp slt i64 %extent, 0
  %following = add i32 %index, 1
  br i1 %unknown, label %done, label %test

done:
  %answer = phi i1 [ true, %test ], [ false, %dim ]
  ret i1 %answer
}

; Sees to the memory of all outputs whose dims are known before the run. 0 or a status.
define internal i32 @fusile_outputs_begin(ptr %ctx, ptr %error) nounwind {
entry:
  %outputs.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 13
  %outputs = load ptr, ptr %outputs.place
  %count.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %count = load i32, ptr %count.place
  br label %test

test:
  %index = phi i32 [ 0, %entry ], [ %following, %next ]
  %more = icmp slt i32 %index, %count
  br i1 %more, label %output, label %done

output:
  %rank.place = getelementptr inbounds %tensor, ptr %outputs, i32 %index, i32 2
  %rank = load i32, ptr %rank.place
  %dims = getelementptr inbounds %tensor, ptr %outputs, i32 %index, i32 3
  %known = call i1 @fusile_known(i32 %rank, ptr %dims)
  br i1 %known, label %memory, label %next

memory:
  %data = call ptr @fusile_output_memory(ptr %ctx, i32 %index, i32 0, ptr %error)
  %failed = icmp eq ptr %data, null
  br i1 %failed, label %stop, label %next

next:
  %following = add i32 %index, 1
  br label %test

done:
  ret i32 0

stop:
  %status = load i32, ptr %error
  ret i32 %status
}

; After a run that failed: what it allocated goes back, and the caller's structs say NULL again.
define internal void @fusile_outputs_undo(ptr %ctx) nounwind {
entry:
  %outputs.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 13
  %outputs = load ptr, ptr %outputs.place
  %owned.place = getelementptr inbounds %context, ptr %ctx, i64 0, i32 12
  %owned = load ptr, ptr %owned.place
  %count.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %count = load i32, ptr %count.place
  br label %test

test:
  %index = phi i32 [ 0, %entry ], [ %following, %next ]
  %more = icmp slt i32 %index, %count
  br i1 %more, label %output, label %done

output:
  %flag = getelementptr inbounds i8, ptr %owned, i32 %index
  %mine = load i8, ptr %flag
  %is.mine = icmp ne i8 %mine, 0
  br i1 %is.mine, label %give, label %next

give:
  %tensor = getelementptr inbounds %tensor, ptr %outputs, i32 %index
  %data = load ptr, ptr %tensor
  call void @fusile_free(ptr %ctx, ptr %data)
  store ptr null, ptr %tensor
  %capacity.place = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 4
  store i64 0, ptr %capacity.place
  br label %next

next:
  %following = add i32 %index, 1
  br label %test

done:
  ret void
}
