package control

import (
	"fmt"
	"net"
	"os"
	"testing"

	"cowblk/internal/test"
)

// A socket with an abstract address has no file: it keeps its address, and nothing is removed.
func TestAdoptAbstractSocket(t *testing.T) {
	name := fmt.Sprintf("@cowblk-test-%d", os.Getpid())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	test.Must(t, err)
	defer l.Close()
	fd, err := Duplicate(l)
	test.Must(t, err)
	adopted, err := AdoptUnix(fd, l.Addr().String())
	test.Must(t, err)
	if at := adopted.Addr().String(); at != name || !adopted.KeepsFile() {
		t.Errorf("address %q, keeps the file: %v", at, adopted.KeepsFile())
	}
	test.Must(t, adopted.Close())
}
