"""A plan written by hand: what a printed plan module looks like, small enough to read.

    y[n, 4] = x[n, 4] * w[4]                  in parallel, 16 rows at a time
    g[k, 4] = y[index[k], :]                  checks its indices: node "gather/ä"
    z[m]    = the positive elements of x      a size that depends on data: node "compress"

w is packed by one step, which doubles the raw weights.
"""

from __future__ import annotations

from fusile.runtime import abi

FLOAT, INT64 = 1, 7
PLAN = abi.PlanInterface(
    name="tiny",
    inputs=(abi.Port("x", FLOAT, ("n", 4)), abi.Port("index", INT64, ("k",))),
    outputs=(
        abi.Port("y", FLOAT, ("n", 4)),
        abi.Port("g", FLOAT, ("k", 4)),
        abi.Port("z", FLOAT, (None,)),
    ),
    symbols=("n", "k"),
    sites=("", "gather/ä", "compress"),
    weights_bytes=64,
    layout_key=b"tiny layout".ljust(32, b"\0"),
    prepare_steps=1,
)

_CODE = """
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define hidden i32 @plan_init(ptr %instance, ptr %error) {
  ret i32 0
}

define hidden i32 @plan_shapes(ptr %dims, ptr %shapes, ptr %error) {
  %n = load i64, ptr %dims
  %k.place = getelementptr i64, ptr %dims, i64 1
  %k = load i64, ptr %k.place
  store i64 %n, ptr %shapes
  %y.1 = getelementptr [8 x i64], ptr %shapes, i64 0, i64 1
  store i64 4, ptr %y.1
  %g.0 = getelementptr [8 x i64], ptr %shapes, i64 1
  store i64 %k, ptr %g.0
  %g.1 = getelementptr [8 x i64], ptr %shapes, i64 1, i64 1
  store i64 4, ptr %g.1
  %z.0 = getelementptr [8 x i64], ptr %shapes, i64 2
  store i64 -1, ptr %z.0
  ret i32 0
}

; an arena that nobody reads, so that its allocation can fail
define hidden i64 @plan_arena(ptr %dims) {
  %n = load i64, ptr %dims
  %bytes = call i64 @fusile_size_mul(i64 %n, i64 32)
  ret i64 %bytes
}

define hidden i64 @plan_scratch(ptr %dims) {
  ret i64 100
}

; frame: error, x, w, y
define internal void @scale(ptr %frame, i64 %begin, i64 %end, ptr %scratch) {
entry:
  store i64 %begin, ptr %scratch
  %x.place = getelementptr ptr, ptr %frame, i64 1
  %x = load ptr, ptr %x.place
  %w.place = getelementptr ptr, ptr %frame, i64 2
  %w = load ptr, ptr %w.place
  %y.place = getelementptr ptr, ptr %frame, i64 3
  %y = load ptr, ptr %y.place
  %factor = load <4 x float>, ptr %w, align 16
  br label %row

row:
  %i = phi i64 [ %begin, %entry ], [ %next, %row ]
  %from = getelementptr <4 x float>, ptr %x, i64 %i
  %value = load <4 x float>, ptr %from, align 4
  %product = fmul <4 x float> %value, %factor
  %to = getelementptr <4 x float>, ptr %y, i64 %i
  store <4 x float> %product, ptr %to, align 4
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %row, label %done

done:
  ret void
}

; frame: error, y, index, g, n
define internal void @gather(ptr %frame, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %error = load ptr, ptr %frame
  %y.place = getelementptr ptr, ptr %frame, i64 1
  %y = load ptr, ptr %y.place
  %index.place = getelementptr ptr, ptr %frame, i64 2
  %index = load ptr, ptr %index.place
  %g.place = getelementptr ptr, ptr %frame, i64 3
  %g = load ptr, ptr %g.place
  %n.place = getelementptr i64, ptr %frame, i64 4
  %n = load i64, ptr %n.place
  br label %row

row:
  %i = phi i64 [ %begin, %entry ], [ %next, %copy ]
  %which.place = getelementptr i64, ptr %index, i64 %i
  %which = load i64, ptr %which.place
  %inside = icmp ult i64 %which, %n
  br i1 %inside, label %copy, label %fail

copy:
  %from = getelementptr <4 x float>, ptr %y, i64 %which
  %value = load <4 x float>, ptr %from, align 4
  %to = getelementptr <4 x float>, ptr %g, i64 %i
  store <4 x float> %value, ptr %to, align 4
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %row, label %done

fail:
  call void @fusile_error(ptr %error, i32 2, i32 1, i64 %which, i64 %n)
  br label %done

done:
  ret void
}

; positive elements of x to memory; how many
define internal i64 @compress(ptr %x, i64 %count, ptr %memory) {
entry:
  br label %test

test:
  %i = phi i64 [ 0, %entry ], [ %next, %element ]
  %found = phi i64 [ 0, %entry ], [ %now, %element ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %element, label %done

element:
  %from = getelementptr float, ptr %x, i64 %i
  %value = load float, ptr %from
  %to = getelementptr float, ptr %memory, i64 %found
  store float %value, ptr %to
  %positive = fcmp ogt float %value, 0.0
  %one = zext i1 %positive to i64
  %now = add i64 %found, %one
  %next = add i64 %i, 1
  br label %test

done:
  ret i64 %found
}

define hidden i32 @plan_run(ptr %ctx, ptr %weights, ptr %inputs, ptr %outputs, ptr %dims, ptr %arena,
    ptr %scratch, i64 %stride, ptr %error) {
entry:
  %count = alloca i64
  %frame = alloca [5 x ptr]
  store ptr %error, ptr %frame
  %slot.1 = getelementptr ptr, ptr %frame, i64 1
  %slot.2 = getelementptr ptr, ptr %frame, i64 2
  %slot.3 = getelementptr ptr, ptr %frame, i64 3
  %slot.4 = getelementptr ptr, ptr %frame, i64 4
  %n = load i64, ptr %dims
  %k.place = getelementptr i64, ptr %dims, i64 1
  %k = load i64, ptr %k.place
  %x = load ptr, ptr %inputs
  %index.place = getelementptr %tensor, ptr %inputs, i64 1
  %index = load ptr, ptr %index.place
  %y = load ptr, ptr %outputs
  %g.place = getelementptr %tensor, ptr %outputs, i64 1
  %g = load ptr, ptr %g.place
  store ptr %x, ptr %slot.1
  store ptr %weights, ptr %slot.2
  store ptr %y, ptr %slot.3
  call void @fusile_parallel(ptr %ctx, ptr @scale, ptr %frame, i64 %n, i64 16, ptr %scratch, i64 %stride)
  store ptr %y, ptr %slot.1
  store ptr %index, ptr %slot.2
  store ptr %g, ptr %slot.3
  store i64 %n, ptr %slot.4
  call void @fusile_parallel(ptr %ctx, ptr @gather, ptr %frame, i64 %k, i64 16, ptr %scratch, i64 %stride)
  %code = load i32, ptr %error
  %bad = icmp ne i32 %code, 0
  br i1 %bad, label %stop, label %third

third:
  %elements = mul i64 %n, 4
  %bytes = mul i64 %elements, 4
  %room = add i64 %bytes, 4
  %memory = call ptr @fusile_temp(ptr %ctx, i64 %room, i32 2, ptr %error)
  %none = icmp eq ptr %memory, null
  br i1 %none, label %stop, label %fill

fill:
  %found = call i64 @compress(ptr %x, i64 %elements, ptr %memory)
  store i64 %found, ptr %count
  %z = call ptr @fusile_output(ptr %ctx, i32 2, ptr %count, i32 2, ptr %error)
  %refused = icmp eq ptr %z, null
  br i1 %refused, label %stop, label %copy

copy:
  %length = mul i64 %found, 4
  call void @llvm.memcpy.p0.p0.i64(ptr %z, ptr %memory, i64 %length, i1 false)
  br label %stop

stop:
  %status = load i32, ptr %error
  ret i32 %status
}

define hidden i32 @plan_prepare(ptr %ctx, i32 %step, ptr %raw, ptr %packed, ptr %error) {
  %w = load ptr, ptr %raw
  %value = load <4 x float>, ptr %w, align 1
  %double = fadd <4 x float> %value, %value
  store <4 x float> %double, ptr %packed, align 16
  ret i32 0
}
"""

TEXT = "\n".join(('source_filename = "plan"', abi.TYPES, abi.DECLARATIONS, abi.plan_constants(PLAN), _CODE))
