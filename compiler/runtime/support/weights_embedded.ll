; The packed weights lie in this library; an assembler's .incbin defines them.

@fusile_weights = external hidden constant [0 x i8], align 64

define hidden ptr @fusile_embedded_weights() nounwind {
  ret ptr @fusile_weights
}
