package backendtest

import (
	"bytes"

	"cowblk/vhost/frontend"
)

// Write returns a function that writes 4 KiB of the byte b at off, in bytes.
func Write(d *frontend.Driver, b byte, off int64) func() error {
	return func() error { _, err := d.WriteAt(bytes.Repeat([]byte{b}, 4096), off); return err }
}
