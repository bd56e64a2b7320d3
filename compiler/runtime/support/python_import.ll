; Lets `import NAME` find NAME.py although NAME.so lies beside it, which Python takes first: the library is an
; extension module whose content is the wrapper's. Outside of Python none of these functions is there, and
; none is called.

declare extern_weak ptr @PyModuleDef_Init(ptr)
declare extern_weak ptr @PyModule_GetDict(ptr)
declare extern_weak ptr @Py_CompileString(ptr, ptr, i32)
declare extern_weak ptr @PyEval_EvalCode(ptr, ptr, ptr)
declare extern_weak void @Py_DecRef(ptr)
declare extern_weak void @_Py_MergeZeroLocalRefcount(ptr) ; only in builds without a global lock

; PyModuleDef: an object's head (longer where there is no global lock), init, index, copy; then name, doc, size,
; methods, slots, traverse, clear, free.
%base = type { ptr, i64, ptr }
%definition = type { [2 x i64], %base, ptr, ptr, i64, ptr, ptr, ptr, ptr, ptr }
%definition.free = type { [4 x i64], %base, ptr, ptr, i64, ptr, ptr, ptr, ptr, ptr }
%slot = type { i32, ptr }

@python.name = private unnamed_addr constant [NAME_BYTES x i8] c"NAME\00"
@python.code = private unnamed_addr constant [148 x i8]
    c"import pathlib as _pathlib\0A_wrapper = _pathlib.Path(__file__).with_suffix('.py')\0Aexec(compile(_wrapper.read_text('utf-8'), str(_wrapper), 'exec'))\0A\00"
@python.slots = internal global [2 x %slot] [%slot { i32 2, ptr @python.fill }, %slot zeroinitializer] ; Py_mod_exec
@python.definition = internal global %definition { [2 x i64] zeroinitializer, %base zeroinitializer,
    ptr @python.name, ptr null, i64 0, ptr null, ptr @python.slots, ptr null, ptr null, ptr null }
@python.definition.free = internal global %definition.free { [4 x i64] zeroinitializer, %base zeroinitializer,
    ptr @python.name, ptr null, i64 0, ptr null, ptr @python.slots, ptr null, ptr null, ptr null }

; Runs the wrapper's code in the new module. -1 with Python's error set where that fails. 257 is Py_file_input.
define internal i32 @python.fill(ptr %module) nounwind {
  %names = call ptr @PyModule_GetDict(ptr %module)
  %code = call ptr @Py_CompileString(ptr @python.code, ptr @python.name, i32 257)
  %wrong = icmp eq ptr %code, null
  br i1 %wrong, label %fail, label %run

run:
  %result = call ptr @PyEval_EvalCode(ptr %code, ptr %names, ptr %names)
  call void @Py_DecRef(ptr %code)
  %failed = icmp eq ptr %result, null
  br i1 %failed, label %fail, label %done

done:
  call void @Py_DecRef(ptr %result)
  ret i32 0

fail:
  ret i32 -1
}

define ptr @PyInit_NAME() nounwind {
  %locked = icmp eq ptr @_Py_MergeZeroLocalRefcount, null
  %definition = select i1 %locked, ptr @python.definition, ptr @python.definition.free
  %answer = call ptr @PyModuleDef_Init(ptr %definition)
  ret ptr %answer
}
