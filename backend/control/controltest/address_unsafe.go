package controltest

import "unsafe"

// address is where the elements of a slice lie. The kernel reads them before it returns.
func address(list []uint32) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(list))) }
