package backend

import (
	"fmt"
	"runtime/debug"
)

// touch runs f, which reads or writes guest memory on a goroutine that is not a
// worker's, and returns f's error or that of a fault. A front-end may have cut
// the file behind the memory; without this the fault would end the process.
func touch(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = faultError(r)
		}
	}()
	return f()
}

// faultError makes an error of a recovered panic that is a fault on guest
// memory. Any other panic is a bug of ours and goes on.
func faultError(r any) error {
	fault, ok := r.(interface{ Addr() uintptr })
	if !ok {
		panic(r)
	}
	return fmt.Errorf("guest memory at %#x is gone: its file was truncated", fault.Addr())
}
