package backend

import "fmt"

// Cache is the cache mode between a guest's writes and the disk, with the names of QEMU's cache=
// option, which QEMU refuses for vhost-user disks. The zero value is writeback.
type Cache struct {
	// WriteThrough starts every driver with the write cache off: each write is durable when it
	// completes. A driver that negotiates CONFIG_WCE may change that (virtio 1.2, 5.2.5.2). The
	// effect of false depends on what the driver negotiates: see writeCache.
	WriteThrough bool
	// Direct: the disk was opened with cow.Options.Direct, and its data bypasses the host's page
	// cache.
	Direct bool
}

// cacheModes maps names to modes.
var cacheModes = [...]struct {
	name string
	mode Cache
}{
	{"writeback", Cache{}},
	{"writethrough", Cache{WriteThrough: true}},
	{"none", Cache{Direct: true}},
	{"directsync", Cache{WriteThrough: true, Direct: true}},
}

// String returns QEMU's name.
func (c Cache) String() string {
	for _, m := range cacheModes {
		if m.mode == c {
			return m.name
		}
	}
	return "" // not reached: the table has all four
}

// MarshalText implements encoding.TextMarshaler.
func (c Cache) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. QEMU's "unsafe", which drops flushes, is no
// mode: it would tear the disk of a tag or after a crash.
func (c *Cache) UnmarshalText(text []byte) error {
	for _, m := range cacheModes {
		if m.name == string(text) {
			*c = m.mode
			return nil
		}
	}
	return fmt.Errorf("cache %q: expected writeback, writethrough, none or directsync", text)
}
