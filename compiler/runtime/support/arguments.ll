; Checking what a caller gives: dtypes, ranks, fixed dims, equal symbols, sizes.

; Bytes of %elements of an ONNX element type in packed storage; -1 where that overflows.
define internal i64 @fusile_bytes(i32 %dtype, i64 %elements) nounwind {
  %place = getelementptr inbounds [64 x i8], ptr @plan_dtype_bits, i64 0, i32 %dtype
  %bits.narrow = load i8, ptr %place
  %bits = zext i8 %bits.narrow to i64
  %all = call i64 @fusile_size_mul(i64 %elements, i64 %bits)
  %negative = icmp slt i64 %all, 0
  %up = add i64 %all, 7
  %bytes = lshr i64 %up, 3
  %answer = select i1 %negative, i64 -1, i64 %bytes
  ret i64 %answer
}

; Bytes of a tensor whose dims are known; -1 where that overflows or a dim is negative.
define internal i64 @fusile_tensor_bytes(i32 %dtype, i32 %rank, ptr %dims) nounwind {
entry:
  br label %test

test:
  %index = phi i32 [ 0, %entry ], [ %following, %dim ]
  %elements = phi i64 [ 1, %entry ], [ %product, %dim ]
  %more = icmp slt i32 %index, %rank
  br i1 %more, label %dim, label %done

dim:
  %place = getelementptr inbounds i64, ptr %dims, i32 %index
  %extent = load i64, ptr %place
  %product = call i64 @fusile_size_mul(i64 %elements, i64 %extent)
  %following = add i32 %index, 1
  br label %test

done:
  %bytes = call i64 @fusile_bytes(i32 %dtype, i64 %elements)
  ret i64 %bytes
}

; One dimension of an input against its port: fixed, or a symbol that is bound on first sight and equal from
; then on.
define internal i1 @fusile_bind_dim(i64 %expected, i64 %extent, ptr %dims) nounwind {
entry:
  %sane = icmp sge i64 %extent, 0
  br i1 %sane, label %kind, label %no

kind:
  %fixed = icmp sge i64 %expected, 0
  br i1 %fixed, label %compare, label %symbol

compare:
  %equal = icmp eq i64 %expected, %extent
  ret i1 %equal

symbol:
  %number = sub i64 -1, %expected
  %place = getelementptr inbounds i64, ptr %dims, i64 %number
  %bound = load i64, ptr %place
  %first = icmp slt i64 %bound, 0
  br i1 %first, label %bind, label %again

bind:
  store i64 %extent, ptr %place
  ret i1 true

again:
  %same = icmp eq i64 %bound, %extent
  ret i1 %same

no:
  ret i1 false
}

; Checks one input. 0, or 1 after setting the error: a = input, b = dim or -1. %data: whether memory must be
; there too.
define internal i32 @fusile_bind_input(i32 %number, ptr %input, ptr %dims, i1 %data, ptr %error) nounwind {
entry:
  %which = zext i32 %number to i64
  %port = getelementptr inbounds %port, ptr @plan_inputs, i32 %number
  %dtype.expected = load i32, ptr %port
  %rank.expected.place = getelementptr inbounds %port, ptr %port, i64 0, i32 1
  %rank.expected = load i32, ptr %rank.expected.place
  %dtype.place = getelementptr inbounds %tensor, ptr %input, i64 0, i32 1
  %dtype = load i32, ptr %dtype.place
  %rank.place = getelementptr inbounds %tensor, ptr %input, i64 0, i32 2
  %rank = load i32, ptr %rank.place
  %same.dtype = icmp eq i32 %dtype, %dtype.expected
  %same.rank = icmp eq i32 %rank, %rank.expected
  %fits = and i1 %same.dtype, %same.rank
  %extents = getelementptr inbounds %tensor, ptr %input, i64 0, i32 3
  br i1 %fits, label %test, label %bad

test:
  %index = phi i32 [ 0, %entry ], [ %following, %next ]
  %more = icmp slt i32 %index, %rank
  br i1 %more, label %dim, label %memory

dim:
  %expected.place = getelementptr inbounds %port, ptr %port, i64 0, i32 2, i32 %index
  %expected = load i64, ptr %expected.place
  %extent.place = getelementptr inbounds i64, ptr %extents, i32 %index
  %extent = load i64, ptr %extent.place
  %ok = call i1 @fusile_bind_dim(i64 %expected, i64 %extent, ptr %dims)
  br i1 %ok, label %next, label %bad.dim

next:
  %following = add i32 %index, 1
  br label %test

memory:
  %bytes = call i64 @fusile_tensor_bytes(i32 %dtype, i32 %rank, ptr %extents)
  %large = icmp slt i64 %bytes, 0
  br i1 %large, label %overflow, label %present

present: ; a tensor without elements may come without memory; capacity 0 means that the caller does not say
  %pointer = load ptr, ptr %input
  %missing = icmp eq ptr %pointer, null
  %some = icmp ne i64 %bytes, 0
  %hole = and i1 %missing, %some
  %capacity.place = getelementptr inbounds %tensor, ptr %input, i64 0, i32 4
  %capacity = load i64, ptr %capacity.place
  %stated = icmp sgt i64 %capacity, 0
  %less = icmp slt i64 %capacity, %bytes
  %small = and i1 %stated, %less
  %either = or i1 %hole, %small
  %wrong = and i1 %either, %data
  br i1 %wrong, label %bad, label %done

done:
  ret i32 0

overflow:
  call void @fusile_error(ptr %error, i32 5, i32 0, i64 %which, i64 0)
  ret i32 5

bad:
  call void @fusile_error(ptr %error, i32 1, i32 0, i64 %which, i64 -1)
  ret i32 1

bad.dim:
  %where = zext i32 %index to i64
  call void @fusile_error(ptr %error, i32 1, i32 0, i64 %which, i64 %where)
  ret i32 1
}

; Checks all inputs, binds the symbols (the others are -1 afterwards) and asks the plan for the shapes of the
; outputs.
define internal i32 @fusile_bind(ptr %inputs, ptr %dims, ptr %shapes, i1 %data, ptr %error) nounwind {
entry:
  %count = load i32, ptr @plan_header
  %symbols.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 2
  %symbols = load i32, ptr %symbols.place
  %symbols.wide = zext i32 %symbols to i64
  %length = shl i64 %symbols.wide, 3
  call void @llvm.memset.p0.i64(ptr align 8 %dims, i8 -1, i64 %length, i1 false)
  br label %test

test:
  %index = phi i32 [ 0, %entry ], [ %following, %next ]
  %more = icmp slt i32 %index, %count
  br i1 %more, label %input, label %shape

input:
  %place = getelementptr inbounds %tensor, ptr %inputs, i32 %index
  %status = call i32 @fusile_bind_input(i32 %index, ptr %place, ptr %dims, i1 %data, ptr %error)
  %bad = icmp ne i32 %status, 0
  br i1 %bad, label %stop, label %next

next:
  %following = add i32 %index, 1
  br label %test

shape:
  %answer = call i32 @plan_shapes(ptr %dims, ptr %shapes, ptr %error)
  ret i32 %answer

stop:
  ret i32 %status
}

; Writes dtype, rank and dims of every output, as @plan_shapes said.
define internal void @fusile_describe_outputs(ptr %outputs, ptr %shapes) nounwind {
entry:
  %count.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 1
  %count = load i32, ptr %count.place
  br label %test

test:
  %index = phi i32 [ 0, %entry ], [ %following, %output ]
  %more = icmp slt i32 %index, %count
  br i1 %more, label %output, label %done

output:
  %port = getelementptr inbounds %port, ptr @plan_outputs, i32 %index
  %dtype = load i32, ptr %port
  %rank.place = getelementptr inbounds %port, ptr %port, i64 0, i32 1
  %rank = load i32, ptr %rank.place
  %tensor = getelementptr inbounds %tensor, ptr %outputs, i32 %index
  %tensor.dtype = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 1
  store i32 %dtype, ptr %tensor.dtype
  %tensor.rank = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 2
  store i32 %rank, ptr %tensor.rank
  %tensor.dims = getelementptr inbounds %tensor, ptr %tensor, i64 0, i32 3
  %shape = getelementptr inbounds [8 x i64], ptr %shapes, i32 %index
  %rank.wide = zext i32 %rank to i64
  %length = shl i64 %rank.wide, 3
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %tensor.dims, ptr align 8 %shape, i64 %length, i1 false)
  %following = add i32 %index, 1
  br label %test

done:
  ret void
}
