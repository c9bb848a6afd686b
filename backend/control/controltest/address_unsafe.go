package controltest

import "unsafe"

// address returns the address of the elements of a slice. The kernel reads them during the system
// call.
func address(list []uint32) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(list))) }
