"""A program for the market's `script`."""

# Of each column the sum, beside how many rows there were; `take` gives out memory from 1024 on.
SUMS = """
(module
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 1024))
  (func $take (export "take") (param $bytes i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (global.get $free) (local.get $bytes)))
    (if (i32.gt_u (global.get $free) (i32.mul (memory.size) (i32.const 65536)))
      (then (drop (memory.grow (i32.add (i32.div_u (local.get $bytes) (i32.const 65536)) (i32.const 1))))))
    (local.get $at))
  (func (export "run") (param $x i32) (param $y i32) (param $rows i32) (param $columns i32) (result i32)
    (local $out i32) (local $i i32) (local $cell i32)
    (local.set $out (call $take (i32.mul (i32.add (local.get $columns) (i32.const 1)) (i32.const 8))))
    (f64.store (local.get $out) (f64.convert_i32_u (local.get $columns)))
    (block $done (loop $each
      (br_if $done (i32.ge_u (local.get $i) (i32.mul (local.get $rows) (local.get $columns))))
      (local.set $cell (i32.add (i32.add (local.get $out) (i32.const 8))
        (i32.mul (i32.rem_u (local.get $i) (local.get $columns)) (i32.const 8))))
      (f64.store (local.get $cell) (f64.add (f64.load (local.get $cell))
        (f64.load (i32.add (local.get $x) (i32.mul (local.get $i) (i32.const 8))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $each)))
    (local.get $out)))
"""
