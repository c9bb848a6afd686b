package backend

import (
	"fmt"
	"runtime/debug"
)

// touch runs f, which accesses guest memory on a goroutine that is not a worker's, and returns f's
// error or a fault's. A front-end may truncate the file behind the memory; without touch the fault
// would end the process.
func touch(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = faultError(r)
		}
	}()
	return f()
}

// faultError turns a recovered panic that is a fault on guest memory into an error. Any other panic
// is a bug of cowblk and continues.
func faultError(r any) error {
	fault, ok := r.(interface{ Addr() uintptr })
	if !ok {
		panic(r)
	}
	return fmt.Errorf("guest memory at %#x is gone: its file was truncated", fault.Addr())
}
