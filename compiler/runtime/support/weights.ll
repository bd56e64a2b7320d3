; A weights file: a head of 4096 bytes, then the packed weights. Head: "FUSILEW1", i64 bytes of weights, 32 bytes
; layout key (as in %plan_header), zeros; weights_file.py writes it. Mapped, so that processes share it.

@weights.magic = private unnamed_addr constant [8 x i8] c"FUSILEW1"

declare i32 @open(ptr, i32, ...)
declare i32 @close(i32)
declare i64 @lseek(i32, i64, i32)
declare ptr @mmap(ptr, i64, i32, i32, i32, i64)
declare i32 @munmap(ptr, i64)
declare i32 @memcmp(ptr, ptr, i64)

; Maps the file into the instance. 0; 1 where it cannot be read or is not a file of this module's weights; 4
; where mapping fails.
define internal i32 @fusile_weights_map(ptr %instance, ptr %path) nounwind {
entry:
  %bytes.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 4
  %bytes = load i64, ptr %bytes.place
  %whole = add i64 %bytes, 4096
  %file = call i32 (ptr, i32, ...) @open(ptr %path, i32 0)
  %unreadable = icmp slt i32 %file, 0
  br i1 %unreadable, label %refuse, label %measure

measure: ; 2 is SEEK_END
  %size = call i64 @lseek(i32 %file, i64 0, i32 2)
  %fits = icmp eq i64 %size, %whole
  br i1 %fits, label %map, label %refuse.close

map: ; 1 is PROT_READ, 2 is MAP_PRIVATE
  %memory = call ptr @mmap(ptr null, i64 %whole, i32 1, i32 2, i32 %file, i64 0)
  %s.1 = call i32 @close(i32 %file)
  %address = ptrtoint ptr %memory to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %no.memory, label %check

check:
  %magic = call i32 @memcmp(ptr %memory, ptr @weights.magic, i64 8)
  %key.here = getelementptr inbounds i8, ptr %memory, i64 16
  %key.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 7
  %key = call i32 @memcmp(ptr %key.here, ptr %key.place, i64 32)
  %either = or i32 %magic, %key
  %right = icmp eq i32 %either, 0
  br i1 %right, label %keep, label %refuse.unmap

keep:
  %weights = getelementptr inbounds i8, ptr %memory, i64 4096
  store ptr %weights, ptr %instance
  %mapping.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 1
  store ptr %memory, ptr %mapping.place
  %mapped.place = getelementptr inbounds %instance, ptr %instance, i64 0, i32 2
  store i64 %whole, ptr %mapped.place
  ret i32 0

refuse.unmap:
  %s.2 = call i32 @munmap(ptr %memory, i64 %whole)
  ret i32 1

refuse.close:
  %s.3 = call i32 @close(i32 %file)
  ret i32 1

refuse:
  ret i32 1

no.memory:
  ret i32 4
}

; Where an instance's weights come from: the caller's pointer, a file, or what the library holds itself, in
; this order.
define internal i32 @fusile_weights_find(ptr %instance, ptr %path, ptr %given, i64 %given.bytes) nounwind {
entry:
  %bytes.place = getelementptr inbounds %plan_header, ptr @plan_header, i64 0, i32 4
  %bytes = load i64, ptr %bytes.place
  %has.pointer = icmp ne ptr %given, null
  br i1 %has.pointer, label %pointer, label %no.pointer

pointer: ; of the right size, and aligned as the kernels expect
  %right.size = icmp eq i64 %given.bytes, %bytes
  %address = ptrtoint ptr %given to i64
  %low = and i64 %address, 63
  %aligned = icmp eq i64 %low, 0
  %fits = and i1 %right.size, %aligned
  br i1 %fits, label %take, label %refuse

take:
  store ptr %given, ptr %instance
  ret i32 0

no.pointer:
  %has.path = icmp ne ptr %path, null
  br i1 %has.path, label %file, label %own

file:
  %status = call i32 @fusile_weights_map(ptr %instance, ptr %path)
  ret i32 %status

own:
  %embedded = call ptr @fusile_embedded_weights()
  store ptr %embedded, ptr %instance
  %present = icmp ne ptr %embedded, null
  %needless = icmp eq i64 %bytes, 0
  %enough = or i1 %present, %needless
  br i1 %enough, label %done, label %refuse

done:
  ret i32 0

refuse:
  ret i32 1
}
