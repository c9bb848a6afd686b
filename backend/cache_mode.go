package backend

import "fmt"

// Cache is what lies between a guest's writes and the disk, named as QEMU's
// cache= names it, which a vhost-user disk cannot be given there. The zero value
// is writeback.
type Cache struct {
	// WriteThrough starts every driver with the write cache off: each write is
	// durable when it completes. A driver that negotiates CONFIG_WCE may change
	// that (virtio 1.2, 5.2.5.2); what the zero value means to a driver depends on
	// what it negotiates: see writeCache.
	WriteThrough bool
	// Direct means that the disk was opened with cow.Options.Direct: data goes
	// past this machine's page cache.
	Direct bool
}

// cacheModes are the four names.
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
	return "" // not reached: all four are there
}

// MarshalText implements encoding.TextMarshaler.
func (c Cache) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. QEMU's "unsafe", which
// drops flushes, is no mode here: a tag or a crash would find the disk torn.
func (c *Cache) UnmarshalText(text []byte) error {
	for _, m := range cacheModes {
		if m.name == string(text) {
			*c = m.mode
			return nil
		}
	}
	return fmt.Errorf("cache %q: expected writeback, writethrough, none or directsync", text)
}
