package aio

import "unsafe"

// addressOf returns the address of memory that must not be accessed.
func addressOf(b []byte) *byte { return unsafe.SliceData(b) }
