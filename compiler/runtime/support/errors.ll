; The run's error record, and sizes that cannot overflow unnoticed.

; Writes an error once: the first caller wins, whatever thread it is on. The record is read after the threads
; have joined.
define hidden void @fusile_error(ptr %error, i32 %code, i32 %site, i64 %a, i64 %b) cold noinline nounwind {
  %exchange = cmpxchg ptr %error, i32 0, i32 %code monotonic monotonic
  %first = extractvalue { i32, i1 } %exchange, 1
  br i1 %first, label %write, label %done

write:
  %site.place = getelementptr inbounds %error, ptr %error, i64 0, i32 1
  store i32 %site, ptr %site.place
  %a.place = getelementptr inbounds %error, ptr %error, i64 0, i32 2
  store i64 %a, ptr %a.place
  %b.place = getelementptr inbounds %error, ptr %error, i64 0, i32 3
  store i64 %b, ptr %b.place
  br label %done

done:
  ret void
}

; a * b for sizes; -1 where a size is negative already or the product leaves 62 bits (so that rounding up
; later cannot overflow).
define hidden i64 @fusile_size_mul(i64 %a, i64 %b) nounwind {
  %either = or i64 %a, %b
  %negative = icmp slt i64 %either, 0
  %pair = call { i64, i1 } @llvm.smul.with.overflow.i64(i64 %a, i64 %b)
  %product = extractvalue { i64, i1 } %pair, 0
  %overflow = extractvalue { i64, i1 } %pair, 1
  %large = icmp ugt i64 %product, 4611686018427387904
  %bad.1 = or i1 %negative, %overflow
  %bad = or i1 %bad.1, %large
  %size = select i1 %bad, i64 -1, i64 %product
  ret i64 %size
}

; a + b for sizes, with the same -1.
define hidden i64 @fusile_size_add(i64 %a, i64 %b) nounwind {
  %either = or i64 %a, %b
  %negative = icmp slt i64 %either, 0
  %sum = add i64 %a, %b
  %large = icmp ugt i64 %sum, 4611686018427387904
  %bad = or i1 %negative, %large
  %size = select i1 %bad, i64 -1, i64 %sum
  ret i64 %size
}
