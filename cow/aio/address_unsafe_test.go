package aio

import "unsafe"

// addressOf is the address of memory that must not be touched.
func addressOf(b []byte) *byte { return unsafe.SliceData(b) }
