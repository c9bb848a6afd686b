package guest

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Touched reports whether the page of the byte at front-end virtual address uva has ever
// been written or read by anybody who shares the memory, without touching it: a driver
// that runs in shared memory has written its rings. known is false where the kernel does
// not say, as for huge pages and addresses that no region has.
func (t *Table) Touched(uva uint64) (touched, known bool) {
	b, err := t.User(uva, 1)
	if err != nil {
		return false, false
	}
	for i := range t.regions {
		if r := &t.regions[i]; uva >= r.UserAddr && uva-r.UserAddr < r.Size && r.mapping.huge {
			return false, false
		}
	}
	page := uintptr(os.Getpagesize())
	// Mappings begin with a page, so the page's begin is in this one, too.
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b))) &^ (page - 1)
	var in [1]byte
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, at, page, uintptr(unsafe.Pointer(&in[0])))
	return in[0]&1 != 0, errno == 0
}
